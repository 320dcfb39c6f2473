"""Runs that a command asks for: made once, by any engine, and found again by the next call."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

from optbench.configuration.finished import PresentData
from optbench.launch.index import Index
from optbench.launch.launcher import Launcher
from optbench.record.folder import read_finished
from optbench.record.terminal import ManyRuns


class Runs:
    """Runs of the main job by their commands, as a context that shows how many are made.

    Attributes:
        failures: A line for each run that failed.
    """

    def __init__(
        self,
        launcher: Launcher,
        results: Path,
        index: Path,
        total: int,
        config_dir: Path | None = None,
        kinds: Mapping[str, int] | None = None,
    ) -> None:
        """Find what has been made.

        Args:
            launcher: Engine that makes what is missing, under `results`.
            results: Results folder.
            index: File that remembers the folder of every command.
            total: Number of runs that will be asked for.
            config_dir: The user's YAMLs, which the commands may name.
            kinds: Number of runs of each kind, where their costs differ; for the time left.
        """
        self._launcher, self._results, self._config_dir = launcher, results, config_dir
        self._index, self._present = Index(index), PresentData()
        self._shown = ManyRuns(total, kinds=kinds if kinds is not None else {"": total})
        self.failures: list[str] = []

    def __enter__(self) -> "Runs":
        self._shown.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._shown.__exit__(kind, error, tb)

    def folder(self, command: Sequence[str]) -> Path | None:
        """Return the run folder of a command; None unless its run has finished."""
        name = self._index.folder(command)
        path = self._results / "runs" / name if name else None
        return path if path and read_finished(path) else None

    def summary(self, command: Sequence[str]) -> dict[str, Any] | None:
        """Return the summary of a command's run; None unless it has finished."""
        name = self._index.folder(command)
        return read_finished(self._results / "runs" / name) if name else None

    def make(
        self,
        title: str,
        commands: Sequence[Sequence[str]],
        kind: Callable[[Sequence[str]], str] = lambda command: "",
    ) -> None:
        """Make the runs that are missing.

        Args:
            title: What they are.
            commands: The overrides of each.
            kind: Kind of a command, one of `kinds`.

        Raises:
            UserError: If a finished run is damaged, or its data or code have changed since.
        """
        self._shown.begin(title)
        missing = []
        for command in commands:
            if (folder := self.folder(command)) is None:
                missing.append(command)
            else:
                self._present.check_command(folder, command, self._config_dir)
                self._shown.run_ended(kind(command), _seconds(folder), found=True)
        if missing:
            self._shown.making()
        with closing(self._launcher.launch(missing, self._shown.say)) as ended:
            for run in ended:
                if run.folder is None:
                    line = f"failed: python -m optbench {' '.join(run.overrides)}: {run.why}"
                    self.failures.append(line)
                    self._shown.say(line)
                else:
                    self._index.add(run.overrides, run.folder.name)
                self._shown.run_ended(kind(run.overrides), _seconds(run.folder))


def _seconds(folder: Path | None) -> float:
    """Seconds that a run took; 0 where nobody knows."""
    summary = None if folder is None else read_finished(folder)
    if summary is None:
        return 0.0
    return sum(float(summary.get(part) or 0.0) for part in ("train_seconds", "probe_seconds"))
