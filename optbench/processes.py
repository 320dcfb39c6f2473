"""Processes that train: a fork server that has imported torch, and how they end."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

from optbench.errors import UserError

PRELOADED = ["optbench.cli.preloaded"]
GRACE = 30.0  # seconds to write a checkpoint in, for a run that is asked to stop


@dataclass(frozen=True)
class Place:
    """Which of the processes that make one run this is.

    Attributes:
        rank: Its number, from 0.
        size: Number of processes.
        local_rank: Its number among those on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def place() -> Place:
    """Return which process this is of those that torchrun has started together; else the only one.

    torchrun, like other launchers of torch, says so in the environment. Those that start one
    process a machine leave LOCAL_RANK out: it is 0.

    Raises:
        UserError: If what it says is no place.
    """
    said = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
    said.append(os.environ.get("LOCAL_RANK", "0"))
    if None in said or "MASTER_ADDR" not in os.environ:
        return Place()
    numbers = [int(number) for number in said if number and number.isdecimal()]
    if len(numbers) < len(said) or not 0 <= numbers[0] < numbers[1]:
        raise UserError(
            "RANK={}, WORLD_SIZE={}, LOCAL_RANK={} in the environment say no process of a run: "
            "torchrun sets them; unset RANK for a run of one process".format(*said)
        )
    rank, size, local_rank = numbers
    return Place(rank, size, local_rank)


TORCHRUN = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME"),
}
"""What torchrun says in the environment, beside names that begin with TORCHELASTIC_."""


def environment_alone() -> dict[str, str]:
    """Return the environment of a process that is none of those that torchrun has started."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in TORCHRUN and not name.startswith("TORCHELASTIC_")
    }


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fork_server(threads: int) -> Any:
    """Return the way to start processes: a fork server.

    It is told the number of threads before it imports torch.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if sys.platform == "win32":
        return get_context("spawn")
    from multiprocessing import forkserver

    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with _without_ctrl_c():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Context in which a process that is started does not run the script again that starts it.

    By default it imports that as a module, which asks for `if __name__ == "__main__"` there. What
    trains is found by import paths, and has no need of it.
    """
    main = sys.modules["__main__"]
    hidden = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C for a moment: what is started then will ignore it too, and leave it to us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def stop_with_the_launcher() -> None:
    """Ask this process to stop once the one that launched it is gone, however it went."""
    launcher = parent_process()
    assert launcher is not None
    connection.wait([launcher.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)  # a run that hangs would never end


def kill_unseen(process: BaseProcess) -> None:
    """Kill a process whose fork server has died.

    It lives, and would keep its claim, but nobody would see it end.
    """
    if process.pid is not None and sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def end_processes(processes: Sequence[BaseProcess]) -> None:
    """Ask processes to stop, and kill those that do not in time."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
