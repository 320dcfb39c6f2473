"""Statistics for leaderboard and studies: numpy and scipy, no torch.

Which entrant is better (`comparison`), which measure follows the outcome (`association`), whether
several instruments agree (`heterogeneity`), how sure a number is (`resampling`), and whether it
matters (`equivalence`).
"""

from optbench.intervals import LEVEL, Interval, t_quantile
from optbench.statistics.association import (
    ConditionalInformation,
    Environment,
    GranulatedKendall,
    PartialCorrelation,
    SignError,
    conditional_information,
    granulated_kendall,
    kendall_tau,
    partial_rank_correlation,
    sign_error,
)
from optbench.statistics.comparison import (
    Pair,
    best_of_median,
    censored_median,
    cliques,
    compare,
    compare_each,
    friedman,
    holm,
    iqm,
    iqm_interval,
    kendall,
    paired_differences,
    performance_profile,
    rank_intervals,
)
from optbench.statistics.equivalence import (
    VERDICTS,
    EquivalenceTest,
    Verdict,
    equivalence_test,
    verdict,
)
from optbench.statistics.grouping import Array, Table, average_ranks, group_labels
from optbench.statistics.heterogeneity import (
    Heterogeneity,
    Instrument,
    SignCount,
    WeakInstrument,
    instrument_slope,
    leave_one_out,
    pool,
    pool_instruments,
    sign_count,
    wald_ratio,
)
from optbench.statistics.resampling import cluster_bootstrap

__all__ = [
    "LEVEL",
    "VERDICTS",
    "Array",
    "ConditionalInformation",
    "Environment",
    "EquivalenceTest",
    "GranulatedKendall",
    "Heterogeneity",
    "Instrument",
    "Interval",
    "Pair",
    "PartialCorrelation",
    "SignCount",
    "SignError",
    "Table",
    "Verdict",
    "WeakInstrument",
    "average_ranks",
    "best_of_median",
    "censored_median",
    "cliques",
    "cluster_bootstrap",
    "compare",
    "compare_each",
    "conditional_information",
    "equivalence_test",
    "friedman",
    "granulated_kendall",
    "group_labels",
    "holm",
    "instrument_slope",
    "iqm",
    "iqm_interval",
    "kendall",
    "kendall_tau",
    "leave_one_out",
    "paired_differences",
    "partial_rank_correlation",
    "performance_profile",
    "pool",
    "pool_instruments",
    "rank_intervals",
    "sign_count",
    "sign_error",
    "t_quantile",
    "verdict",
    "wald_ratio",
]
