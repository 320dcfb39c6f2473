"""Events from series whose events are known."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench import metrics
from optbench.dynamics.events import find_events
from optbench.dynamics.run_events import report

NAN = math.nan


def test_a_run_that_never_reaches_the_edge_says_so() -> None:
    t = np.arange(100)
    found = find_events(t, np.exp(-t / 30), 5 + t / 20, 20.0)
    assert found.verdict == "edge not reached"
    assert found.first_crossing is None
    assert found.share_at_edge == 0.0
    assert math.isnan(found.plateau_ratio)
    assert found.rises == 0.0
    assert found.falling is True
    assert found.unstable_convergence is None
    assert found.spikes == 0


def test_progressive_sharpening_then_a_plateau() -> None:
    t = np.arange(0, 1000, 10)
    ratio = np.where(t < 400, 0.3 + 0.7 * t / 400, 1.02 + 0.04 * (-1.0) ** (t // 10))
    loss = np.exp(-t / 300) * np.where(t < 400, 1, 1 + 0.05 * (-1.0) ** (t // 10))
    found = find_events(t, loss, 50 * ratio, np.full(100, 50.0))
    assert found.verdict == "edge reached"
    assert (found.last_below, found.first_crossing) == (390, 400)
    assert found.plateau_ratio == pytest.approx(1.02)
    assert (found.plateau_low, found.plateau_high) == pytest.approx((0.98, 1.06))
    # at 1 − band = .95: from t = 372 on, so at 380, 390 and the 60 of the plateau
    assert found.share_at_edge == pytest.approx(0.62)
    assert found.unstable_convergence is True
    assert 0.0 < found.rises < found.rises_after_crossing


def _annealed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, sharpness and lr of a run that crosses at 400, stays at 1.02, and anneals from 600 to nothing."""
    t = np.arange(0, 1000, 10)
    lr = 0.04 * np.where(t < 600, 1.0, (1000 - t) / 400)
    return t, 50 * np.where(t < 400, 0.3 + 0.7 * t / 400, 1.02 + 0.04 * (-1.0) ** (t // 10)), lr


def test_what_an_annealed_lr_makes_of_the_ratio_is_no_plateau() -> None:
    t, measured, lr = _annealed()
    for rate in (None, lr):  # 1/threshold stands in for the rate
        found = find_events(t, np.ones(100), measured, 2 / lr, lr=rate)
        assert (found.first_crossing, found.annealed) == (400, True)
        # lr is half of that at the crossing at 800: so the later half of 400 to 800, the rate
        # falling from 1 to .5
        late = (t >= 600) & (t <= 800)
        assert found.plateau_ratio == pytest.approx(np.median((measured * lr / 2)[late]))
        assert found.share_at_edge == pytest.approx(np.mean((measured * lr / 2)[t <= 800] >= 0.95))
        assert found.max_ratio == pytest.approx(1.06) and found.max_ratio_at == 400
        assert found.final_ratio < 0.05


def test_a_plateau_needs_measurements_before_the_lr_is_annealed() -> None:
    lr = np.array([1.0, 1.0, 1.0, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01])
    found = find_events(np.arange(9), np.ones(9), np.full(9, 2.2), 2 / lr, lr=lr)
    assert found.first_crossing == 0 and math.isnan(found.plateau_ratio) and found.annealed
    assert found.share_at_edge == 1.0


def test_warmup_is_not_held_against_a_run_and_one_below_the_edge_anneals_too() -> None:
    lr = np.array([0.1, 0.5, *[1.0] * 10])
    found = find_events(np.arange(12), np.ones(12), np.full(12, 2.2), 2 / lr, lr=lr)
    assert (found.first_crossing, found.annealed) == (2, False)
    assert found.plateau_ratio == pytest.approx(1.1)
    below = find_events(np.arange(12), np.ones(12), np.full(12, 1.0), 2 / lr[::-1], lr=lr[::-1])
    assert (below.verdict, below.annealed, below.max_ratio_at) == ("edge not reached", True, 0)


def test_a_threshold_on_the_gradient_may_move_while_the_lr_stands_still() -> None:
    threshold = np.array([10.0, 2.0, 3.0, 9.0, 2.0, 8.0, 2.0, 9.0, 3.0])
    measured = np.full(9, 4.0)
    found = find_events(np.arange(9), np.ones(9), measured, threshold, lr=np.full(9, 1e-3))
    assert not found.annealed
    assert found.share_at_edge == pytest.approx(5 / 9)
    # from half the way between the crossing at 1 and 8: of 4/8, 4/2, 4/9 and 4/3 the middle
    assert found.plateau_ratio == pytest.approx((4 / 8 + 4 / 3) / 2)


def test_measurements_count_by_the_steps_they_stand_for() -> None:
    steps = [0, 1, 2, 3, 4, 100, 200]
    found = find_events(steps, np.ones(7), [9, 9, 9, 9, 11, 11, 11], 10.0)
    # 4 of 4 + 96 + 100 + 100 steps lie below
    assert found.share_at_edge == pytest.approx(296 / 300)
    assert found.first_crossing == 4


def test_gaps_and_missing_values_are_skipped() -> None:
    steps = np.arange(8)
    measured = [5, NAN, 9, NAN, NAN, 12, math.inf, 11]
    threshold = [10, 10, NAN, 10, 10, 10, 10, -1]
    found = find_events(steps, [3, 2, NAN, 2, 2, 1, NAN, 1], measured, threshold)
    assert found.measurements == 2
    assert (found.last_below, found.first_crossing) == (0, 5)
    assert found.finite


def test_nothing_measured_and_very_short_series() -> None:
    assert find_events([], [], [], 1.0).verdict == "not measured"
    assert find_events([0, 1], [1, 1], [NAN, NAN], 1.0).verdict == "not measured"
    assert find_events([0, 1], [1, 1], [1, 1], NAN).verdict == "not measured"
    one = find_events([7], [1.0], [2.0], 1.0)
    assert (one.verdict, one.first_crossing, one.last_below) == ("edge reached", 7, None)
    assert one.started_above
    assert one.share_at_edge == 1.0
    assert math.isnan(one.plateau_ratio)
    assert math.isnan(one.rises)
    assert one.falling is None


def test_a_catapult_is_a_spike_with_a_drop_of_sharpness() -> None:
    t = np.arange(100)
    loss = np.where((t >= 50) & (t < 60), 3.0, 1.0) - t / 1000
    loss[54] = 8.0
    dropped = np.where(t < 55, 24.0, 12.0)
    found = find_events(t, loss, dropped, 20.0)
    (catapult,) = found.catapults
    assert (catapult.start, catapult.peak, catapult.end) == (50, 54, 60)
    assert catapult.sharpness_ratio == pytest.approx(0.5)
    assert catapult.loss_ratio == pytest.approx(8.0 / (1 - 49 / 1000))
    still = find_events(t, loss, np.full(100, 24.0), 20.0)
    assert (still.spikes, still.catapults) == (1, [])
    unmeasured = find_events(t, loss, np.where(t < 40, 24.0, NAN), 20.0)
    assert (unmeasured.spikes, unmeasured.catapults) == (1, [])


def test_divergence_is_a_spike_without_an_end() -> None:
    loss = np.append(np.ones(20), np.exp(np.arange(20)))
    found = find_events(np.arange(40), loss, np.full(40, 3.0), 2.0)
    assert found.spikes == 1
    assert found.catapults == []
    assert found.falling is False
    assert found.unstable_convergence is False
    assert not find_events(np.arange(3), [1, math.inf, NAN], np.ones(3), 2.0).finite
    assert not find_events(np.arange(3), [1, 1, NAN], np.ones(3), 2.0).finite


def test_errors_name_the_way_out() -> None:
    with pytest.raises(ValueError, match="sort the records"):
        find_events([0, 0], [1, 1], [1, 1], 1.0)
    with pytest.raises(ValueError, match="differ in shape"):
        find_events([0, 1], [1], [1, 1], 1.0)


@given(
    st.lists(
        st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 3), min_size=0, max_size=30
    )
)
def test_any_series_gives_a_json_summary(rows: list[tuple[float, float, float]]) -> None:
    loss, measured, threshold = np.array(rows, dtype=float).reshape(-1, 3).T
    found = find_events(np.arange(len(rows)), loss, measured, threshold)
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == found.verdict
    assert found.verdict == "not measured" or 0 <= found.share_at_edge <= 1


def test_events_need_no_torch() -> None:
    code = "import sys, optbench.dynamics.events; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(
    ("others", "error", "verdict"),
    [
        ([NAN, 0.1, 0.2, NAN], 0.05, "edge reached on the examples measured"),
        ([NAN, 0.1, 0.8, NAN], 0.05, "edge reached on the examples measured"),
        ([NAN, 0.1, 0.8, NAN], 0.10, "edge reached"),  # 1 is within two standard errors
        ([NAN, 0.1, 1.2, NAN], 0.05, "edge reached"),
        ([0.1, NAN, NAN, 0.1], 0.05, "edge reached"),  # of neither crossing anything is known
        ([NAN, NAN, NAN, NAN], NAN, "edge reached"),
    ],
)
def test_what_few_examples_reached_and_others_did_not_is_undecided(
    others: list[float], error: float, verdict: str
) -> None:
    t, r = np.arange(4), np.array([0.5, 1.5, 1.2, 0.9])
    found = find_events(t, -t, 20 * r, 20.0, on_others=(others, error))
    assert (found.verdict, found.first_crossing, found.max_ratio) == (verdict, 1, 1.5)
    assert found.max_ratio_on_others == pytest.approx(others[1], nan_ok=True)
    assert find_events(t, -t, 16 * r / 1.5, 20.0, on_others=(others, error)).verdict == (
        "edge not reached"
    )


@pytest.mark.parametrize(("named", "unit"), [("sharpness/held_out", 20.0), ("edge/held_out", 1.0)])
def test_what_others_say_is_taken_in_the_unit_of_the_threshold(named: str, unit: float) -> None:
    on = "sharpness/lambda_max" if unit == 20 else "edge/preconditioned_sharpness"
    records = [
        {"step": step, "batch/loss": 1.0, "edge/threshold": 20.0, on: 20 * r}
        | ({named: 0.4 * unit, f"{named}_error": 0.1 * unit} if r > 1 else {})
        for step, r in enumerate([0.5, 1.5, 0.8])
    ]
    events = report(records)
    assert (events["of"], events["verdict"]) == (on, "edge reached on the examples measured")
    assert events["max_ratio_on_others"] == pytest.approx(0.4)
    assert events["max_ratio_on_others_error"] == pytest.approx(0.1)


def test_a_plateau_of_few_examples_is_told_with_what_others_have() -> None:
    t, r = np.arange(20), np.full(20, 1.2)
    others = np.where(t % 4 == 0, 0.05 * t, NAN)
    found = find_events(t, -t, 20 * r, 20.0, on_others=(others, np.full(20, 0.1)))
    assert found.plateau_ratio == pytest.approx(1.2)
    # of the later half, from step 9.5 on: those of steps 12 and 16
    assert found.plateau_on_others == pytest.approx((0.6 + 0.8) / 2)
    assert math.isnan(find_events(t, -t, 20 * r, 20.0).plateau_on_others)


def test_the_distance_on_others_is_that_of_what_the_threshold_is_on() -> None:
    few = {"sharpness/lambda_max": 30.0, "sharpness/held_out": 10.0, "edge/threshold": 20.0}
    few["sharpness/held_out_error"] = 2.0
    assert metrics.distance_on_others(few) == (0.5, 0.1)
    adam = few | {"edge/preconditioned_sharpness": 30.0}  # λ₁ of H beside it, by chance
    assert all(map(math.isnan, metrics.distance_on_others(adam)))
    adam |= {"edge/held_out": 0.3, "edge/held_out_error": 0.04}
    assert metrics.distance_on_others(adam) == (0.3, 0.04)
    for unknown in ({}, few | {"edge/threshold": 0.0}, few | {"edge/threshold": math.nan}):
        assert all(map(math.isnan, metrics.distance_on_others(unknown)))
