"""Whether a series stands on a plateau, and where, also if it alternates beyond both sides of 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STILL = 0.025
"""Largest relative change from the third to the fourth quarter of a plateau: half of 5 %."""

BLOCKS = 12
"""Blocks that half a run is cut into: whole stretches, since neighbours are alike."""


@dataclass(frozen=True)
class Plateau:
    """Where the ratio of two series stands in the second half of a run.

    Attributes:
        value: Ratio of the means, Σ measured / Σ threshold. A median of ratios says nothing where
            they swing beyond both sides: of .3, 1.9, .3, 1.9, … it is .3 or 1.9.
        low: Lower end of its interval: 95 %, by blocks of the run.
        high: Upper end.
        change: Of the fourth quarter against the third, relative.
        above: Share of the ratios above 1.
    """

    value: float
    low: float
    high: float
    change: float
    above: float

    @property
    def still(self) -> bool:
        """Whether it is a plateau at all."""
        return abs(self.change) <= STILL


def plateau(
    steps: Sequence[int], measured: Sequence[float], threshold: Sequence[float], draws: int = 2000
) -> Plateau:
    """Describe the second half of a series; NaN throughout where it has fewer than 4 values there.

    The interval resamples consecutive blocks (Künsch 1989, doi.org/10.1214/aos/1176347265), so that
    an oscillation whose period is shorter than a block, a 24th of the run, does not widen it.
    """
    t, m, h = (np.asarray(x, dtype=float) for x in (steps, measured, threshold))
    last = t[-1] if len(t) else 0.0
    half = t >= 0.5 * last
    if half.sum() < 4:
        return Plateau(*(math.nan,) * 5)
    quarters = [half & (t < 0.75 * last), t >= 0.75 * last]
    third, fourth = (float(m[q].sum() / h[q].sum()) for q in quarters)
    m, h = m[half], h[half]
    low, high = _interval(m, h, draws)
    return Plateau(float(m.sum() / h.sum()), low, high, fourth / third - 1, float((m > h).mean()))


def _interval(measured: np.ndarray, threshold: np.ndarray, draws: int) -> tuple[float, float]:
    """Ends of the 95 % interval of the ratio of means, over resampled blocks."""
    length = max(1, len(measured) // BLOCKS)
    starts = np.arange(len(measured) - length + 1)
    # sums of every block, by differences of running sums
    sums = [np.diff(np.r_[0.0, np.cumsum(x)]) for x in (measured, threshold)]
    blocks = [np.convolve(x, np.ones(length), mode="valid") for x in sums]
    chosen = np.random.default_rng(0).choice(starts, (draws, len(measured) // length))
    ratios = blocks[0][chosen].sum(1) / blocks[1][chosen].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def balance(slopes: Sequence[float], predicted: Sequence[float]) -> float:
    """Mean of ½dᵀHd over mean of −g·d, d the updates: how much of the descent curvature undoes.

    An edge without a formula, at the amplitude at hand. L(w + d) − L(w) = g·d + ½dᵀHd on a
    parabola, so that a loss that oscillates and does not fall has 1, whatever the optimizer;
    gradient descent inside its edge has ½ηgᵀHg/‖g‖² < 1. For steps −ηs of fixed size it is
    ½η⟨sᵀHs⟩/⟨g·s⟩, which is the ratio of norm sharpness S to its threshold but for sᵀHs in place of
    S = max sᵀHs. So S over its threshold stands at S/⟨sᵀHs⟩ ≥ 1, above 1 by as much as momentum
    keeps the steps from the maximizer.

    Args:
        slopes: g·d of each update.
        predicted: g·d + ½dᵀHd of each update.
    """
    g = np.asarray(slopes, dtype=float)
    descent = -float(g.sum())
    return float((np.asarray(predicted) - g).sum()) / descent if descent > 0 else math.nan
