"""How the processes of a run end: no thread of a group outlives it, whoever else holds the group."""

import importlib
import os
import signal
import sys
from pathlib import Path

import pytest

from optbench.errors import MachineError
from optbench.ranks import Ranks
from optbench.ranks.distributed import joined
from tests.ranks.processes import Group

# It makes the group of the moment in which it is imported a default argument: seen by
# `torch._dynamo` in the middle of a run.
KEEPS = "torch.distributed.nn.functional"


def _threads() -> set[str]:
    tasks = Path("/proc/self/task").iterdir()
    return {(task / "comm").read_text().strip() for task in tasks}


def _end(rank: int, folder: str, how: str) -> None:
    sys.modules.pop(KEEPS, None)
    try:
        with joined("cpu") as ranks:
            assert any("gloo" in name for name in _threads())
            _leave(ranks, how)
    except (ValueError, MachineError) as why:
        sys.stdout.write(f"{type(why).__name__} ")
    left = {name for name in _threads() if "gloo" in name}
    sys.stdout.write(f"left {sorted(left)}")
    sys.stdout.flush()


def _leave(ranks: Ranks, how: str) -> None:
    importlib.import_module(KEEPS)
    ranks.sums(1.0)
    if how == "error":
        raise ValueError
    if how == "death" and ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "death":
        ranks.sums(1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are read from /proc")
@pytest.mark.parametrize(
    ("how", "said", "codes"),
    [
        ("well", "left []", [0, 0]),
        ("error", "ValueError left []", [0, 0]),
        ("death", "MachineError left []", [0, -signal.SIGKILL]),
    ],
)
def test_no_thread_of_a_group_outlives_it(
    how: str, said: str, codes: list[int], tmp_path: Path
) -> None:
    group = Group(2, tmp_path, _end, how)
    assert group.codes() == codes, group.err(0)
    assert group.out(0) == said
