"""From rows to a finding: the interval of a statistic, clusters drawn whole, and its verdict."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from optbench.intervals import Interval
from optbench.statistics import cluster_bootstrap, verdict
from optbench.statistics.resampling import Method
from optbench.studies.frame import Finding, Hypothesis, Table, length

UNKNOWN: Final = Interval(math.nan, -math.inf, math.inf)
"""Interval of what cannot be estimated; its verdict is undecided."""


def interval_of(
    rows: Table,
    statistic: Callable[[Table], float],
    level: float,
    draws: int,
    cluster: str = "seed",
    method: Method = "percentile",
    least: int = 2,
) -> Interval:
    """Return a statistic with its bootstrap interval; `UNKNOWN` with too few clusters.

    Args:
        rows: Rows that it is of.
        statistic: From a table to a number.
        level: Confidence level.
        draws: Number of draws.
        cluster: Column that says which rows are drawn together.
        method: See `optbench.statistics.cluster_bootstrap`.
        least: Fewest clusters that an interval is taken of.
    """
    if not length(rows) or len(np.unique(rows[cluster])) < least:
        return UNKNOWN
    return cluster_bootstrap(rows, statistic, cluster, draws, level, method)


def mean_of_values(rows: Table, level: float, draws: int, least: int = 2) -> Interval:
    """Return the mean of the column `value`, seeds drawn whole; see `interval_of`."""

    def mean(some: Table) -> float:
        return float(some["value"].mean())

    columns = {name: rows[name] for name in ("seed", "value") if name in rows}
    return interval_of(columns, mean, level, draws, least=least)


def judged(hypothesis: Hypothesis, estimate: Interval, n: int, why: str = "") -> Finding:
    """Return the finding of a hypothesis: the verdict is that of its sign and SESOI."""
    said = verdict(estimate, hypothesis.sesoi, hypothesis.sign)
    return Finding(hypothesis.name, estimate, said, n, why)
