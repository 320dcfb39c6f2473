"""A sweep runs to its end whatever fails in it, then says what did.

A list of failures in the process that began the sweep stays empty where a launcher runs jobs in
other processes or on other machines. What comes back from there is Hydra's record of the job, so
the failure travels in that.
"""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optbench import metrics
from optbench.errors import MachineError, UserError, printable
from optbench.record.folder import read_finished
from optbench.record.terminal import series


class RunError(Exception):
    """A run of a sweep failed. Only plain values, which any process can read.

    Attributes:
        text: What to print.
        code: The exit code.
        process: Process in which it happened, and was printed.
    """

    def __init__(self, text: str, code: int, process: str) -> None:
        super().__init__(text, code, process)
        self.text, self.code, self.process = text, code, process

    def tell(self, process: str) -> None:
        """Print it, unless this process has done so."""
        if self.process != process:
            print(self.text, file=sys.stderr)


Elsewhere = Callable[[list[str]], Launcher | None]
"""Takes its words out of a command line; returns what makes the runs of a sweep, if they say so."""

Report = Callable[[Sequence[Path], Path], str]
"""Takes the run folders of a sweep and its own folder; returns a last line, empty for none."""

HYDRAS_RECORD = "multirun.yaml"

QUEUED = "queued"
"""Status of a run that is made with others, after the sweep."""


@dataclass
class Sweep:
    """What became of the runs of a sweep.

    Attributes:
        codes: Exit codes of those that failed.
        ended: Overrides of each run that ended, with what it returned.
        folder: Folder of the sweep; None where there is none.
    """

    codes: list[int] = field(default_factory=list)
    ended: list[tuple[Sequence[str], Any]] = field(default_factory=list)
    folder: Path | None = None

    @property
    def runs(self) -> list[Path]:
        """Folders of the runs that ended, each once."""
        places = [returned["folder"] for _, returned in self.ended if isinstance(returned, dict)]
        return [Path(place) for place in dict.fromkeys(places)]

    def forget(self) -> None:
        """Delete what Hydra has written about a sweep that made no run."""
        if self.folder is None or self.ended or not self.folder.is_dir():
            return
        if [file.name for file in self.folder.iterdir()] == [HYDRAS_RECORD]:
            shutil.rmtree(self.folder)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()  # unless it holds other sweeps

    def print_table(self) -> None:
        """Print a line for each run, failures too, where there is more than one."""
        print_sweep([run for run in self.ended if _status(run[1]) != QUEUED])


@contextmanager
def telling_failures(process: str, engine: Launcher | None = None) -> Iterator[Sweep]:
    """Watch every launcher that Hydra makes; the sweep fills with what became of its runs.

    Hydra gives what a launcher returns to nobody but the sweeper, and of no sweeper can one ask for
    it.

    Args:
        process: Process that began the sweep.
        engine: What takes the place of Hydra's launcher.
    """
    sweep = Sweep()
    plain = Plugins.instantiate_launcher

    def watched(
        self: Plugins, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> Launcher:
        launcher = plain(
            self, hydra_context=hydra_context, task_function=task_function, config=config
        )
        # by name: Hydra imports its plug-ins a second time, as other classes
        is_plain = config.hydra.launcher._target_ == _name(BasicLauncher)
        if engine is not None:
            if not is_plain:
                raise UserError("hydra/launcher= and launcher= (or jobs=) both say what makes runs")
            engine.setup(hydra_context=hydra_context, task_function=task_function, config=config)
            launcher = engine
        if config.hydra.mode == RunMode.MULTIRUN:
            sweep.folder = Path(config.hydra.sweep.dir)
        keep = config.hydra.sweeper._target_ != _name(BasicSweeper)
        return _Watched(launcher, process, sweep, keep, is_here=is_plain and engine is None)

    Plugins.instantiate_launcher = watched  # type: ignore[method-assign]
    try:
        yield sweep
    except Exception as why:
        if not isinstance(why, MachineError | OSError):  # which may come after some runs
            sweep.forget()
        raise
    finally:
        Plugins.instantiate_launcher = plain  # type: ignore[method-assign]


def _name(plugin: type) -> str:
    return f"{plugin.__module__}.{plugin.__name__}"


class _Watched(Launcher):
    """A launcher that says which of its runs failed.

    It keeps failures from Hydra's own sweeper, which would raise the first and leave the runs after
    it undone; any other has a rule of its own for them.
    """

    def __init__(
        self, launcher: Launcher, process: str, sweep: Sweep, keep: bool, is_here: bool
    ) -> None:
        self._launcher, self._process, self._sweep, self._keep = launcher, process, sweep, keep
        self._is_here = is_here

    def setup(self, **about: Any) -> None:
        self._launcher.setup(**about)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        with series(len(job_overrides)):  # of a launcher that makes them in this process
            ended = list(self._ended(job_overrides, initial_job_idx))
        return [job for job in ended if self._keep or job.status is not JobStatus.FAILED]

    def _ended(self, commands: Sequence[Sequence[str]], first: int) -> Iterator[JobReturn]:
        """Yield each run as it ends; those of this process are announced one by one."""
        if not self._is_here:
            for job in self._launcher.launch(commands, initial_job_idx=first):
                self._note(job)
                yield job
            return
        for number, command in enumerate(commands, first):
            if len(commands) > 1:
                words = " ".join(command)
                print(f"run {number + 1} of {first + len(commands)}: {words}", file=sys.stderr)
            for job in self._launcher.launch([command], initial_job_idx=number):
                self._note(job)
                yield job

    def _note(self, job: JobReturn) -> None:
        value = job._return_value
        self._sweep.ended.append((list(job.overrides or ()), value))
        if job.status is JobStatus.FAILED:
            if not isinstance(value, RunError):
                raise value
            value.tell(self._process)
            self._sweep.codes.append(value.code)


def _status(returned: Any) -> str:
    return str(returned.get("status", "")) if isinstance(returned, dict) else "failed"


def print_sweep(ended: Sequence[tuple[Sequence[str], Any]]) -> None:
    """Print a table of runs: what differs in their overrides, how they ended, the last values."""
    if len(ended) < 2:
        return
    common = set.intersection(*(set(words) for words, _ in ended))
    table = Table(title=f"{len(ended)} runs", title_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for heading in SHOWN.values():
        table.add_column(heading, justify="right")
    failed = []
    for words, returned in ended:
        name = printable(" ".join(word for word in words if word not in common)) or "-"
        table.add_row(*map(escape, (name, _status(returned), *_last(returned))))
        if isinstance(returned, RunError):
            failed.append(name)
    Console(file=sys.stdout, highlight=False).print(table)
    if failed:
        print(f"{len(failed)} of {len(ended)} runs failed: {'; '.join(failed)}")


SHOWN = {
    metrics.TRAIN_LOSS: "train loss",
    metrics.TEST_ERROR: "test error",
    metrics.SHARPNESS: "sharpness",
}
"""Metrics of the table, with the headings that a narrow terminal has room for."""


def _last(returned: Any) -> list[str]:
    """The cells of a run's last values, empty where there is none."""
    folder = Path(returned.get("folder", "")) if isinstance(returned, dict) else None
    last = ((folder and read_finished(folder)) or {}).get("last", {})
    return [f"{last[name]:.4g}" if name in last else "" for name in SHOWN]
