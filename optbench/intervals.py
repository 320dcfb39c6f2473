"""An estimate with the interval that it lies in, and Student's t."""

import math
from dataclasses import dataclass

from scipy.special import stdtrit

LEVEL = 0.95
"""Confidence level of every interval, unless another is said."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, or the median of several values with their range.

    Attributes:
        value: Estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def relative(self) -> float:
        """Half width over |value|; infinite where the value is 0."""
        return (self.high - self.low) / 2 / abs(self.value) if self.value else math.inf


def t_quantile(degrees: float, level: float = LEVEL) -> float:
    """Half width, in standard errors, of a two-sided interval of Student's t.

    Args:
        degrees: Degrees of freedom.
        level: Confidence level.
    """
    return float(stdtrit(degrees, (1 + level) / 2))
