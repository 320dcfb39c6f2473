"""Training beside the process that leads: the same run, of which only that one writes a record.

1. The leader opens the run folder, and finds the checkpoint to go on from, if there is one.
2. It tells the others that state.
3. All train; where the leader writes, the others do what else belongs to it.
"""

from pathlib import Path
from typing import Any

from optbench.record.folder import RunFolder
from optbench.record.terminal import Terminal
from optbench.run import checkpoint
from optbench.run.loop import Experiment, Runner

GO, NOTHING_TO_DO = b"go", b"nothing to do"


class NoFolder(RunFolder):
    """In place of a run folder, which another process has: it drops what it is given."""

    def log(self, step: int, measured: object) -> None:
        """Drop it."""


class Follower(Runner):
    """Trains as the leader does, and writes nothing."""

    def _save_checkpoint(self) -> None:
        pass

    def _keep_checkpoint(self) -> None:
        pass


def share_start(runner: Runner) -> None:
    """Tell the other processes where the run goes on; call it in the leader."""
    began = runner.step == 0 and not runner.done
    runner.experiment.update.ranks.tell(b"" if began else bytes(checkpoint.content(runner.state())))


def follow(experiment: Experiment) -> dict[str, Any]:
    """Train beside the leader, from where it goes on; return how it ended."""
    runner = Follower(experiment, NoFolder(Path()), Terminal(experiment.settings.steps))
    told = experiment.update.ranks.tell(b"")
    if told:
        runner.load(checkpoint.from_content(told))
    return runner.run()
