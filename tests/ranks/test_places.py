"""Which process this is, and which GPU is its own."""

import os

import pytest

from optbench.errors import UserError
from optbench.processes import Place, place
from optbench.ranks import ALONE
from optbench.ranks.distributed import _take_own_gpu, joined


def test_without_torchrun_it_is_the_only_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "3")  # some schedulers say this to every process
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place() == Place()
    with joined("cpu") as ranks:
        assert ranks is ALONE
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert place() == Place(rank=3, size=4, local_rank=1)
    monkeypatch.delenv("LOCAL_RANK")  # as where each machine has one process
    assert place() == Place(rank=3, size=4, local_rank=0)


@pytest.mark.parametrize(
    ("rank", "size"), [("x", "2"), ("5", "2"), ("2", "2"), ("-1", "2"), ("", "2")]
)
def test_a_place_that_is_none_is_refused(
    rank: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK=0"):
        place()


@pytest.mark.parametrize(
    ("visible", "local_rank", "own"),
    [(None, 1, "1"), ("2,5", 1, "5"), ("2", 1, ""), ("GPU-a,GPU-b", 0, "GPU-a")],
)
def test_each_process_sees_the_gpu_of_its_number(
    visible: str | None, local_rank: int, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    _take_own_gpu("cuda", Place(local_rank, 2, local_rank))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_one_device_for_several_processes_is_refused() -> None:
    with pytest.raises(UserError, match="device=cuda:1 is one device, and there are 2 processes"):
        _take_own_gpu("cuda:1", Place(0, 2, 0))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_are_disjoint_and_of_nearly_the_same_size(size: int) -> None:
    class Some(type(ALONE)):  # type: ignore[misc]
        def __init__(self, rank: int) -> None:
            self.rank, self.size = rank, size

    for count in (7, 101):
        parts = [list(range(count))[Some(rank).shard(count)] for rank in range(size)]
        assert [i for part in parts for i in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
