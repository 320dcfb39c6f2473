"""Curvature that mini-batch gradients meet, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from optbench.dynamics.edges import MatVec
from optbench.intervals import LEVEL, Interval, t_quantile

T = TypeVar("T")
Batch = tuple[Tensor, MatVec]
"""The gradient of one batch's loss, flat, and the product with the Hessian of that loss."""

LEAST = 8
"""Batches before an interval is trusted enough to stop on."""


@dataclass(frozen=True)
class Estimate(Interval):
    """A mean over batches with its confidence interval.

    Attributes:
        batches: Number of batches that were used.
    """

    batches: int


def batch_sharpness(
    batches: Iterable[Batch], count: int, level: float = LEVEL, until: float | None = None
) -> Estimate:
    """E_B[g_BᵀH_Bg_B/‖g_B‖²]: what settles at 2/η for SGD without momentum.

    Costs one gradient and one product on the batch per batch. Batches must be drawn as the
    optimizer draws them, independently for the interval to hold; a zero gradient raises.

    Args:
        batches: Gradient and Hessian product of each batch, at fixed parameters.
        count: Most batches to use, at least 2.
        level: Confidence level of the t interval.
        until: Stop once the half width is below this fraction of the value, after 8 batches.

    Raises:
        ValueError: If there are fewer than two batches, or a gradient vanishes.

    References:
        Andreyev and Beneventano (2024), arXiv:2412.20553.
    """

    def pair(batch: Batch) -> tuple[float, float]:
        g, hvp = batch
        squared = float(g @ g)
        if not squared > 0:
            raise ValueError(f"a batch gradient has squared norm {squared:g}: its sharpness is 0/0")
        return float(g @ hvp(g)) / squared, 1.0

    return _ratio(batches, pair, count, level, until)


def interaction(
    gradients: Iterable[Tensor],
    hvp: MatVec,
    gradient: Tensor,
    count: int,
    level: float = LEVEL,
    until: float | None = None,
) -> Estimate:
    """Gradient–noise interaction E[g_BᵀHg_B]/‖g‖², with H and g of the full batch.

    Costs one gradient on the batch and one product with the full Hessian per batch. Arguments as
    in `batch_sharpness`.

    References:
        Andreyev and Beneventano (2024), arXiv:2412.20553.
    """
    squared = float(gradient @ gradient)
    if not squared > 0:
        raise ValueError(f"the full gradient has squared norm {squared:g}: interaction is 0/0")
    return _ratio(gradients, lambda g: (float(g @ hvp(g)) / squared, 1.0), count, level, until)


def interaction_aware_sharpness(
    gradients: Iterable[Tensor],
    hvp: MatVec,
    count: int,
    level: float = LEVEL,
    until: float | None = None,
) -> Estimate:
    """Interaction-aware sharpness E[g_BᵀHg_B]/E‖g_B‖², with H of the full batch.

    A ratio of means; its interval is the delta method's, good for some tens of batches. Costs as
    `interaction`, arguments as in `batch_sharpness`.

    References:
        Lee and Jang (2023), ICLR, openreview bH-kCY6LdKg.
    """
    return _ratio(gradients, lambda g: (float(g @ hvp(g)), float(g @ g)), count, level, until)


def _ratio(
    items: Iterable[T],
    pair: Callable[[T], tuple[float, float]],
    count: int,
    level: float,
    until: float | None,
) -> Estimate:
    """Σ numerators / Σ denominators over at most `count` items, with a t interval."""
    if count < 2 or not 0 < level < 1:
        raise ValueError(f"count must be at least 2 and level in (0, 1), got {count} and {level}")
    pairs: list[tuple[float, float]] = []
    for item in islice(items, count):
        pairs.append(pair(item))
        if until is not None and len(pairs) >= LEAST:
            estimate = _interval(np.array(pairs), level)
            if estimate.relative <= until:
                return estimate
    if len(pairs) < 2:
        raise ValueError(f"an interval needs at least 2 batches, got {len(pairs)}")
    return _interval(np.array(pairs), level)


def _interval(pairs: NDArray[np.float64], level: float) -> Estimate:
    n = len(pairs)
    top, bottom = pairs.mean(axis=0)
    value = top / bottom
    # delta method: var(Ȳ/X̄) ≈ var(Y − (Ȳ/X̄)X) / (n X̄²)
    residual = (pairs[:, 0] - value * pairs[:, 1]) / bottom
    half = t_quantile(n - 1, level) * residual.std(ddof=1) / math.sqrt(n)
    return Estimate(float(value), float(value - half), float(value + half), n)
