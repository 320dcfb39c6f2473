"""What an optimizer keeps of its gain without a part: the shares, the plants, and a tiny run."""

from pathlib import Path

import pytest

from optbench import lab
from optbench.studies.by_product import (
    LESS_FLATTENING,
    LESS_JACOBIAN,
    SHAM,
    ByProduct,
    paired,
    step_beside_its_parent,
)
from optbench.studies.declaration import read_study
from optbench.studies.frame import REFUTED, SUPPORTED, UNDECIDED, Table, columns

ERRORS = {
    "sgd": 20.0,
    "sam": 16.0,
    LESS_JACOBIAN: 19.0,
    SHAM: 16.4,
    "jacobian_reducer": 18.0,
    LESS_FLATTENING: 18.2,
}


def _study() -> ByProduct:
    study = read_study("by_product").study
    assert isinstance(study, ByProduct)
    return study


def _table(ratio: float = 1.0, gain: float = 1.0) -> Table:
    """Three seeds whose level differs by some points, and whose gains hardly do."""
    return columns(
        [
            {
                "task": "t",
                "optimizer": optimizer,
                "seed": float(seed),
                "reached": 1.0,
                "diverged": 0.0,
                "error": 20 + 5 * seed - gain * (20 - error) * (1 + 0.01 * seed),
                "input_jacobian_train": 2.0 if optimizer == LESS_JACOBIAN else 1.0 + 0.01 * seed,
                "sharpness": 1.0 + 0.01 * seed,
                "step_ratio": ratio if "without" in optimizer or optimizer == SHAM else None,
                "step_cosine": None,
            }
            for seed in (1, 2, 3)
            for optimizer, error in ERRORS.items()
        ]
    )


def test_shares_are_of_gains_paired_by_seed() -> None:
    found = {f.hypothesis: f for f in _study().judge(_table())}
    # SAM gains 4 and keeps 1 of it: 3/4 lost; the sham keeps 3.6, the reducer 1.8 of 2
    assert found["sam"].estimate.value == pytest.approx(0.75 - 0.5)
    assert found["sham"].estimate.value == pytest.approx(0.9 - 0.5)
    assert found["reducer"].estimate.value == pytest.approx(0.9 - 0.5)
    assert {found[name].n for name in ("sam", "sham", "reducer")} == {3}
    assert "sam gains +4.08" in found["sam"].why


def test_a_projection_that_changes_the_steps_size_decides_nothing() -> None:
    found = {f.hypothesis: f for f in _study().judge(_table(ratio=0.9))}
    assert {f.verdict for f in found.values()} == {UNDECIDED}
    assert "0.90 times as long as its parent's" in found["sam"].why


def test_where_sam_gains_nothing_the_task_says_nothing() -> None:
    found = {f.hypothesis: f for f in _study().judge(_table(gain=0.1))}
    assert found["sam"].verdict == UNDECIDED and found["sam"].n == 0
    assert "which says nothing" in found["sam"].why


def test_a_run_that_did_not_end_takes_its_pair_with_it() -> None:
    table = _table()
    table["error"][0] = float("nan")
    pairs = paired(table, ("sgd", "sam"), "error")
    assert pairs["seed"].tolist() == [2.0, 3.0]
    assert (pairs["sgd"] - pairs["sam"]).tolist() == pytest.approx([4 * 1.02, 4 * 1.03])


@pytest.mark.parametrize("world", list(ByProduct.worlds))
def test_planted_worlds_are_told_apart(world: str) -> None:
    study = _study()
    said = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, 55))}
    wrong = {SUPPORTED: REFUTED, REFUTED: SUPPORTED}
    for hypothesis, right in study.worlds[world].items():
        assert said[hypothesis] != wrong[right], (world, said)
    if world in ("jacobian", "flatness"):
        assert said["sam"] == study.worlds[world]["sam"]


@pytest.mark.parametrize("optimizer", [LESS_JACOBIAN, SHAM, LESS_FLATTENING, "sam"])
def test_steps_are_as_long_as_the_parents(tmp_path: Path, optimizer: str) -> None:
    study = _study()
    (cell,) = [
        c
        for c in study.plan("smoke")
        if (c.factors["optimizer"], c.factors["seed"]) == (optimizer, 101)
    ]
    words = [word for word in cell.command if not word.startswith("stop.")]
    run = lab.start(*words, "steps=20", "model.widths=[20]", results_dir=tmp_path).train()
    found = step_beside_its_parent(run)
    if optimizer == "sam":
        assert found == {}
    else:
        # float32, written with six digits
        assert found["step_ratio"] == pytest.approx(1, abs=1e-5)
        assert 0.5 < found["step_cosine"] <= 1.000001
