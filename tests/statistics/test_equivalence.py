"""Verdicts by hand, and statsmodels' equivalence test (0.15.0)."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from optbench import statistics as s

INF, NAN = math.inf, math.nan


def test_equivalence_is_statsmodels() -> None:
    """`ttost_paired(x, 0, -0.4, 0.4)`."""
    x = np.array([0.3, -0.1, 0.5, 0.2, 0.0, 0.4, -0.3, 0.1])
    found = s.equivalence_test(x.mean(), x.std(ddof=1) / math.sqrt(8), 0.4, 7)
    assert found.p_above == pytest.approx(0.00036939414881332434, rel=1e-10)
    assert found.p_below == found.p == pytest.approx(0.01361934112513157, rel=1e-10)


def test_equivalence_by_hand() -> None:
    found = s.equivalence_test(0.0, 1.0, 1.959963984540054)
    assert (found.p_above, found.p_below) == pytest.approx((0.025, 0.025))
    for wrong in ({"sesoi": 0.0}, {"error": 0.0}):
        with pytest.raises(ValueError, match="must be positive"):
            s.equivalence_test(**{"effect": 0.0, "error": 1.0, "sesoi": 1.0, **wrong})


@pytest.mark.parametrize("effect", [-1.4, -0.6, 0.0, 0.3, 0.9])
def test_equivalence_is_the_interval_inside(effect: float) -> None:
    """p < α just if the interval of level 1 − 2α lies inside ±SESOI."""
    half = float(stats.t.ppf(0.95, 12)) * 0.3
    inside = effect - half > -1 and effect + half < 1
    assert (s.equivalence_test(effect, 0.3, 1.0, 12).p < 0.05) == inside
    assert (s.verdict(s.Interval(effect, effect - half, effect + half), 1.0, 1) == "refuted") == (
        inside or effect + half < -1
    )


@pytest.mark.parametrize(
    ("low", "high", "positive", "negative"),
    [
        (1.1, 3.0, "supported", "refuted"),
        (-3.0, -1.1, "refuted", "supported"),
        (-0.9, 0.9, "refuted", "refuted"),
        (0.2, 0.9, "refuted", "refuted"),
        (0.5, 3.0, "undecided", "undecided"),
        (1.0, 3.0, "undecided", "undecided"),  # the SESOI itself is not beyond it
        (-1.0, 0.9, "undecided", "undecided"),
        (-3.0, 0.5, "undecided", "undecided"),
        (-3.0, 3.0, "undecided", "undecided"),
        (1.1, INF, "undecided", "undecided"),
        (-INF, -1.1, "undecided", "undecided"),
        (NAN, 0.5, "undecided", "undecided"),
        (NAN, NAN, "undecided", "undecided"),
    ],
)
def test_verdict_by_hand(low: float, high: float, positive: Any, negative: Any) -> None:
    interval = s.Interval((low + high) / 2, low, high)
    assert s.verdict(interval, 1.0, 1) == positive
    assert s.verdict(interval, 1.0, -1) == negative


def test_a_verdict_needs_a_size_and_a_sign() -> None:
    for sesoi in (0.0, -1.0, INF, NAN):
        with pytest.raises(ValueError, match="sesoi must be positive"):
            s.verdict(s.Interval(0, 0, 0), sesoi, 1)
    with pytest.raises(ValueError, match="expected_sign must be 1 or -1, got 0"):
        s.verdict(s.Interval(0, 0, 0), 1.0, 0)
