"""Which property of a solution goes along with its error, at one training loss?

Correlation only: `one_slope` asks what moves the error.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from optbench.statistics import (
    granulated_kendall,
    kendall_tau,
    sign_error,
)
from optbench.studies.frame import REFUTED, SUPPORTED, Finding, Hypothesis, Table, length, subset
from optbench.studies.generalization_figures import draw_correlations, draw_scatter
from optbench.studies.generalization_runs import AXES, ERROR, GeneralizationRuns, left_out, measured
from optbench.studies.judging import UNKNOWN, interval_of, judged
from optbench.studies.planted_runs import planted_runs

FLATNESS, FUNCTION = "sharpness", "input_jacobian_test"
DRAWS = 200
LEAST_PAIRS = 5
"""Pairs of runs that an environment of the sign error must have."""


class WhichProperty(GeneralizationRuns):
    """Rank correlations of every measure with the test error, and how stable their signs are."""

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "cause": {"correlates": SUPPORTED, "unstable": REFUTED},
        "proxy": {"function": SUPPORTED},
        "unrelated": {"correlates": REFUTED, "unstable": REFUTED},
        "confounded": {},
    }

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the runs that reached the matched loss."""
        rows = measured(table, (FLATNESS, FUNCTION))
        rules = {
            "correlates": _greatest_psi,
            "unstable": _least_psi,
            "function": _sign_error_saved,
            "within": _within,
        }
        return [
            self._finding(hypothesis, rules[hypothesis.name], rows, left_out(table, rows))
            for hypothesis in self.declaration.hypotheses
        ]

    def _finding(
        self, hypothesis: Hypothesis, rule: Callable[[Table], float], rows: Table, missing: str
    ) -> Finding:
        if length(rows) == 0 or len(np.unique(rows["seed"])) < 2:
            why = "fewer than two seeds came to the matched loss"
            return judged(hypothesis, UNKNOWN, length(rows), why)
        estimate = interval_of(rows, rule, self.declaration.level, DRAWS)
        return judged(hypothesis, estimate, length(rows), missing)

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return planted_runs(world, seed)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw error against the two measures, and every measure's correlation on every task."""
        rows = measured(table, ())
        if not length(rows):
            return
        yield draw_scatter(rows, (FLATNESS, FUNCTION), folder / "error_against_measure")
        names = [name for name in self.measures if name in rows]
        yield draw_correlations(
            {name: {task: psi(of_task, name) for task, of_task in tasks(rows)} for name in names},
            "granulated Ψ with the test error",
            folder / "correlations",
        )


def tasks(rows: Table) -> Iterator[tuple[str, Table]]:
    """Each task with its rows."""
    for task in np.unique(rows["task"]):
        yield str(task), subset(rows, rows["task"] == task)


def psi(rows: Table, measure: str) -> float:
    """Granulated Ψ of a measure with the error, within each seed."""
    known = subset(rows, np.isfinite(rows[measure].astype(float)))
    if length(known) < 2:
        return math.nan
    axes = {axis: known[axis] for axis in AXES}
    fixed = [known["task"], known["seed"]]
    return granulated_kendall(known[measure], known[ERROR], axes, fixed).value


def _greatest_psi(rows: Table) -> float:
    return max(psi(of_task, FLATNESS) for _, of_task in tasks(rows))


def _least_psi(rows: Table) -> float:
    return min(psi(of_task, FLATNESS) for _, of_task in tasks(rows))


def _sign_error_saved(rows: Table) -> float:
    """Worst-environment sign error of λ₁ less that of the function's measure."""
    return _worst(rows, FLATNESS) - _worst(rows, FUNCTION)


def _worst(rows: Table, measure: str) -> float:
    """Sign error in the worst environment: one axis on one task, over all pairs along it."""
    axes = {axis: rows[axis] for axis in AXES}
    fixed, seed = [rows["task"]], [rows["seed"]]
    found = sign_error(
        rows[measure], rows[ERROR], axes, fixed, seed, least_pairs=LEAST_PAIRS
    ).environments
    by_axis: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for environment in found:
        task = str(rows["task"][environment.rows[0]])
        by_axis.setdefault((environment.axis, task), []).append(
            (environment.error, environment.pairs)
        )
    pooled = [
        sum(error * pairs for error, pairs in each) / sum(pairs for _, pairs in each)
        for each in by_axis.values()
    ]
    return max(pooled, default=math.nan)


def _within(rows: Table) -> float:
    """Mean over configurations of Kendall's τ of λ₁ with the error, over seeds."""
    taus = [
        kendall_tau(cell[FLATNESS], cell[ERROR], ties="sign")
        for cell in _cells(rows)
        if length(cell) >= 3
    ]
    return float(np.mean(taus)) if taus else math.nan


def _cells(rows: Table) -> Iterator[Table]:
    columns = zip(*(rows[axis] for axis in ("task", *AXES)), strict=True)
    labels = np.array(["|".join(map(str, c)) for c in columns])
    for label in np.unique(labels):
        yield subset(rows, labels == label)
