"""Do several instruments agree on one slope?

An instrument is a randomized setting that moves a mediator, such as log λ₁. If the outcome depends
on the settings only through the mediator, every instrument gives the same slope of outcome on
mediator, whichever setting moved it. A setting that also acts past the mediator gives another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from optbench.intervals import LEVEL, Interval
from optbench.statistics.grouping import (
    Array,
    Labels,
    finite_columns,
    group_labels,
    indicators,
    is_categorical,
)

LEAST_F = 10.0
"""First-stage F under which an instrument is weak (Staiger & Stock 1997, doi:10.2307/2171753)."""


@dataclass(frozen=True)
class Instrument:
    """The slope of the outcome on the mediator, as one setting moved both.

    Attributes:
        name: Name of the setting.
        slope: Outcome per unit of the mediator.
        error: Standard error of the slope.
        f: First-stage F: how surely the setting moves the mediator.
    """

    name: str
    slope: float
    error: float
    f: float


@dataclass(frozen=True)
class WeakInstrument:
    """A setting that does not surely move the mediator: its slope would be noise over noise.

    Attributes:
        name: Name of the setting.
        f: First-stage F.
        least_f: F that was asked for.
    """

    name: str
    f: float
    least_f: float


@dataclass(frozen=True)
class Heterogeneity:
    """Several slopes: how much they differ beyond their errors, and what they come to together.

    Attributes:
        q: Cochran's Q.
        degrees: Degrees of freedom of Q, K − 1.
        p: P(χ²_{K−1} ≥ Q).
        i_squared: Share of the spread that is not error, max(0, (Q − (K − 1))/Q).
        tau_squared: Variance of the slopes themselves, by DerSimonian and Laird.
        fixed: Pooled slope if all are equal, with its normal interval.
        random: Mean of the distribution of slopes, with its normal interval.
    """

    q: float
    degrees: int
    p: float
    i_squared: float
    tau_squared: float
    fixed: Interval
    random: Interval


@dataclass(frozen=True)
class SignCount:
    """How many slopes have which sign.

    Attributes:
        positive: Slopes whose interval lies above 0.
        negative: Slopes whose interval lies below 0.
        unclear: The others.
    """

    positive: int
    negative: int
    unclear: int

    @property
    def flips(self) -> bool:
        """Whether some slopes are surely positive and some surely negative."""
        return self.positive > 0 and self.negative > 0


def wald_ratio(
    on_outcome: float,
    on_mediator: float,
    outcome_error: float,
    mediator_error: float,
    covariance: float = 0.0,
) -> tuple[float, float]:
    """Return the Wald ratio of two effects of a setting, and its delta-method standard error.

        β = Γ/γ,    s_β² = (s_Γ² + β² s_γ² − 2 β s_Γγ)/γ²

    Args:
        on_outcome: Γ, effect of the setting on the outcome.
        on_mediator: γ, effect of the setting on the mediator.
        outcome_error: s_Γ.
        mediator_error: s_γ.
        covariance: s_Γγ; 0 only if the two effects come from separate runs.

    References:
        Wald (1940), doi:10.1214/aoms/1177731868; Thomas, Lawlor & Thompson (2007), Annals of
        Epidemiology 17, 511–513 (the delta method).
    """
    slope = on_outcome / on_mediator
    variance = outcome_error**2 + slope**2 * mediator_error**2 - 2 * slope * covariance
    # The variance is a square; a covariance that was rounded may leave it below 0.
    return slope, math.sqrt(max(0.0, variance)) / abs(on_mediator)


def instrument_slope(
    name: str,
    setting: ArrayLike,
    mediator: ArrayLike,
    outcome: ArrayLike,
    strata: Sequence[ArrayLike] = (),
    clusters: ArrayLike | None = None,
    least_f: float = LEAST_F,
) -> Instrument | WeakInstrument:
    """Return the slope of the outcome on the mediator along what one setting moves.

    With z (N, q), m (N,) and y (N,) the setting, mediator and outcome less their means within a
    stratum, m̂ = z (zᵀz)⁻¹ zᵀm, and C clusters:

        β = m̂ᵀy / m̂ᵀm,    s_β² = c Σ_clusters (Σ m̂ (y − β m))² / (m̂ᵀm)²
        F = γᵀ V_γ⁻¹ γ / q,    c = C/(C − 1) · (N − 1)/(N − q − strata)

    For q = 1 this is the Wald ratio, and s_β its delta-method error with the covariance of the two
    effects. Strata that lie within one cluster do not count in c.

    Args:
        name: Name of the setting.
        setting: (N,). A number acts linearly (q = 1); text has one effect for each category
            (q = categories − 1).
        mediator: (N,), such as log λ₁.
        outcome: (N,), such as the test error.
        strata: Columns (N,) to be held: all other settings, the task, the seed.
        clusters: (N,), runs whose noise may be shared, such as the seed; none takes each run for
            itself.
        least_f: F under which the instrument is refused as weak.

    Raises:
        ValueError: The setting does not vary within the strata, or has too few clusters.

    References:
        Angrist & Pischke (2009), Mostly Harmless Econometrics, section 4.1; Cameron & Miller
        (2015), doi:10.3368/jhr.50.2.317, section III (nested strata).
    """
    mediator, outcome = finite_columns(mediator=mediator, outcome=outcome)
    rows = len(mediator)
    stratum = group_labels(strata, rows)
    cluster = np.arange(rows) if clusters is None else group_labels([clusters], rows)
    z = _within(_columns_of(setting, rows), stratum)
    m, y = _within(mediator[:, None], stratum)[:, 0], _within(outcome[:, None], stratum)[:, 0]
    q = z.shape[1]
    scale = _small_sample_factor(name, stratum, cluster, q)
    if q == 0 or np.linalg.matrix_rank(z) < q:
        raise ValueError(f"setting {name} does not vary within the strata; hold fewer columns")

    # First stage: γ, its cluster-robust covariance V, and F.
    gram = np.linalg.inv(z.T @ z)
    effect = gram @ (z.T @ m)
    moved = z @ effect
    first_scores = _sums(z * (m - moved)[:, None], cluster)
    covariance = scale * gram @ (first_scores.T @ first_scores) @ gram
    # A mediator that follows the setting without noise has no covariance to invert.
    exact = not covariance.any()
    f = math.inf if exact else float(effect @ np.linalg.solve(covariance, effect)) / q
    if not f >= least_f:
        return WeakInstrument(name, f, least_f)

    # Second stage: β and its error.
    movement = float(moved @ m)
    slope = float(moved @ y) / movement
    scores = _sums((moved * (y - slope * m))[:, None], cluster)
    return Instrument(name, slope, math.sqrt(scale * float((scores**2).sum())) / movement, f)


def pool(slopes: ArrayLike, errors: ArrayLike, level: float = LEVEL) -> Heterogeneity:
    """Return Cochran's Q, I², and the pooled slopes of fixed and of random effects.

    For slopes β_k with standard errors s_k, w_k = 1/s_k², K of them:

        β̄ = Σ w β / Σ w,    Q = Σ w (β − β̄)²,    I² = max(0, (Q − (K − 1))/Q)
        τ² = max(0, (Q − (K − 1)) / (Σ w − Σ w²/Σ w)),    w*_k = 1/(s_k² + τ²)
        fixed = β̄ ± z/√Σ w,    random = Σ w* β/Σ w* ± z/√Σ w*

    Q supposes independent slopes: the axes of a balanced grid are, several contrasts against one
    reference are not. The random interval is too narrow for few slopes.

    Args:
        slopes: (K,).
        errors: (K,), positive.
        level: Confidence level of the two intervals.

    Raises:
        ValueError: No slope, or an error that is not positive and finite.

    References:
        Cochran (1954), doi:10.2307/3001666; Higgins & Thompson (2002), doi:10.1002/sim.1186 (I²);
        DerSimonian & Laird (1986), doi:10.1016/0197-2456(86)90046-2.
    """
    slopes, errors = finite_columns(slopes=slopes, errors=errors)
    if not len(slopes):
        raise ValueError("pooling needs a slope or more, got none")
    if (errors <= 0).any():
        raise ValueError(
            f"errors must be positive, got {errors.min():g}; runs that are copies of each other "
            "have no error"
        )
    weights = 1 / errors**2
    center = float(weights @ slopes / weights.sum())
    q, degrees = float(weights @ (slopes - center) ** 2), len(slopes) - 1
    excess = max(0.0, q - degrees)
    spread = float(weights.sum() - (weights**2).sum() / weights.sum())
    tau_squared = excess / spread if degrees else 0.0
    return Heterogeneity(
        q,
        degrees,
        float(special.chdtrc(degrees, q)) if degrees else 1.0,
        excess / q if q else 0.0,
        tau_squared,
        _weighted(slopes, weights, level),
        _weighted(slopes, 1 / (errors**2 + tau_squared), level),
    )


def pool_instruments(instruments: Sequence[Instrument], level: float = LEVEL) -> Heterogeneity:
    """Return `pool` of the slopes of the instruments."""
    return pool([i.slope for i in instruments], [i.error for i in instruments], level)


def leave_one_out(
    instruments: Sequence[Instrument], level: float = LEVEL
) -> dict[str, Heterogeneity]:
    """Return, by the name of the instrument that was left out, `pool` of the others.

    If one instrument has an effect past the mediator, the others agree once it is left out.

    Raises:
        ValueError: Fewer than two instruments, or two of one name.
    """
    names = [instrument.name for instrument in instruments]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"leaving one out needs two instruments or more of own names, got {names}")
    return {
        left.name: pool_instruments([i for i in instruments if i is not left], level)
        for left in instruments
    }


def sign_count(instruments: Sequence[Instrument], level: float = LEVEL) -> SignCount:
    """Count the slopes with β − z s > 0, with β + z s < 0, and the rest."""
    z = _normal_quantile(level)
    positive = sum(i.slope - z * i.error > 0 for i in instruments)
    negative = sum(i.slope + z * i.error < 0 for i in instruments)
    return SignCount(positive, negative, len(instruments) - positive - negative)


def _columns_of(setting: ArrayLike, rows: int) -> Array:
    values = np.asarray(setting)
    if values.shape != (rows,):
        raise ValueError(f"a setting must have shape ({rows},), got {values.shape}")
    return indicators(values) if is_categorical(values) else values[:, None].astype(np.float64)


def _sums(values: Array, labels: Labels) -> Array:
    """Sum the rows (N, q) of each group, (groups, q)."""
    sums = np.zeros((int(labels.max()) + 1, values.shape[1]))
    np.add.at(sums, labels, values)
    return sums


def _within(values: Array, labels: Labels) -> Array:
    """Values (N, q) less the mean of their group."""
    return values - (_sums(values, labels) / np.bincount(labels)[:, None])[labels]


def _small_sample_factor(name: str, stratum: Labels, cluster: Labels, q: int) -> float:
    """C/(C − 1) · (N − 1)/(N − q − strata), without the strata that lie within one cluster."""
    rows, clusters = len(stratum), int(cluster.max()) + 1
    both = np.unique(np.stack([stratum, cluster]), axis=1)
    counted = int((np.bincount(both[0]) > 1).sum())
    left = rows - q - counted
    if clusters <= q + 1 or left < 1:
        raise ValueError(
            f"setting {name} with {q} effects needs more than {q + 1} clusters and more than "
            f"{q + counted} runs, got {clusters} clusters and {rows} runs"
        )
    return clusters / (clusters - 1) * (rows - 1) / left


def _weighted(slopes: Array, weights: Array, level: float) -> Interval:
    value = float(weights @ slopes / weights.sum())
    half = _normal_quantile(level) / math.sqrt(float(weights.sum()))
    return Interval(value, value - half, value + half)


def _normal_quantile(level: float) -> float:
    """Half width, in standard errors, of a two-sided normal interval."""
    return float(special.ndtri((1 + level) / 2))
