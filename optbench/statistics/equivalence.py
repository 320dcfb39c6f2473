"""Is an effect large enough to matter, or surely not? Equivalence tests and verdicts.

SESOI: smallest effect size of interest, positive, in the units of the effect.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from optbench.intervals import Interval

Verdict = Literal["supported", "refuted", "undecided"]
VERDICTS: tuple[Verdict, ...] = ("supported", "refuted", "undecided")


@dataclass(frozen=True)
class EquivalenceTest:
    """Two one-sided tests of |effect| < SESOI.

    Attributes:
        p_above: P-value of the test that the effect is above −SESOI.
        p_below: P-value of the test that the effect is below +SESOI.
    """

    p_above: float
    p_below: float

    @property
    def p(self) -> float:
        """P-value of the equivalence, the greater of the two."""
        return max(self.p_above, self.p_below)


def equivalence_test(
    effect: float, error: float, sesoi: float, degrees: float = math.inf
) -> EquivalenceTest:
    """Return the two one-sided tests (TOST) of an effect against ±SESOI.

        p_above = P(T_d ≥ (effect + SESOI)/error),    p_below = P(T_d ≤ (effect − SESOI)/error)

    p < α just if the interval of level 1 − 2α lies inside ±SESOI: of level .9 for α = .05.

    Args:
        effect: Estimate.
        error: Its standard error, positive.
        sesoi: SESOI.
        degrees: Degrees of freedom of the error; infinite for the normal.

    References:
        Schuirmann (1987), doi:10.1007/BF01068419; Lakens (2017), doi:10.1177/1948550617697177.
    """
    _check_sesoi(sesoi)
    if not error > 0:
        raise ValueError(f"error must be positive, got {error}")
    above, below = (effect + sesoi) / error, (effect - sesoi) / error
    return EquivalenceTest(_lower_tail(-above, degrees), _lower_tail(below, degrees))


def verdict(interval: Interval, sesoi: float, expected_sign: int) -> Verdict:
    """Return what an interval says of an effect that was expected to have a sign and a size.

    With s the expected sign, the interval [a, b] of s · effect, and Δ the SESOI:

        supported   a > Δ
        refuted     −Δ < a and b < Δ, or b < −Δ
        undecided   anything else, an end that is NaN or infinite too

    An interval across −Δ is undecided, though it excludes the expected effect: it does not say
    whether there is none or an opposite one.

    Args:
        interval: Of the effect.
        sesoi: Δ.
        expected_sign: +1 or −1, as declared before the run.
    """
    _check_sesoi(sesoi)
    if expected_sign not in (1, -1):
        raise ValueError(f"expected_sign must be 1 or -1, got {expected_sign}")
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "undecided"
    low, high = sorted((expected_sign * interval.low, expected_sign * interval.high))
    if low > sesoi:
        return "supported"
    return "refuted" if high < -sesoi or (-sesoi < low and high < sesoi) else "undecided"


def _check_sesoi(sesoi: float) -> None:
    if not (sesoi > 0 and math.isfinite(sesoi)):
        raise ValueError(f"sesoi must be positive and finite, got {sesoi}")


def _lower_tail(t: float, degrees: float) -> float:
    return float(special.ndtr(t) if np.isinf(degrees) else special.stdtr(degrees, t))
