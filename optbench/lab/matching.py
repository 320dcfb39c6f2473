"""Measures at one training loss: interpolated in log loss between the checkpoints of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Matched:
    """A quantity at a training loss.

    Attributes:
        value: The interpolated value; NaN where it cannot be had.
        error: Difference between the quadratic and the linear interpolation in log loss: how far
            the curve bends between checkpoints. NaN with fewer than three.
    """

    value: float
    error: float


def at_loss(points: Sequence[tuple[float, float]], loss: float) -> Matched:
    """Interpolate a quantity linearly in log loss, at a loss between two of the points.

    m(L) = m_a + (m_b − m_a)(log L − log a)/(log b − log a) for neighbours a ≥ L ≥ b.

    Args:
        points: (training loss, quantity) of each checkpoint, in the order of training.
        loss: Training loss L to be compared at.

    Returns:
        NaN if the points do not reach from above L to L or below.
    """
    usable = [(math.log(a), m) for a, m in points if a > 0 and math.isfinite(m)]
    target = math.log(loss)
    below = next((i for i, (a, _) in enumerate(usable) if a <= target), None)
    if below is None:
        return Matched(math.nan, math.nan)
    if below == 0:  # the first that there is: nothing above to interpolate from
        close = abs(usable[0][0] - target) < 1e-3
        return Matched(usable[0][1] if close else math.nan, math.nan)
    (a, m_a), (b, m_b) = usable[below - 1], usable[below]
    share = (target - a) / (b - a)
    value = m_a + (m_b - m_a) * share
    if below < 2 or usable[below - 2][0] in (a, b):
        return Matched(value, math.nan)
    c, m_c = usable[below - 2]
    # Newton's form: the quadratic through all three, less the line through two of them
    bend = ((m_b - m_a) / (b - a) - (m_a - m_c) / (a - c)) / (b - c)
    return Matched(value, abs(bend * (target - a) * (target - b)))


def all_at_loss(
    checkpoints: Sequence[tuple[float, Mapping[str, float]]], loss: float
) -> dict[str, Matched]:
    """Interpolate every quantity of some checkpoints; see `at_loss`."""
    names = dict.fromkeys(name for _, values in checkpoints for name in values)
    return {
        name: at_loss([(a, v[name]) for a, v in checkpoints if name in v], loss) for name in names
    }
