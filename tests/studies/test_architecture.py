"""The study of architecture: its slopes, its rules, and what they must not be fooled by."""

import numpy as np
import pytest

from optbench.studies.architecture import RATE, difference, exponent, usable
from optbench.studies.declaration import read_study
from optbench.studies.frame import columns


def _row(
    task: str, arm: str, level: float, seed: int, sharpness: float, **more: float
) -> dict[str, object]:
    row = {"task": task, "arm": arm, "level": level, "seed": seed, "sharpness": sharpness}
    return row | {"reached": 1.0, "start_distance": 0.1, RATE: 0.0} | more


def test_the_exponent_is_that_of_a_power_law_on_every_task_whatever_its_level() -> None:
    rows = columns(
        [
            _row(task, "width", width, seed, factor * width**power)
            for task, factor, power in (("a", 1.0, 0.5), ("b", 100.0, 0.1))
            for width in (32, 64, 256)
            for seed in (1, 2)
        ]
    )
    assert exponent(rows, "sharpness") == pytest.approx(0.3, rel=1e-12)  # rounding


def test_a_difference_is_within_tasks() -> None:
    rows = columns(
        [_row("a", "norm", level, 1, 10 + level) for level in (0, 1, 2)]
        + [_row("b", "norm", level, 1, 100 + 3 * level) for level in (0, 1)]
    )
    assert difference(rows, rows["sharpness"], 1) == 2  # of 1 and 3
    assert np.isnan(difference(rows, rows["sharpness"], 2))  # b has none


def test_runs_that_start_beyond_the_edge_or_never_come_to_the_loss_are_left_out_and_said() -> None:
    table = columns(
        [
            _row("a", "width", 32, 1, 5.0),
            _row("a", "width", 64, 1, 5.0, start_distance=1.2),
            {"task": "a", "arm": "width", "level": 128, "seed": 1, "reached": 0.0},
        ]
    )
    rows, why = usable(table)
    assert rows["level"].tolist() == [32]
    assert why == "Of 3 runs 1 did not come to the loss, 1 began beyond their edge."


@pytest.mark.parametrize(
    ("world", "name", "right"),
    [
        ("raw_mup", "width_mup", ("refuted", "undecided")),
        ("catapult", "width_standard", ("supported",)),
        ("nothing", "label_noise", ("refuted", "undecided")),
    ],
)
def test_planted_confounders_do_not_fool_the_rules(
    world: str, name: str, right: tuple[str, ...]
) -> None:
    study = read_study("architecture").study
    found = {f.hypothesis: f for f in study.judge(study.planted(world, 3))}
    assert found[name].verdict in right


def test_raw_sharpness_under_mup_would_have_been_fooled() -> None:
    study = read_study("architecture").study
    table = study.planted("raw_mup", 0)
    table = dict(table) | {"lr_preconditioned_sharpness": table["sharpness"]}
    found = {f.hypothesis: f for f in study.judge(table)}
    assert found["width_mup"].verdict == "supported"


def test_a_cell_of_two_comparisons_is_one_command() -> None:
    cells = read_study("architecture").study.plan("small")
    both = [c for c in cells if c.factors["task"] == "digits" and c.factors["seed"] == 2]
    same = [
        c.command
        for c in both
        if (c.factors["arm"], c.factors["level"]) in (("width", 64), ("depth", 2), ("inputs", 0))
    ]
    assert len(same) == 3 and len(set(same)) == 1
