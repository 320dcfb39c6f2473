"""`python -m optbench --multirun … jobs=4 launcher=NAME`: the runs of a sweep, on an engine.

Hydra's sweeper says which runs; the engine makes them, in place of Hydra's launcher. The words
`jobs=`, `launcher=` and `launcher.KEY=` are no part of a run's configuration, so Hydra does not see
them.
"""

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher as HydraLauncher
from omegaconf import DictConfig

from optbench.boundary.command_line import Command, Key
from optbench.boundary.kinds import Count
from optbench.cli import command_job
from optbench.cli.sweep import Report, RunError
from optbench.configuration.compose import config_dirs
from optbench.errors import UserError, printable, stopping_on_signals
from optbench.launch.engines import LOCAL, EngineName, EngineSettings, RunSeconds, make_launcher
from optbench.launch.launcher import RUN_SECONDS, Finished, Order
from optbench.record.folder import read_finished
from optbench.record.terminal import ManyRuns


@dataclass(frozen=True)
class Settings:
    """Where the runs of a sweep are made."""

    jobs: Annotated[
        Count | None,
        Key("runs at a time, cores/N threads each; without it as many as cores", placeholder="N"),
    ] = None
    launcher: EngineName = LOCAL
    launcher_settings: EngineSettings = ()
    run_seconds: RunSeconds = RUN_SECONDS


COMMAND = Command("optbench", Settings)
_OURS = re.compile(r"(jobs|run_seconds|launcher(\.[\w.]+)?)=.*", re.DOTALL)
_FLAGS = ("--multirun", "-m")


def main(report: Report | None = None) -> None:
    """Be the main job; `--multirun` may name an engine.

    Args:
        report: Writes about the runs of a sweep, once all have ended.
    """
    command_job.main(take_engine, report, COMMAND.key_lines(28))


def take_engine(argv: list[str]) -> "SweepOnEngine | None":
    """Take the words that name an engine out of a command line, and return that engine.

    Raises:
        UserError: If they are given without `--multirun`, or say what cannot be.
    """
    words = [word for word in argv[1:] if _OURS.fullmatch(word)]
    argv[1:] = [word for word in argv[1:] if word not in words]
    if not words:
        return None
    settings = COMMAND.read(words)
    if not set(_FLAGS) & set(argv):
        said = printable(" ".join(words))
        raise UserError(f"{said} is for many runs: say --multirun, too; one run is made here")
    return SweepOnEngine(settings, [folder.resolve() for folder in config_dirs(argv[1:])])


class SweepOnEngine(HydraLauncher):
    """A launcher of Hydra's that sends the runs to an engine of ours."""

    def __init__(self, settings: Settings, config_dirs: Sequence[Path]) -> None:
        self._settings, self._config_dirs = settings, config_dirs
        self._about: dict[str, Any] = {}

    def setup(self, **about: Any) -> None:
        """Take from Hydra what it gives to every launcher."""
        self._about = about

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Make the runs; each is told as it ends. SIGTERM stops them as Ctrl-C does."""
        config = self._about["config"]
        commands = [_own(words) for words in job_overrides]
        if len({_folder_word(words) for words in job_overrides}) > 1:
            raise UserError("results_dir must be one for all runs of a sweep on an engine")
        own = self._config_dirs[-1] if self._config_dirs else None
        settings = self._settings
        launcher = make_launcher(
            settings.launcher,
            settings.launcher_settings,
            self._order(config),
            own,
            config_word="--config-dir DIR",
        )
        # two may be the same run, said twice
        unique = list(dict.fromkeys(map(tuple, commands)))
        places = {words: i for i, words in enumerate(unique)}
        ends: list[JobReturn | None] = [None] * len(unique)
        total, ended = len(unique), 0
        with (
            stopping_on_signals(),
            ManyRuns(total) as shown,
            closing(launcher.launch(unique, shown.say)) as runs,
        ):
            shown.begin(self._settings.launcher)
            for run in runs:
                ended += 1
                how = "done" if run.folder else "failed"
                shown.say(f"run {ended} of {total}: {' '.join(run.overrides)}: {how}")
                ends[places[run.overrides]] = _returned(run)
                shown.advance()
        return [job for job in ends if job is not None]

    def _order(self, config: DictConfig) -> Order:
        results = Path(config.results_dir)
        where = [word for folder in self._config_dirs for word in ("--config-dir", str(folder))]
        if config.wandb.group is None:
            where = [f"wandb.group=sweep-{Path(config.hydra.sweep.dir).name}", *where]
        device = str(config.device)
        return Order(
            results=results,
            state=results / "sweeps",
            where=where,
            jobs=self._settings.jobs,
            seconds=self._settings.run_seconds,
            device="cpu" if device == "auto" else device,
        )


def _folder_word(words: Sequence[str]) -> str:
    return next((word for word in reversed(words) if word.startswith("results_dir=")), "")


def _own(words: Sequence[str]) -> list[str]:
    """The overrides of a run, without the results folder, which the order says."""
    return [word for word in words if not word.startswith("results_dir=")]


def _returned(run: Finished) -> JobReturn:
    job = JobReturn(overrides=run.overrides)
    if run.folder is not None:
        job.status = JobStatus.COMPLETED
        job.return_value = {"status": _status(run.folder), "folder": str(run.folder)}
    else:
        line = printable(f"optbench: failed: {' '.join(run.overrides)}: {run.why}")
        job.status = JobStatus.FAILED
        job.return_value = RunError(line, run.code, process="elsewhere")
    return job


def _status(folder: Path) -> str:
    return str((read_finished(folder) or {}).get("status", ""))
