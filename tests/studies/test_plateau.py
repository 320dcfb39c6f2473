"""Plateaus of series that are still, drift, or alternate; and the balance of descent and curvature."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from optbench.optimizers.sign import Lion, Signum
from optbench.studies.plateau import balance, plateau

STEPS = list(range(0, 3000, 7))


def test_a_series_that_alternates_beyond_both_sides_has_the_ratio_of_its_means() -> None:
    measured = [0.3 if i % 2 else 1.9 for i in range(len(STEPS))]
    found = plateau(STEPS, measured, [1.0] * len(STEPS))
    assert found.value == pytest.approx(1.1, abs=0.01)  # an odd one out of 215
    assert found.low > 1.05 and found.high < 1.15 and found.still
    assert found.above == pytest.approx(0.5, abs=0.01)


def test_the_threshold_may_alternate_as_well() -> None:
    """Signum: large where the gradient is small. The mean of ratios is not the ratio of means."""
    threshold = [0.5 if i % 2 else 1.5 for i in range(len(STEPS))]
    found = plateau(STEPS, [1.0] * len(STEPS), threshold)
    assert found.value == pytest.approx(1.0, abs=0.01)


def test_a_drift_is_no_plateau() -> None:
    drift = [1 - 0.2 * s / STEPS[-1] for s in STEPS]
    found = plateau(STEPS, drift, [1.0] * len(STEPS))
    assert not found.still and found.change == pytest.approx(0.825 / 0.875 - 1, abs=0.002)


def test_the_interval_covers_a_slow_wave_and_not_a_fast_one() -> None:
    rng = np.random.default_rng(1)
    noise = 1 + 0.02 * rng.standard_normal(len(STEPS))
    slow = noise + 0.1 * np.sin(np.array(STEPS) * 2 * math.pi / 500)
    narrow, wide = (plateau(STEPS, x.tolist(), [1.0] * len(STEPS)) for x in (noise, slow))
    assert narrow.low < 1 < narrow.high and narrow.high - narrow.low < 0.012
    assert wide.low < 1 < wide.high and wide.high - wide.low > 0.03


def test_too_few_values_have_no_plateau() -> None:
    assert math.isnan(plateau([0, 10], [1.0, 1.0], [1.0, 1.0]).value)
    assert math.isnan(plateau([], [], []).value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.SGD(p, 0.5), 0.25),  # ½ηλ
        (lambda p: Signum(p, 0.01, momentum=0), 1.0),
        (lambda p: Signum(p, 0.01, momentum=0.9), 1.0),
        (lambda p: Lion(p, 0.01), 1.0),
    ],
)
def test_the_balance_is_one_where_a_loss_oscillates_and_below_inside_an_edge(
    make: Any, expected: float
) -> None:
    w = torch.tensor([1.0, 0.7], dtype=torch.float64, requires_grad=True)
    h = torch.tensor([1.0, 1.0], dtype=torch.float64)
    optimizer = make([w])
    slopes, predicted = [], []
    for t in range(3000):
        optimizer.zero_grad()
        (0.5 * h * w**2).sum().backward()
        before, g = w.detach().clone(), w.grad.clone()  # type: ignore[union-attr]
        optimizer.step()
        d = w.detach() - before
        if t >= (0 if expected < 1 else 500):
            slopes.append(float(g @ d))
            predicted.append(float(g @ d + 0.5 * d @ (h * d)))
    # the sum of what is predicted is L at the end minus L at the start: a hundredth of 2,500 steps'
    assert balance(slopes, predicted) == pytest.approx(expected, abs=0.02)
