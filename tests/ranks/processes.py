"""Several processes that share a run, forked in an instant, as torchrun would start them."""

import os
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from optbench.processes import fork_server


def _in_a_process(
    rank: int, size: int, port: int, work: Callable[..., None], folder: str, *arguments: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HYDRA_FULL_ERROR": "0",
    }
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(Path(folder) / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
    torch.set_num_threads(1)  # the fork server's number is that of whoever started it
    work(rank, folder, *arguments)


class Group:
    """`size` processes that do the same work, each with its number; `out-0`, `err-0` … in a folder."""

    def __init__(
        self, size: int, folder: Path, work: Callable[..., None], *arguments: object
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = fork_server(1)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.processes = [
            context.Process(
                target=_in_a_process, args=(rank, size, port, work, str(folder), *arguments)
            )
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def codes(self, seconds: float = 60.0) -> list[int | None]:
        """Exit codes; None of one that has not ended in time, and is killed."""
        for process in self.processes:
            process.join(seconds)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def err(self, rank: int) -> str:
        return (self.folder / f"err-{rank}").read_text()

    def out(self, rank: int) -> str:
        return (self.folder / f"out-{rank}").read_text()


def _answer(rank: int, folder: str, work: Callable[..., object], *arguments: object) -> None:
    from optbench.ranks.distributed import joined

    with joined("cpu") as ranks:
        answer = work(ranks, *arguments)
        (Path(folder) / f"answer-{rank}").write_bytes(pickle.dumps(answer))


def answers(size: int, folder: Path, work: Callable[..., Any], *arguments: object) -> list[Any]:
    """What `work(ranks, *arguments)` returns in each of the processes."""
    group = Group(size, folder, _answer, work, *arguments)
    codes = group.codes()
    assert codes == [0] * size, [group.err(rank) for rank in range(size)]
    return [pickle.loads((folder / f"answer-{rank}").read_bytes()) for rank in range(size)]


def _main_job(rank: int, folder: str, arguments: tuple[str, ...]) -> None:
    from optbench.cli.command_job import main

    sys.argv = ["optbench", *arguments, "wandb.mode=disabled", "picture=false"]
    main()


def main_job(size: int, folder: Path, *arguments: str) -> Group:
    """`torchrun --nproc-per-node SIZE -m optbench ARGUMENTS`, without torchrun."""
    return Group(size, folder, _main_job, arguments)
