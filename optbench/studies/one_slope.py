"""Does a measure move the error by one slope, whichever setting of the training moved it?"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy import optimize, stats

from optbench.boundary.counting import agreeing, counted
from optbench.intervals import Interval
from optbench.statistics import Instrument, instrument_slope, pool, verdict
from optbench.studies.frame import REFUTED, SUPPORTED, Finding, Table, length, subset
from optbench.studies.generalization_figures import draw_slopes
from optbench.studies.generalization_runs import ERROR, GeneralizationRuns, left_out, measured
from optbench.studies.judging import UNKNOWN
from optbench.studies.planted_runs import planted_runs

FLATNESS, FUNCTION = "sharpness", "input_jacobian_test"
MIDDLE = 0.75
"""I² from which on heterogeneity is called considerable (Higgins et al. 2003,
doi:10.1136/bmj.327.7414.557); at one half, slopes that do agree could not be told to: the interval
of I² is too wide with a dozen instruments a task."""


class OneSlope(GeneralizationRuns):
    """Wald slopes of error on log measure by optimizer, lr and batch, on each task."""

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "cause": {"flatness": REFUTED},
        "proxy": {"flatness": SUPPORTED, "function": SUPPORTED},
        "confounded": {"flatness": SUPPORTED, "function": REFUTED},
        "direct_effect": {"flatness": SUPPORTED},
        "unrelated": {"flatness": REFUTED, "function": SUPPORTED},
    }

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the runs that reached the matched loss."""
        rows = measured(table, (FLATNESS, FUNCTION))
        measures = {"flatness": FLATNESS, "function": FUNCTION}
        found = []
        for hypothesis in self.declaration.hypotheses:
            name = measures[hypothesis.name]
            estimate, why = heterogeneity(rows, name, self.declaration.level)
            shifted = Interval(*(x - MIDDLE for x in (estimate.value, estimate.low, estimate.high)))
            said = verdict(shifted, hypothesis.sesoi, hypothesis.sign)
            why = f"{left_out(table, rows)} {why}".strip()
            found.append(Finding(hypothesis.name, shifted, said, length(rows), why))
        return found

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return planted_runs(world, seed)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the slope of each instrument, for both measures."""
        rows = measured(table, (FLATNESS, FUNCTION))
        slopes = {name: _by_task(instruments(rows, name)) for name in (FLATNESS, FUNCTION)}
        if any(slopes.values()):
            yield draw_slopes(slopes, "test error, pp per e-fold of the measure", folder / "slopes")


def instruments(rows: Table, measure: str) -> list[Instrument]:
    """Slope of the error on the log of a measure, by each setting that surely moves it."""
    if not length(rows):
        return []
    positive = subset(rows, rows[measure] > 0)
    table = {**positive, "log": np.log(positive[measure].astype(np.float64))}
    found = []
    for task in np.unique(table["task"]):
        of_task = subset(table, table["task"] == task)
        found += _strong(of_task, "optimizer", ("lr", "batch", "seed"), f"optimizer on {task}")
        for optimizer in np.unique(of_task["optimizer"]):
            rows_of = subset(of_task, of_task["optimizer"] == optimizer)
            for setting, held in (("lr", ("batch", "seed")), ("batch", ("lr", "seed"))):
                found += _strong(rows_of, setting, held, f"{setting} of {optimizer} on {task}")
    return found


def _by_task(found: Sequence[Instrument]) -> dict[str, list[tuple[str, float, float]]]:
    """{task: [(setting, slope, standard error), …]}."""
    by_task: dict[str, list[tuple[str, float, float]]] = {}
    for instrument in found:
        setting, _, task = instrument.name.rpartition(" on ")
        by_task.setdefault(task, []).append((setting, instrument.slope, instrument.error))
    return by_task


def _strong(rows: Table, setting: str, held: Sequence[str], name: str) -> list[Instrument]:
    """The instrument of one setting, the columns `held` being held; none where it is weak."""
    try:
        slope = instrument_slope(
            name,
            rows[setting].astype(str),
            rows["log"],
            rows[ERROR],
            strata=[rows[column] for column in held],
        )
    except ValueError:  # the setting does not vary among the runs that came to the loss
        return []
    return [slope] if isinstance(slope, Instrument) and slope.error > 0 else []


def heterogeneity(rows: Table, measure: str, level: float) -> tuple[Interval, str]:
    """Return I² of the slopes within tasks, with its interval, and what to say of them.

        Q = Σ over tasks of Q_t,  d = Σ (K_t − 1),  I² = λ/(λ + d) with Q ~ χ²_d(λ)

    Slopes are compared within a task alone: on another task the error has another scale.

    References:
        Higgins & Thompson (2002), doi:10.1002/sim.1186, for I²; its interval is that of the
        noncentrality λ of Q.
    """
    found = instruments(rows, measure)
    by_task: dict[str, list[Instrument]] = {}
    for instrument in found:
        by_task.setdefault(instrument.name.rpartition(" on ")[2], []).append(instrument)
    q, degrees = 0.0, 0
    for each in by_task.values():
        if len(each) > 1:
            pooled = pool([i.slope for i in each], [i.error for i in each], level)
            q, degrees = q + pooled.q, degrees + pooled.degrees
    strong = (
        f"{counted(len(found), 'setting')} surely {agreeing(len(found), 'moves', 'move')} "
        f"{measure.replace('_', ' ')}"
    )
    if not degrees:
        return UNKNOWN, f"{strong}: no two of one task to compare"
    ends = [_share(_noncentrality(q, degrees, p), degrees) for p in _tails(level)]
    value = _share(max(0.0, q - degrees), degrees)
    slopes = "; ".join(f"{i.name} {i.slope:+.2g} ± {1.96 * i.error:.1g}" for i in found)
    return Interval(value, *ends), f"{strong}. Slopes, pp per e-fold: {slopes}."


def _tails(level: float) -> tuple[float, float]:
    return (1 + level) / 2, (1 - level) / 2


def _share(noncentrality: float, degrees: int) -> float:
    return noncentrality / (noncentrality + degrees)


def _noncentrality(q: float, degrees: int, p: float) -> float:
    """The λ at which P(χ²_d(λ) ≤ q) = p; 0 where even λ = 0 has less."""
    if stats.chi2.cdf(q, degrees) <= p:
        return 0.0

    def above(noncentrality: float) -> float:
        return float(stats.ncx2.cdf(q, degrees, noncentrality)) - p

    return float(optimize.brentq(above, 1e-12, 4 * q + 50.0))
