"""The runs that the studies of generalization share: a grid of settings, stopped at one loss."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from optbench import lab, metrics
from optbench.boundary.counting import counted
from optbench.lab.matching import at_loss
from optbench.lab.measures import definitions
from optbench.studies.frame import Cell, Declaration, Size, Table, length, six_digits, subset
from optbench.studies.measured_once import measured_once

AXES = ("optimizer", "lr", "batch")
"""Factors that are randomized: settings of the training."""

ERROR = "error"
"""Column of the test error at the matched loss, in percentage points."""


@dataclass(frozen=True)
class Problem:
    """A task of the grid.

    Attributes:
        words: Overrides.
        loss: Training loss at which the runs are compared.
        rate: Factor on the learning rates of all optimizers.
        batches: Batch sizes, a small and a large one.
    """

    words: Sequence[str]
    loss: float
    rate: float
    batches: Sequence[int]


class GeneralizationRuns:
    """Tasks x optimizers x scales of lr x batch sizes x seeds, each stopped at a training loss.

    Each run keeps checkpoints at three losses; the measures and the test error are interpolated in
    log loss between them, so that all runs are compared at the same training loss.

    Args:
        declaration: What is declared; `sizes` has tasks, optimizers, scales, seeds, steps.
        tasks: {name: fields of `Problem`}.
        optimizers: {name: overrides}.
        common: Overrides of all runs.
        above: Factors on the matched loss at which the earlier checkpoints are kept, falling.
        measures: Names of the measures, see `optbench.lab.measure`.
    """

    def __init__(
        self,
        declaration: Declaration,
        tasks: Mapping[str, Mapping[str, Any]],
        optimizers: Mapping[str, Sequence[str]],
        common: Sequence[str],
        above: Sequence[float],
        measures: Sequence[str],
    ) -> None:
        self.declaration = declaration
        self.tasks = {name: Problem(**fields) for name, fields in tasks.items()}
        self.optimizers, self.common = optimizers, common
        self.above, self.measures = above, measures

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size."""
        return list(self._cells(self.declaration.sizes[size]))

    def _cells(self, grid: Mapping[str, Any]) -> Iterator[Cell]:
        for task, optimizer, scale in product(grid["tasks"], grid["optimizers"], grid["scales"]):
            problem = self.tasks[task]
            keep = [round(problem.loss * factor, 6) for factor in (*self.above, 1.0)]
            for batch, seed in product(problem.batches, range(1, 1 + grid["seeds"])):
                command = (
                    *problem.words,
                    *self.optimizers[optimizer],
                    *self.common,
                    f"optimizer.scale={scale * problem.rate:g}",
                    f"batch_size={batch}",
                    f"seed={seed}",
                    f"steps={grid['steps']}",
                    "stop.metric=train/loss",
                    f"stop.below={problem.loss}",
                    f"keep=[{','.join(map(str, keep))}]",
                )
                factors = {
                    "task": task,
                    "optimizer": optimizer,
                    "lr": f"x{scale:g}",
                    "batch": str(batch),
                    "seed": seed,
                }
                yield Cell(factors, command)

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """One row: the factors, how the run ended, and everything at the matched loss."""
        loss = self.tasks[cell.factors["task"]].loss
        settings = [loss, list(self.above), list(self.measures), definitions()]
        row = measured_once(folder, "matched", settings, lambda: self._matched(folder, loss))
        return [dict(cell.factors) | row]

    def _matched(self, folder: Path, loss: float) -> dict[str, Any]:
        run = lab.open(folder)
        row: dict[str, Any] = {"steps": run.summary["step"], "reached": 0.0}
        if run.status != "done" or not run.summary.get("stopped"):
            row["diverged"] = float(run.status == "diverged")
            return row
        loss_at, error_at = (
            dict(zip(*(x.tolist() for x in run.series(name)), strict=True))
            for name in (metrics.TRAIN_LOSS, metrics.TEST_ERROR)
        )
        errors = [(loss_at[step], 100 * error_at[step]) for step in run.kept]
        matched_values = lab.match(run, loss, self.measures) | {ERROR: at_loss(errors, loss)}
        for name, matched in matched_values.items():
            row[name] = six_digits(matched.value)
            if not math.isnan(matched.error):
                row[f"{name}_bend"] = float(f"{matched.error:.2g}")
        return row | {"reached": 1.0, "diverged": 0.0}


def measured(table: Table, names: Sequence[str]) -> Table:
    """The runs that came to the matched loss, with a finite value of each of these measures."""
    if "reached" not in table or ERROR not in table:
        return {}
    mask = (table["reached"] == 1) & np.isfinite(table[ERROR])
    for name in names:
        mask &= np.isfinite(table[name]) if name in table else False
    return subset(table, mask)


def left_out(table: Table, rows: Table) -> str:
    """Say how many runs a finding does not rest on, and why."""
    total, diverged = length(table), int(np.nansum(table.get("diverged", np.zeros(0))))
    late = total - int(np.nansum(table.get("reached", np.zeros(0)))) - diverged
    past = total - diverged - late - length(rows)
    parts = (
        (diverged, "diverged"),
        (late, "did not come to the matched loss in time"),
        (past, "passed all kept losses between two measurements"),
    )
    said = [f"{count} {what}" for count, what in parts if count]
    return f"Of {counted(total, 'run')} {', '.join(said)}." if said else ""
