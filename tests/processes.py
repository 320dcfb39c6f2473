"""Commands in processes of their own, without the imports that take most of a short one's time."""

import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

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


def command(
    folder: Path,
    *arguments: str,
    module: str = "optbench",
    path: Path | None = None,
    seconds: float = 120,
) -> "subprocess.CompletedProcess[str]":
    """`python -m MODULE ARGUMENTS` in a folder, with this environment, forked as `Forked` is.

    For tests that need a process of its own but not an interpreter that has just started; what Python
    and optbench do at their start has `tests/test_startup.py`.

    Args:
        folder: Where it is called.
        arguments: Words of the command line.
        module: What is run as `__main__`.
        path: A folder that `PYTHONPATH` names, before the others.
        seconds: Time limit, after which it is killed.
    """
    said = Path(tempfile.mkdtemp(prefix="said-"))
    try:
        process = fork_server(1).Process(
            target=_command, args=(folder, said, module, arguments, path, dict(os.environ))
        )
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, seconds)
        out, err = ((said / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess([module, *arguments], process.exitcode, out, err)
    finally:
        shutil.rmtree(said)


def _command(
    folder: Path,
    said: Path,
    module: str,
    arguments: Sequence[str],
    path: Path | None,
    environment: dict[str, str],
) -> None:
    """Be the command: what an interpreter takes from outside is set as at its start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # the fork server's number is that of whoever started it
    os.chdir(folder)
    sys.path[:0] = [str(folder), *([] if path is None else [str(path)])]
    sys.argv = [module, *arguments]
    importlib.invalidate_caches()
    if not hasattr(sys.modules.get(module), "__path__"):
        sys.modules.pop(module, None)  # runpy warns of a module that is there already
    runpy.run_module(module, run_name="__main__", alter_sys=True)


WITH_TORCH = """
import json, os, signal, sys, torch, torch._dynamo, traceback
assert not [name for name in sys.modules if name.partition(".")[0] == "optbench"]
for line in sys.stdin:
    program, out, err = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(120)
        for number, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        try:
            exec(program, {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)  # taking a warm interpreter apart would take half a second
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class TorchAlone:
    """`python -c PROGRAM` again and again, each time forked from a process that has imported torch.

    It has imported nothing of optbench. For tests of what an import does, or the order of imports.
    """

    def __init__(self, folder: Path) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", WITH_TORCH],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, program: str, said: Path) -> "subprocess.CompletedProcess[str]":
        """Run a program; what it prints goes through files in a folder."""
        out, err = said / "out", said / "err"
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps([program, str(out), str(err)]), file=self._server.stdin, flush=True)
        code = int(self._server.stdout.readline())
        return subprocess.CompletedProcess([program], code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End the process that has imported torch."""
        self._server.communicate(timeout=60)
