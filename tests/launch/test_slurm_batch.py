"""Batches of jobs: which ones a driver joins, and which driver is the last that leaves."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from optbench.launch.launcher import Order
from optbench.launch.node import Errand, new_errand
from optbench.launch.slurm_batch import Batch, Record, kind_of, new_batch, recorded_batches

TOKEN = ".launch-0123456789abcdef"
TOLD = Errand("results", TOKEN, None, ("device=cpu",), threads=1, seconds=60.0, cwd="here")
RESOURCES = {"mem_gb": 4, "timeout_min": 60}


@pytest.mark.parametrize(
    "change",
    [
        {"results": "elsewhere"},
        {"claims": "elsewhere"},
        {"where": ("device=cuda",)},
        {"threads": 2},
        {"seconds": 120.0},
    ],
)
def test_jobs_that_are_told_something_else_are_of_another_kind(change: dict[str, object]) -> None:
    assert kind_of(replace(TOLD, **change), RESOURCES) != kind_of(TOLD, RESOURCES)  # type: ignore[arg-type]


def test_jobs_that_ask_for_something_else_are_of_another_kind() -> None:
    assert kind_of(TOLD, RESOURCES | {"mem_gb": 8}) != kind_of(TOLD, RESOURCES)


def test_the_same_command_given_later_is_of_the_same_kind() -> None:
    later = replace(
        TOLD, token=".launch-f", where=("wandb.group=sweep-20260101-000000", "device=cpu")
    )
    assert kind_of(later, RESOURCES) == kind_of(TOLD, RESOURCES)


def test_two_errands_of_one_order_are_of_the_same_kind(tmp_path: Path) -> None:
    first, second = (new_errand(Order(tmp_path), 1, None) for _ in range(2))
    assert first.token != second.token and kind_of(first, {}) == kind_of(second, {})


def test_batches_of_a_kind_are_found_and_damaged_ones_passed_over(tmp_path: Path) -> None:
    batch = new_batch(tmp_path, "mine", TOKEN)
    batch.record({"7_0": ["a", "b"], "7_1": ["c"]})
    new_batch(tmp_path, "other", TOKEN).record({"8": ["a"]})
    new_batch(tmp_path, "mine", "../no-token").record({"9": ["a"]})
    new_batch(tmp_path, "mine", TOKEN)  # its jobs are being submitted
    record = Record(TOKEN, {"7_0": ["a", "b"], "7_1": ["c"]})
    assert list(recorded_batches(tmp_path, "mine")) == [(batch.folder, record)]


def test_a_job_that_is_forgotten_is_found_no_more(tmp_path: Path) -> None:
    batch = new_batch(tmp_path, "mine", TOKEN)
    batch.record({"7_0": ["a"], "7_1": ["b"]})
    batch.forget({"7_1"})
    [(_, record)] = recorded_batches(tmp_path, "mine")
    assert record.jobs == {"7_0": ["a"]}


def test_a_job_is_open_until_all_its_runs_are_reported(tmp_path: Path) -> None:
    batch = new_batch(tmp_path, "mine", TOKEN)
    batch.record({"7_0": ["a", "b"], "7_1": ["c"]})
    for name in ("a", "c"):
        (batch.folder / f"{name}.report").touch()
    assert batch.unreported == ["7_0"]


def test_only_the_last_driver_that_leaves_is_the_last(tmp_path: Path) -> None:
    first = new_batch(tmp_path, "mine", TOKEN)
    second = Batch(first.folder, Record(TOKEN, {}))
    assert not first.leave()
    assert second.leave()


def test_a_driver_that_was_killed_waits_no_more(tmp_path: Path) -> None:
    batch = new_batch(tmp_path, "mine", TOKEN)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        other = Batch(batch.folder, Record(TOKEN, {}))
        os.write(tell, b"joined")
        signal.pause()
        os._exit(int(other.leave()))
    os.read(told, 6)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(batch.folder.glob("*.waits"))) == 2 and batch.leave()
