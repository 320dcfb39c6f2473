"""Multiplier beside formula: what is read of a run, and which of the two it is said to obey."""

import json
import math
from pathlib import Path

import pytest

from optbench.check.subject import entries
from optbench.studies.atlas_multipliers import (
    PAGE,
    Reading,
    Row,
    markdown,
    read_plan,
    read_run,
    write,
)

NAN = math.nan
DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/edge_multipliers.md").read_text()


def _reading(
    formula: float, multiplier: float, status: str = "done", amplitude: float = NAN
) -> Reading:
    return Reading(formula, 0.0, multiplier, 1.0, 1.0, amplitude, 1.0, 0.01, status, 10)


@pytest.mark.parametrize(
    ("formula", "multiplier", "status", "expected"),
    [
        (1.01, 0.99, "done", "both"),
        (1.11, 1.02, "done", "multiplier"),
        (1.01, 1.30, "done", "formula"),
        (1.40, 1.30, "done", "neither"),
        (0.80, 1.30, "done", "neither"),
        (0.80, 0.82, "done", "inside"),
        (NAN, 1.02, "done", "multiplier"),
        (NAN, 0.30, "done", "inside"),
        (1.00, NAN, "done", "no derivative"),
        (1.00, 1.00, "diverged", "diverged"),
    ],
)
def test_what_a_run_obeys(formula: float, multiplier: float, status: str, expected: str) -> None:
    assert Row("x", [_reading(formula, multiplier, status)]).obeyed(0.05) == expected


def test_steps_of_fixed_size_obey_an_amplitude_or_nothing_known() -> None:
    assert Row("x", [_reading(1.4, 0.0, amplitude=0.98)]).obeyed(0.05) == "amplitude"
    assert Row("x", [_reading(1.0, 1.0, amplitude=1.30)]).obeyed(0.05) == "open"


def test_medians_are_over_the_seeds_that_have_a_number() -> None:
    row = Row("x", [_reading(1.0, 0.9), _reading(NAN, 1.0), _reading(1.2, 1.2)])
    assert row.median("formula") == pytest.approx(1.1)
    assert row.median("multiplier") == 1.0


def test_a_run_is_read_in_its_second_half(tmp_path: Path) -> None:
    early = {"edge/multiplier_distance": 9.0, "edge/multiplier": -9.0, "edge/threshold": 1.0}
    rows = [{"step": s, **early, "sharpness/lambda_max": 9.0} for s in range(10)]
    late = {
        "edge/threshold": 2.0,
        "edge/multiplier_distance": 0.98,
        "edge/multiplier_growth": 1.01,
        "edge/multiplier": -0.97,
        "edge/multiplier_angle": 1.0,
        "edge/alternation": 2.0,
        "edge/alternation_predicted": 1.92,
        "update/slope": -2.0,
        "update/predicted_change": -0.5,
        "train/loss": 0.25,
    }
    # λ₁ swings beyond both sides of the threshold
    rows += [{"step": s, **late, "sharpness/lambda_max": [1.2, 3.0][s % 2]} for s in range(10, 21)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "summary.json").write_text('{"status": "done"}')
    found = read_run(tmp_path)
    assert found.multiplier == 0.98 and found.growth == 1.01 and found.measured == 11
    assert found.balance == pytest.approx(0.75) and found.loss == 0.25
    assert found.formula == pytest.approx((6 * 1.2 + 5 * 3.0) / 22)
    write([Row("x", [found])], tmp_path, 0.05)
    assert (
        "| x | 1.009 | 0.094 | 0.980 | 1.010 | 1.000 | 0.960 | 0.750 | 0.250 | amplitude |"
        in (tmp_path / PAGE).read_text()
    )


def test_the_page_has_every_row_under_the_columns_that_are_written() -> None:
    """Its numbers are of runs that are not here."""
    lines = [line for line in DOCUMENT.splitlines() if line.startswith("|")]
    assert lines[0] + "\n" == next(markdown([], 0.05))
    named = [line.split("|")[1].strip() for line in lines[2:]]
    assert named == [name for name, _ in read_plan().runs()]


def test_every_optimizer_has_a_row() -> None:
    """But L-BFGS, whose step is not smooth and costs twenty gradients."""
    plan = read_plan()
    used = {own[0] for _, own in plan.runs()}
    custom = {o for _, own in plan.runs() for o in own if "_target_=pytorch" in o}
    names = {f"optimizer={name}" for name in entries("optimizer")}
    atlas_alone = {"optimizer=shampoo", "optimizer=soap", "optimizer=lbfgs"}
    assert names - used == atlas_alone and len(custom) == 2
    assert len({tuple(plan.command(own, 1)) for _, own in plan.runs()}) == len(list(plan.runs()))
