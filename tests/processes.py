"""The main job in processes that can be killed."""

import os
import signal
import tempfile
from pathlib import Path

from optbench.launch.local import _main_job
from optbench.processes import fork_server


class Forked:
    """`python -m optbench ARGUMENTS results_dir=FOLDER` on one thread, forked as the tuner's runs are.

    A process of its own, but for the imports, which take most of the time of a short run.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._said = Path(tempfile.mkdtemp(dir=folder, prefix="said-"))
        overrides = (f"results_dir={folder}", "wandb.mode=disabled", *arguments)
        self._process = fork_server(1).Process(
            target=_main_job, args=(overrides, self._said, 1), daemon=False
        )
        self._process.start()

    def works(self) -> bool:
        """Whether it has not ended."""
        return bool(self._process.is_alive())

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.works():
            os.kill(self._process.pid, number)

    def end(self, timeout: float = 120) -> int:
        """Wait for its exit code, −N after signal N."""
        self._process.join(timeout)
        assert not self.works(), f"still at work after {timeout} s"
        return int(self._process.exitcode)

    @property
    def err(self) -> str:
        """What it has written to standard error."""
        return (self._said / "err").read_text()
