"""Quantities at one training loss."""

import math

import pytest

from optbench.lab.matching import all_at_loss, at_loss


def test_a_quantity_that_is_linear_in_log_loss_is_met_exactly() -> None:
    points = [(loss, 3 - 2 * math.log(loss)) for loss in (1.0, 0.3, 0.15, 0.06)]
    matched = at_loss(points, 0.1)
    # rounding of a handful of operations
    assert matched.value == pytest.approx(3 - 2 * math.log(0.1), rel=1e-12)
    assert matched.error == pytest.approx(0, abs=1e-12)


def test_the_error_is_that_of_a_quadratic() -> None:
    """Of m = log² L the linear interpolation is off by (log L − log a)(log L − log b), exactly."""
    points = [(loss, math.log(loss) ** 2) for loss in (0.4, 0.2, 0.05)]
    matched, true = at_loss(points, 0.1), math.log(0.1) ** 2
    bend = math.log(0.1 / 0.2) * math.log(0.1 / 0.05)
    assert matched.value - true == pytest.approx(-bend, rel=1e-12)
    assert matched.error == pytest.approx(abs(matched.value - true), rel=1e-9)


def test_the_first_pair_around_the_loss_counts() -> None:
    """A small batch lets the loss rise again: what was reached first is compared."""
    points = [(1.0, 1.0), (0.1, 2.0), (0.5, 7.0), (0.01, 9.0)]
    assert at_loss(points, 0.1).value == pytest.approx(2.0)


@pytest.mark.parametrize(
    "points",
    [[], [(1.0, 2.0), (0.5, 3.0)], [(0.05, 2.0), (0.02, 3.0)], [(1.0, math.nan), (0.05, 1.0)]],
    ids=["none", "never below", "never above", "not finite above"],
)
def test_what_the_checkpoints_do_not_reach_is_unknown(points: list[tuple[float, float]]) -> None:
    assert math.isnan(at_loss(points, 0.1).value)


def test_two_points_have_no_error_to_state() -> None:
    matched = at_loss([(1.0, 1.0), (0.01, 3.0)], 0.1)
    assert matched.value == pytest.approx(2.0) and math.isnan(matched.error)


def test_a_measure_that_one_checkpoint_lacks_is_interpolated_between_the_others() -> None:
    checkpoints = [(1.0, {"a": 1.0, "b": 1.0}), (0.1, {"a": 2.0}), (0.01, {"a": 3.0, "b": 3.0})]
    matched = all_at_loss(checkpoints, 0.1)
    assert matched["a"].value == pytest.approx(2.0) and matched["b"].value == pytest.approx(2.0)
