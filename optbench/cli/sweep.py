"""A sweep runs to its end whatever fails in it, then says what did.

A list of failures in the process that began the sweep stays empty where a launcher runs jobs in
other processes or on other machines. What comes back from there is Hydra's record of the job, so
the failure travels in that.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

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


@contextmanager
def telling_failures(process: str) -> Iterator[list[int]]:
    """Watch every launcher that Hydra makes; the list fills with the exit codes of failed runs.

    Hydra gives what a launcher returns to nobody but the sweeper, and of no sweeper can one ask for
    it.
    """
    codes: list[int] = []
    plain = Plugins.instantiate_launcher

    def watched(
        self: Plugins, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> Launcher:
        launcher = plain(
            self, hydra_context=hydra_context, task_function=task_function, config=config
        )
        name = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"
        return _Watched(launcher, process, codes, keep=config.hydra.sweeper._target_ != name)

    Plugins.instantiate_launcher = watched  # type: ignore[method-assign]
    try:
        yield codes
    finally:
        Plugins.instantiate_launcher = plain  # type: ignore[method-assign]


class _Watched(Launcher):
    """A launcher that says which of its runs failed.

    It keeps failures from Hydra's own sweeper, which would raise the first and leave the runs after
    it undone; any other has a rule of its own for them.
    """

    def __init__(self, launcher: Launcher, process: str, codes: list[int], keep: bool) -> None:
        self._launcher, self._process, self._codes, self._keep = launcher, process, codes, keep

    def setup(self, **about: Any) -> None:
        self._launcher.setup(**about)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        with series(len(job_overrides)):  # of a launcher that makes them in this process
            ended = self._launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        for job in ended:
            if job.status is JobStatus.FAILED:
                self._tell(job._return_value)
        return [job for job in ended if self._keep or job.status is not JobStatus.FAILED]

    def _tell(self, error: BaseException) -> None:
        if not isinstance(error, RunError):
            raise error
        error.tell(self._process)
        self._codes.append(error.code)
