"""A few trials of each kind; `python -m tests.torture --minutes N` does as many as one has time for."""

import random
import sys
from itertools import islice
from pathlib import Path

import pytest

from optbench.record.folder import RunFolder
from tests.torture import cut, damaged, killed
from tests.torture.__main__ import reference
from tests.torture.power import lie_in_wait
from tests.torture.runs import Child, Outcome

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="forks, and reads /proc"
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torture")


@pytest.fixture(scope="module")
def truth(scratch: Path) -> Outcome:
    return reference(scratch)


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(scratch: Path, truth: Outcome) -> None:
    for name, fault in islice(killed.trials(scratch, truth, random.Random(0)), 1):
        assert not fault, name


def test_a_power_cut_costs_no_more_than_the_last_checkpoint(scratch: Path, truth: Outcome) -> None:
    for name, fault in cut.trials(scratch, truth, every=60):
        assert not fault, name


def test_the_emulated_disk_sees_series_that_do_not_reach_it(tmp_path: Path, truth: Outcome) -> None:
    def careless() -> None:
        RunFolder.sync = lambda self: None  # type: ignore[method-assign]
        lie_in_wait(tmp_path / "disk", tmp_path / "images", 70)

    Child(tmp_path / "disk/results", before=careless).wait()
    assert cut.trial(tmp_path / "images/1", truth)


@pytest.fixture(scope="module")
def prepared(scratch: Path, truth: Outcome) -> Path:
    damaged.prepare(scratch)
    return scratch


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ("half", "checkpoint with NaN weights"),
        ("half", "metrics a digit changed"),
        ("half", "both checkpoints that run code"),
        ("finished", "metrics.jsonl halved"),
    ],
)
def test_a_damaged_folder_ends_identical_or_is_told(
    prepared: Path, truth: Outcome, state: str, name: str
) -> None:
    assert not damaged.trial(prepared, state, name, truth)
