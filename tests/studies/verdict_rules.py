"""Rules to try the planted worlds with, one to be fooled and one that is not, and their counts."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special, stats

from optbench.intervals import LEVEL, Interval
from optbench.statistics import (
    VERDICTS,
    Array,
    Instrument,
    Table,
    Verdict,
    instrument_slope,
    pool_instruments,
    sign_count,
    verdict,
)
from optbench.studies.planted import WORLDS, plant

Rule = Callable[[Table], Verdict]
AXES = ("optimizer", "lr", "batch", "decay")


def naive_correlation(
    table: Table,
    mediator: str = "log_sharpness",
    outcome: str = "test_error",
    sesoi: float = 0.15,
    level: float = LEVEL,
) -> Verdict:
    """Return the verdict of Spearman's correlation over all runs, as if they were independent.

        tanh(artanh ρ ± z/√(N − 3)), ranks taken within each task and put together

    It is here to be fooled: any setting that moves both columns makes it say "supported".

    References:
        Fisher (1921), Metron 1, 3–32 (the artanh interval).
    """
    ranks = {column: _ranks_by_task(table, column) for column in (mediator, outcome)}
    rho = float(np.corrcoef(ranks[mediator], ranks[outcome])[0, 1])
    half = float(special.ndtri((1 + level) / 2)) / math.sqrt(len(table[outcome]) - 3)
    center = math.atanh(rho)
    return verdict(Interval(rho, math.tanh(center - half), math.tanh(center + half)), sesoi, 1)


def strong_instruments(
    table: Table,
    mediator: str = "log_sharpness",
    outcome: str = "test_error",
    axes: Sequence[str] = AXES,
) -> list[Instrument]:
    """Return the slope by each axis on each task, without those that do not move the mediator.

    A stratum holds all other axes and the seed, so that what a seed does to all configurations
    alike is removed. Each axis is taken as categories: no form of its effect is supposed.
    """
    found = []
    for task in np.unique(table["task"]):
        rows = {name: column[table["task"] == task] for name, column in table.items()}
        for axis in axes:
            held = [rows[name] for name in (*axes, "seed") if name != axis]
            slope = instrument_slope(
                f"{axis} on task {task}",
                rows[axis].astype(str),
                rows[mediator],
                rows[outcome],
                strata=held,
            )
            if isinstance(slope, Instrument):
                found.append(slope)
    return found


def one_slope(
    table: Table,
    mediator: str = "log_sharpness",
    outcome: str = "test_error",
    axes: Sequence[str] = AXES,
    sesoi: float = 0.5,
    most_i_squared: float = 0.5,
    alpha: float = 0.05,
) -> Verdict:
    """Return whether the mediator moves the outcome by one slope, whichever setting moved it.

    1. Fewer than two instruments that move the mediator: undecided.
    2. Slopes that surely differ (I² > `most_i_squared` and p(Q) < `alpha`), or surely have both
       signs: refuted.
    3. I² > `most_i_squared` without a sure Q: undecided.
    4. Else the verdict of the random-effects slope against `sesoi`, in outcome per unit of the
       mediator, with the expected sign +.

    A true cause is refuted by chance in up to a share `alpha` of the studies. Where runs are few,
    a direct effect can pass for error: count verdicts on a grid with the study's own noise.

    Args:
        table: Columns (N,) by name, `task` and `seed` among them.
        mediator: Column of the mediator.
        outcome: Column of the outcome.
        axes: Columns of the randomized settings.
        sesoi: Smallest slope of interest.
        most_i_squared: I² above which slopes are not one.
        alpha: Level of Q.
    """
    instruments = strong_instruments(table, mediator, outcome, axes)
    if len(instruments) < 2:
        return "undecided"
    pooled = pool_instruments(instruments)
    differ = pooled.i_squared > most_i_squared
    if (differ and pooled.p < alpha) or sign_count(instruments).flips:
        return "refuted"
    return "undecided" if differ else verdict(pooled.random, sesoi, 1)


def _ranks_by_task(table: Table, column: str) -> Array:
    """Ranks of a column within each task, as shares of the task's runs, (N,)."""
    ranks = np.empty(len(table[column]))
    for task in np.unique(table["task"]):
        rows = table["task"] == task
        ranks[rows] = stats.rankdata(table[column][rows]) / rows.sum()
    return ranks


def confusion(
    rule: Rule, worlds: Sequence[str] = tuple(WORLDS), draws: int = 20
) -> dict[str, dict[Verdict, int]]:
    """Count the verdicts of a rule on several draws of each world, zeros included."""
    counts: dict[str, dict[Verdict, int]] = {}
    for world in worlds:
        given = [rule(plant(world, draw)) for draw in range(draws)]
        counts[world] = {verdict: given.count(verdict) for verdict in VERDICTS}
    return counts
