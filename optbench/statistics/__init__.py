"""Statistics for leaderboard and studies: numpy and scipy, no torch."""

from optbench.intervals import LEVEL, Interval, t_quantile
from optbench.statistics.comparison import (
    Array,
    Pair,
    average_ranks,
    best_of_median,
    censored_median,
    cliques,
    compare,
    friedman,
    holm,
    iqm,
    iqm_interval,
    kendall,
    paired_differences,
    performance_profile,
    rank_intervals,
)

__all__ = [
    "LEVEL",
    "Array",
    "Interval",
    "Pair",
    "average_ranks",
    "best_of_median",
    "censored_median",
    "cliques",
    "compare",
    "friedman",
    "holm",
    "iqm",
    "iqm_interval",
    "kendall",
    "paired_differences",
    "performance_profile",
    "rank_intervals",
    "t_quantile",
]
