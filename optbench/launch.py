"""Many runs of the main job share one machine: each in a process of its own, so that a crash costs one run.

The processes are forked from a server that has imported everything once; a run starts in a fraction of a second.
"""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = ["optbench.cli", "torch._dynamo", "torch.nn.functional"]  # what every run imports before its first step


@dataclass(frozen=True)
class Finished:
    """How a run of the main job ended.

    Attributes:
        overrides: It was given these.
        folder: Its run folder; None if it failed.
        why: What it said last, if it failed.
    """

    overrides: tuple[str, ...]
    folder: Path | None
    why: str = ""


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(commands: Iterable[Sequence[str]], jobs: int, threads: int | None = None) -> Generator[Finished, None, None]:
    """Run the main job once for each list of overrides, `jobs` at a time, and yield each as it ends.

    Every run has as many threads, by default cores/jobs, one at least; rounding depends on them. Left early, or on
    Ctrl-C, the runs at work are asked to stop: each writes its checkpoint, and goes on from it when it is given again.
    """
    waiting = [tuple(command) for command in commands]
    threads = threads or max(1, cores() // jobs)
    context = _context(threads)
    running: dict[int, tuple[BaseProcess, tuple[str, ...], Path]] = {}
    with tempfile.TemporaryDirectory(prefix="optbench-") as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    overrides = waiting.pop(0)
                    said = Path(tempfile.mkdtemp(dir=scratch))
                    process = context.Process(target=_main_job, args=(overrides, said, threads), daemon=False)
                    process.start()
                    running[process.sentinel] = (process, overrides, said)
                for sentinel in connection.wait(list(running)):
                    assert isinstance(sentinel, int)
                    yield _outcome(*running.pop(sentinel))
        finally:
            for process, _, _ in running.values():
                process.terminate()
            for process, _, _ in running.values():
                process.join()


def _context(threads: int) -> Any:
    """Return the way to start processes: a fork server that knows the number of threads before it imports torch."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if sys.platform == "win32":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _main_job(overrides: Sequence[str], said: Path, threads: int) -> None:
    """Be the main job, with what it says in files."""
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    threading.Thread(target=_stop_with_the_launcher, daemon=True).start()
    import torch

    from optbench.cli import main

    torch.set_num_threads(threads)
    sys.argv = ["optbench", *overrides]
    main()


def _stop_with_the_launcher() -> None:
    """Ask this process to stop once the one that launched it is gone, however it went."""
    launcher = parent_process()
    assert launcher is not None
    connection.wait([launcher.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _outcome(process: BaseProcess, overrides: tuple[str, ...], said: Path) -> Finished:
    process.join()
    out, err = (_lines(said / name) for name in ("out", "err"))
    if process.exitcode == 0 and out:
        return Finished(overrides, Path(out[-1]))
    code = process.exitcode or 0
    died = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Finished(overrides, None, f"{died}: {err[-1] if err else 'no word'}")


def _lines(file: Path) -> list[str]:
    return file.read_text(errors="replace").strip().splitlines() if file.exists() else []
