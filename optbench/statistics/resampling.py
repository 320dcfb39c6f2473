"""Bootstrap of any statistic of a table of runs, whole clusters (seeds) at a time."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import special

from optbench.intervals import LEVEL, Interval, t_quantile
from optbench.statistics.grouping import Array, Labels, Table, group_labels

Method = Literal["percentile", "bca"]
Statistic = Callable[[Table], float]

ROUNDING = 1e-12
"""Difference of two draws, relative to the largest of all, that the order of summation makes."""


def cluster_bootstrap(
    table: Table,
    statistic: Statistic,
    cluster: str = "seed",
    draws: int = 2000,
    level: float = LEVEL,
    method: Method = "bca",
    expand: bool = True,
    seed: int = 0,
) -> Interval:
    """Return a statistic of a table with its bootstrap interval, clusters drawn with replacement.

    A draw takes C of the C clusters, each with all its rows, and numbers them anew: a cluster that
    was drawn twice counts as two. With q(·) the quantiles of the draws, α the tail of either side:

        percentile:  [q(α), q(1 − α)]
        bca:         [q(Φ(z₀ + (z₀ + z_α)/(1 − a (z₀ + z_α)))), the same of 1 − α]
        z₀ = Φ⁻¹(share of draws below the value, equal ones half)
        a  = Σ d³ / (6 (Σ d²)^{3/2}),    d the jackknife's mean less its values, a cluster left out

    α is (1 − level)/2; with `expand`, Φ(−√(C/(C − 1)) t_{C−1}), which undoes the narrowness of a
    bootstrap of few clusters.

    Args:
        table: Columns (N,) by name.
        statistic: From a table to a number.
        cluster: Name of the column that says which rows are drawn together.
        draws: Number of draws.
        level: Confidence level.
        method: "percentile" or "bca".
        expand: Whether to widen α for few clusters.
        seed: Seed of the draws; the same seed gives the same interval.

    Returns:
        The interval. Its ends are infinite where the bootstrap says nothing: the statistic is not
        finite of the table or of a draw, all draws are alike (clusters that are copies), or the
        correction of BCa is not defined.

    Raises:
        ValueError: Fewer than two clusters.

    References:
        Efron (1987), doi:10.2307/2289144 (BCa); Cameron, Gelbach & Miller (2008),
        doi:10.1162/rest.90.3.414 (pairs cluster bootstrap); Hesterberg (2015), arXiv:1411.5279
        (expanded percentile).
    """
    labels = group_labels([table[cluster]], len(table[cluster]))
    members = [np.flatnonzero(labels == c) for c in range(int(labels.max(initial=-1)) + 1)]
    C = len(members)
    if C < 2:
        raise ValueError(f"a bootstrap needs two clusters ({cluster}) or more, got {C}")
    value = float(statistic(table))
    unknown = Interval(value, -math.inf, math.inf)
    chosen = np.random.default_rng(seed).integers(C, size=(draws, C))
    drawn = np.array([statistic(_rows(table, [members[c] for c in d], cluster)) for d in chosen])
    # Clusters that are copies differ by rounding alone.
    if not np.isfinite([value, *drawn]).all() or np.ptp(drawn) <= ROUNDING * np.abs(drawn).max():
        return unknown
    tails = _tails(C, level, expand)
    if method == "bca":
        left_out = [
            statistic(_rows(table, members[:c] + members[c + 1 :], cluster)) for c in range(C)
        ]
        d = np.mean(left_out) - np.asarray(left_out)
        (tails,) = bca_tails(tails, np.array([value]), drawn[None], d[None])
        if not np.isfinite(tails).all():
            return unknown
    low, high = np.quantile(drawn, tails)
    return Interval(value, float(low), float(high))


def _rows(table: Table, members: list[Labels], cluster: str) -> Table:
    """The rows of the clusters, one after the other, the clusters numbered anew."""
    index = np.concatenate(members)
    rows = {name: column[index] for name, column in table.items()}
    rows[cluster] = np.repeat(np.arange(len(members)), [len(m) for m in members])
    return rows


def _tails(C: int, level: float, expand: bool) -> Array:
    tail = (1 - level) / 2
    if expand:
        tail = float(special.ndtr(-math.sqrt(C / (C - 1)) * t_quantile(C - 1, level)))
    return np.array([tail, 1 - tail])


def bca_tails(tails: Array, values: Array, drawn: Array, d: Array) -> Array:
    """Return the quantiles (P, 2) of the draws at which BCa's intervals end.

    NaN where the correction is not defined.

    Args:
        tails: α and 1 − α.
        values: The statistic (P,).
        drawn: Its draws (P, draws).
        d: The jackknife's mean less its values (P, C), to any factor.
    """
    # a draw of every cluster once, in another order, differs from the value by rounding alone
    slack = ROUNDING * np.abs(drawn).max(axis=1, keepdims=True)
    above = drawn - values[:, None]
    share = ((above < -slack).mean(axis=1) + (above <= slack).mean(axis=1)) / 2
    largest = np.abs(d).max(axis=1)
    known = (share > 0) & (share < 1) & (largest > 0) & np.isfinite(largest)
    # times a power of two, which is exact: cubes of small differences would be 0
    d = np.ldexp(np.where(known[:, None], d, 0), -np.frexp(largest)[1][:, None])
    spread = (d**2).sum(axis=1)
    acceleration = np.zeros(len(values))
    acceleration[known] = (d[known] ** 3).sum(axis=1) / (6 * spread[known] ** 1.5)
    bias = special.ndtri(np.where(known, share, 0.5))[:, None]
    moved = bias + special.ndtri(tails)
    pole = 1 - acceleration[:, None] * moved
    # Past the pole of the correction the order of the quantiles would turn round.
    known &= (pole > 0).all(axis=1)
    ends = special.ndtr(bias + moved / np.where(known[:, None], pole, 1))
    return np.asarray(np.where(known[:, None], ends, math.nan))
