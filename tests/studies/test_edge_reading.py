"""What is read of a run at its edge, and which of formula and multiplier it is said to obey."""

import json
import math
from pathlib import Path

import pytest

from optbench.studies.edge_reading import Series, obeyed, read_run, read_series

NAN = math.nan


@pytest.mark.parametrize(
    ("formula", "multiplier", "amplitude", "diverged", "expected"),
    [
        (1.01, 0.99, NAN, False, "both"),
        (1.11, 1.02, NAN, False, "multiplier"),
        (1.01, 1.30, NAN, False, "formula"),
        (1.40, 1.30, NAN, False, "neither"),
        (0.80, 1.30, NAN, False, "neither"),
        (0.80, 0.82, NAN, False, "inside"),
        (NAN, 1.02, NAN, False, "multiplier"),
        (NAN, 0.30, NAN, False, "inside"),
        (1.00, NAN, NAN, False, "no derivative"),
        (1.00, 1.00, NAN, True, "diverged"),
        (1.40, 0.00, 0.98, False, "amplitude"),
        (1.00, 1.40, 1.30, False, "formula"),
        (1.40, 1.00, 1.30, False, "open"),
        (NAN, 1.00, 1.30, False, "open"),
    ],
)
def test_what_a_run_obeys(
    formula: float, multiplier: float, amplitude: float, diverged: bool, expected: str
) -> None:
    assert obeyed(formula, multiplier, amplitude, diverged, 0.05) == expected


def test_a_level_is_the_median_unless_the_ratios_swing_beyond_both_sides() -> None:
    still = Series("x", [0, 10, 20, 30, 40], [9.0, 8.0, 1.0, 4.0, 0.9], [1.0, 1.0, 1.0, 2.0, 1.0])
    assert still.between(0.5, 1).level == 1.0 and not still.between(0.5, 1).swings
    assert still.between(0.25, 0.5).level == 4.5  # 8 and 1
    swinging = Series("x", range(20), [0.3, 1.9] * 10, [1.0] * 20)
    assert swinging.swings and swinging.level == pytest.approx(1.1)
    assert math.isnan(Series("x", [], [], []).level)
    assert math.isnan(Series("x", [], [], []).between(0.5, 1).mean)


def test_a_threshold_below_zero_counts_as_above_and_in_the_mean() -> None:
    """A step uphill: leaving it out would say that the mean threshold is higher than it is."""
    series = Series("x", range(4), [1.0, 1.0, 1.0, 1.0], [2.0, 2.0, -1.0, 1.0])
    assert series.ratios == [0.5, 0.5, math.inf, 1.0]
    assert series.swings and series.level == pytest.approx(1.0)
    assert Series("x", [0], [1.0], [-1.0]).mean == math.inf


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
    assert found.amplitude == pytest.approx(0.96) and found.status == "done"
    assert found.formula == pytest.approx((6 * 1.2 + 5 * 3.0) / 22)
    of_metric = read_series(tmp_path, "train/loss", 0.5)
    assert of_metric.ratios == [0.5] * 11 and read_run(tmp_path, of_metric).formula == 0.5
