"""Distance to the edge by the multiplier: how much larger the learning rate could be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from optbench.dynamics.oscillating_eigenvalue import Multiplier, multiplier
from optbench.dynamics.training_map import TrainingMap

WIDEST = 64.0
"""Largest factor of the learning rate, up or down, that is tried."""


@dataclass(frozen=True)
class CriticalRate:
    """Where the multiplier leaves the unit disc, in present learning rates.

    Attributes:
        factor: c, at which the modulus of the multiplier is 1; infinite if none was found.
        products: Jacobian-vector products that it took.
    """

    factor: float
    products: int

    @property
    def distance(self) -> float:
        """1/c, 1 at the edge: for gradient descent ηλ₁/2, as `edge/distance`; 0 if none is near."""
        return 1 / self.factor


def critical_rate(
    step: TrainingMap, found: Multiplier, *, accuracy: float = 5e-3, max_searches: int = 16
) -> CriticalRate:
    """Find the factor c of all learning rates at which |μ| = 1, weights and state held.

    |μ| itself measures badly how near an edge is: with momentum β it stays at √β far below, and
    rises by 2(1+β)/(1−β) times a relative change of the curvature above. In c all are alike.
    Bracketed by factors of 1.3, then by false position in log c (Illinois), started from the last
    vector each time. Where |μ(c)| crosses 1 more than once, the crossing next to c = 1 is found.

    Args:
        step: The map, at the present state.
        found: Its multiplier.
        accuracy: Relative error of c.
        max_searches: Most searches for a multiplier.
    """
    vector, products = found.vector.real, 0

    def excess(log_factor: float) -> float:
        nonlocal vector, products
        with step.at_rate(math.exp(log_factor)):
            there = multiplier(step.product, step.size, vector, tolerance=accuracy)
        vector = _real(there.vector)
        products += there.products
        return math.log(max(1e-300, there.growth))

    a, fa = 0.0, math.log(max(1e-300, found.growth))
    outward = -math.log(1.3) if fa > 0 else math.log(1.3)
    b, fb = a + outward, excess(a + outward)
    searches = 1
    while fa * fb > 0 and abs(b) < math.log(WIDEST):
        a, fa = b, fb
        outward *= 1.5
        b += outward
        fb = excess(b)
        searches += 1
    if fa * fb > 0:
        return CriticalRate(math.inf, products)
    while abs(b - a) > accuracy and searches < max_searches:
        middle = b - fb * (b - a) / (fb - fa)
        # keep away from the ends, where a flat side (√β) would hold false position
        low, high = min(a, b), max(a, b)
        middle = min(max(middle, low + 0.1 * (high - low)), high - 0.1 * (high - low))
        value = excess(middle)
        searches += 1
        if value * fb < 0:
            a, fa = b, fb
        else:
            fa /= 2
        b, fb = middle, value
    return CriticalRate(math.exp(b), products)


def _real(vector: Tensor) -> Tensor:
    return vector.real if vector.is_complex() else vector
