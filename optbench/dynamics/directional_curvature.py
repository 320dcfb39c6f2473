"""Curvature along directions: what an actual update meets, without a model of the optimizer.

Vectors are flat, shape (P,). `hvp` is v ↦ Hv. Nothing here draws random numbers or changes state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from optbench.dynamics.edges import MatVec


def predicted_change(gradient: Tensor, update: Tensor, hvp: MatVec) -> float:
    """The second-order prediction of L(w + d) − L(w): g·d + ½ dᵀHd; exact on a quadratic.

    Costs one Hessian-vector product.

    Args:
        gradient: g at w, shape (P,).
        update: d, the step that was or will be taken, shape (P,).
        hvp: Product with the Hessian at w.

    Returns:
        The change of the loss, in units of the loss.
    """
    linear, quadratic = taylor(gradient, update, hvp)
    return linear + quadratic


def taylor(gradient: Tensor, update: Tensor, hvp: MatVec) -> tuple[float, float]:
    """The two parts of `predicted_change`: g·d and ½ dᵀHd. Costs one product."""
    return float(gradient @ update), 0.5 * float(update @ hvp(update))


def predicted_critical_step(gradient: Tensor, update: Tensor, hvp: MatVec) -> float:
    """The multiple κ of the update at which a quadratic loss is back at its value.

        κ = −2 g·d / dᵀHd

    κ = 2/(η λ) for gradient descent along an eigenvector, so 1/κ is a distance to the edge along
    the actual update that needs no model of the optimizer. Inf where dᵀHd ≤ 0 < −g·d: the loss
    falls for ever; 0 where the update climbs at once. Costs one product.
    """
    linear, quadratic = taylor(gradient, update, hvp)
    if linear >= 0:
        return 0.0
    return -linear / quadratic if quadratic > 0 else math.inf


def directional_sharpness(direction: Tensor, hvp: MatVec) -> float:
    """dᵀHd/‖d‖², the curvature along d, unit loss/parameter². Costs one product.

    Raises:
        ValueError: If the direction is zero.
    """
    squared = float(direction @ direction)
    if not squared > 0:
        raise ValueError(f"direction must not vanish, its squared norm is {squared:g}")
    return float(direction @ hvp(direction)) / squared


@dataclass(frozen=True)
class CriticalStep:
    """Where the loss along an update comes back to its value.

    Attributes:
        step: κ, in multiples of the update; inf if the loss was never raised, 0 if always.
        low: Largest step tried that did not raise the loss, below κ.
        high: Smallest step tried that raised it; inf if none did.
        forwards: Evaluations of the loss that were spent.
    """

    step: float
    low: float
    high: float
    forwards: int

    def sharpness(self, lr: float) -> float:
        """Critical sharpness λ_c = 2/η_c for η_c = κ · lr, where the update was scaled by lr."""
        return 2 / (self.step * lr) if self.step > 0 else math.inf


def critical_step(
    loss_along: Callable[[float], float],
    start: float = 1.0,
    tolerance: float = 0.05,
    max_forwards: int = 20,
) -> CriticalStep:
    """The step κ along an update d at which the loss first exceeds its value at w.

    κ is bracketed by doubling or halving from `start`, then found by regula falsi on
    (L(w + sd) − L(w))/s, which is linear in s on a quadratic: 4 to 6 evaluations, two Hessian-free
    digits. A rise and fall between two neighbouring tries of the doubling is not seen. Rounding
    matters where the loss changes by less than the precision of the loss.

    Args:
        loss_along: s ↦ L(w + s d), on fixed data and deterministic.
        start: First multiple of the update to try; the last κ is a good one.
        tolerance: Relative width of the bracket, or relative move of the estimate, to stop at.
        max_forwards: Most evaluations to spend.

    Raises:
        ValueError: If start, tolerance or max_forwards is too small to work with.

    References:
        Kalra et al. (2026), arXiv:2601.16979: λ_c = 2/η_c.
    """
    if not (start > 0 and tolerance > 0 and max_forwards >= 2):
        raise ValueError(
            f"start and tolerance must be positive and max_forwards at least 2, "
            f"got {start}, {tolerance}, {max_forwards}"
        )
    base, forwards = loss_along(0.0), 1

    def slope(s: float) -> float:
        nonlocal forwards
        forwards += 1
        value = (loss_along(s) - base) / s
        return value if math.isfinite(value) else math.inf

    low, high, at_low, at_high, s = 0.0, math.inf, -math.inf, math.inf, start
    while forwards < max_forwards and (low == 0.0 or high == math.inf):
        value = slope(s)
        if value > 0:
            high, at_high, s = s, value, s / 2
        else:
            low, at_low, s = s, value, s * 2
    if low == 0.0 or high == math.inf:
        return CriticalStep(low if low == 0.0 else math.inf, low, high, forwards)
    previous = math.inf
    while True:
        s = _crossing(low, high, at_low, at_high)
        settled = abs(s - previous) <= tolerance * s or high - low <= tolerance * s
        if settled or forwards >= max_forwards:
            return CriticalStep(s, low, high, forwards)
        previous, value = s, slope(s)
        if value > 0:
            high, at_high = s, value
        else:
            low, at_low = s, value


def _crossing(low: float, high: float, at_low: float, at_high: float) -> float:
    """The zero of the chord, or the geometric mean where a value is infinite."""
    if math.isinf(at_high) or at_high - at_low == 0:
        return math.sqrt(low * high)
    return low - at_low * (high - low) / (at_high - at_low)
