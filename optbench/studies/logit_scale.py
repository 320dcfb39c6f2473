"""How much of the late fall of sharpness goes with the scale of the outputs?

With s_t the root mean square of the training outputs f at step t, and p the step at which λ₁ is
greatest, the rescaled sharpness is that of a network whose outputs have kept their scale of then:

    λ₁ of ∇² mean ℓ(f·s_p/s_t, y),  the factor held constant;    at p it is λ₁ itself

    share = 1 − (log rescaled λ₁(T) − log λ₁(p)) / (log λ₁(T) − log λ₁(p)),    T the last step

1 if all of the fall goes with the scale, 0 if none does.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from optbench import lab
from optbench.boundary.counting import agreeing, counted
from optbench.curvature import Loss, top_eigenpairs
from optbench.lab.point import ACCURACY, Point
from optbench.studies.figures import draw_curves
from optbench.studies.frame import (
    REFUTED,
    SUPPORTED,
    Cell,
    Declaration,
    Finding,
    Hypothesis,
    Size,
    Table,
    columns,
    length,
    six_digits,
    subset,
)
from optbench.studies.judging import interval_of, judged
from optbench.studies.measured_once import measured_once

FALL = 0.5
"""Least fall of log λ₁, in nats, of which a share is taken."""

EARLY = 3
"""Place among the kept steps of the scale to compare with where there is no peak to fall from."""

DRAWS = 1000
SMALLEST = 1e-12
"""A λ₁ below this is rounding, and has no logarithm."""


class LogitScale:
    """Tasks x losses x optimizers x seeds, each kept at several steps.

    Args:
        declaration: What is declared; `sizes` has tasks, losses, optimizers, seeds, kept.
        tasks: {name: overrides}.
        optimizers: {name: overrides}.
        common: Overrides of all runs.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "scale": {"fall": SUPPORTED, "logits": SUPPORTED, "mse": REFUTED},
        "margin": {"fall": SUPPORTED, "logits": REFUTED, "mse": REFUTED},
        "half": {"fall": SUPPORTED, "logits": REFUTED},
        "no_fall": {"fall": REFUTED},
        "mse_too": {"fall": SUPPORTED, "mse": SUPPORTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        tasks: Mapping[str, Sequence[str]],
        optimizers: Mapping[str, Sequence[str]],
        common: Sequence[str],
    ) -> None:
        self.declaration, self.tasks = declaration, tasks
        self.optimizers, self.common = optimizers, common

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size."""
        grid = self.declaration.sizes[size]
        kept = grid["kept"]
        cells = []
        for task, loss, optimizer, seed in product(
            grid["tasks"], grid["losses"], grid["optimizers"], grid["seeds"]
        ):
            command = (
                *self.tasks[task],
                f"task.loss={loss}",
                *self.optimizers[optimizer],
                *self.common,
                f"seed={seed}",
                f"steps={kept[-1]}",
                f"keep_steps=[{','.join(map(str, kept[:-1]))}]",
            )
            factors = {"task": task, "loss": loss, "optimizer": optimizer, "seed": seed}
            cells.append(Cell(factors, command))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """A row for each step that was kept."""
        found = measured_once(
            folder, "logits", [EARLY, "2"], lambda: {"rows": rescaled(lab.open(folder))}
        )
        return [dict(cell.factors) | row for row in found["rows"]]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules, a row a run."""
        runs = ends(table)
        rules = {"fall": ("ce", "fall"), "logits": ("ce", "share"), "mse": ("mse", "since_early")}
        found = []
        for hypothesis in self.declaration.hypotheses:
            loss, column = rules[hypothesis.name]
            rows = subset(runs, runs["loss"] == loss) if length(runs) else runs
            why = ""
            if column == "share" and length(rows):
                some = rows["fall"] < -FALL
                none = int((~some).sum())
                why = (
                    f"{none} of {counted(length(rows), 'run')} {agreeing(none, 'has', 'have')} no "
                    "fall to explain."
                )
                rows = subset(rows, some)
            found.append(self._finding(hypothesis, rows, column, why))
        return found

    def _finding(self, hypothesis: Hypothesis, rows: Table, column: str, why: str) -> Finding:
        shift = 0.5 if column == "share" else 0.0

        def statistic(some: Table) -> float:
            return float(np.mean(some[column])) - shift

        estimate = interval_of(rows, statistic, self.declaration.level, DRAWS, method="bca")
        return judged(hypothesis, estimate, length(rows), why)

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        rng = np.random.default_rng([seed, list(self.worlds).index(world)])
        return columns(list(_planted_rows(world, self, rng)))

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw λ₁ and rescaled λ₁ over the steps, and the scale of the outputs."""
        known = subset(table, np.isfinite(table["sharpness"])) if "sharpness" in table else {}
        if not length(known):
            return
        panels: dict[str, dict[str, tuple[Any, Any]]] = {}
        scales: dict[str, dict[str, tuple[Any, Any]]] = {}
        for task, loss in product(np.unique(known["task"]), np.unique(known["loss"])):
            of = subset(known, (known["task"] == task) & (known["loss"] == loss))
            panel = f"{task}, {loss}"
            scale: dict[str, tuple[Any, Any]] = {}
            panels[panel] = {}
            for optimizer in np.unique(of["optimizer"]):
                rows = subset(of, of["optimizer"] == optimizer)
                panels[panel][f"λ₁, {optimizer}"] = _mean_curve(rows, "sharpness")
                panels[panel][f"rescaled λ₁, {optimizer}"] = _mean_curve(rows, "rescaled")
                scale[str(optimizer)] = _mean_curve(rows, "scale")
            scales[panel] = scale
        yield draw_curves(panels, "step (optimizer updates)", "λ₁", folder / "sharpness", log="xy")
        label = "root mean square of the outputs"
        yield draw_curves(scales, "step (optimizer updates)", label, folder / "scale", log="xy")


def rescaled(run: lab.Run) -> list[dict[str, Any]]:
    """Steps, λ₁, the outputs' scale and the rescaled λ₁ of a run, from the first kept step on.

    Before the greatest λ₁ the rescaled one is left out: it is about the fall. The last row also has
    λ₁ at the scale of an early step, for losses under which λ₁ does not fall.
    """
    if run.status != "done":
        return [{"step": run.summary.get("step", 0), "diverged": 1.0}]
    points = {step: run.at(step).point() for step in run.kept}
    sharpness = {step: float(point.top.values[0]) for step, point in points.items()}
    peak = max(sharpness, key=lambda step: sharpness[step])
    rows = []
    for step, point in points.items():
        row: dict[str, Any] = {"step": step, "diverged": 0.0}
        row |= {"sharpness": six_digits(sharpness[step]), "scale": six_digits(point.logit_scale)}
        if step == peak:
            row["rescaled"] = row["sharpness"]
        elif step > peak:
            row["rescaled"] = six_digits(scaled_sharpness(point, points[peak].logit_scale))
        rows.append(row)
    early = points[run.kept[min(EARLY, len(run.kept) - 1)]]
    rows[-1]["from_early"] = six_digits(scaled_sharpness(points[run.kept[-1]], early.logit_scale))
    return rows


def scaled_sharpness(point: Point, scale: float) -> float:
    """λ₁ of ∇² mean ℓ(f·scale/s, y), s the outputs' root mean square, the factor held constant."""
    factor = scale / point.logit_scale

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return point.task.loss(outputs * factor, targets)

    data = (point.train.inputs, point.train.targets)
    hessian = Loss(point.model, criterion, data, weight=point.task.weight).hessian()
    return float(top_eigenpairs(hessian, 1, accuracy=ACCURACY, seed=point.seed).values[0])


def ends(table: Table) -> Table:
    """A row a run: the fall of log λ₁ from its peak, the share of the scale, what it did since."""
    if "sharpness" not in table:
        return {}
    runs: dict[tuple[Any, ...], list[tuple[float, ...]]] = {}
    keys = zip(*(table[name] for name in ("task", "loss", "optimizer", "seed")), strict=True)
    names = ("step", "sharpness", "rescaled", "from_early")
    values = zip(*(table[name] for name in names), strict=True)
    for key, row in zip(keys, values, strict=True):
        runs.setdefault(tuple(key), []).append(row)
    rows = []
    for (task, loss, optimizer, seed), steps in runs.items():
        after = [row for row in sorted(steps) if row[1] > SMALLEST and row[2] > SMALLEST]
        if not after:
            continue
        peak, last = after[0], after[-1]
        fall = math.log(last[1] / peak[1])
        by_scale, since_early = math.log(last[1] / last[2]), math.log(last[1] / last[3])
        factors = {"task": task, "loss": loss, "optimizer": optimizer, "seed": seed}
        share = by_scale / fall if fall else math.nan
        rows.append(factors | {"fall": fall, "since_early": since_early, "share": share})
    return columns(rows)


def _mean_curve(rows: Table, column: str) -> tuple[Any, Any]:
    """Geometric mean over seeds at each step."""
    steps, means = [], []
    for step in np.unique(rows["step"]):
        values = rows[column][rows["step"] == step]
        if np.isfinite(values).all() and (values > 0).all():
            steps.append(step)
            means.append(float(np.exp(np.log(values).mean())))
    return np.array(steps), np.array(means)


def _planted_rows(
    world: str, study: LogitScale, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """λ₁ rises to its peak at the fourth step and falls by 3 nats, by what the world says."""
    kept = study.declaration.sizes["small"]["kept"]
    share = {"scale": 0.9, "margin": 0.0, "half": 0.5, "no_fall": 0.9, "mse_too": 0.9}[world]
    for cell in study.plan("small"):
        falls = world == "mse_too" or cell.factors["loss"] == "ce"
        depth = 0.2 if world == "no_fall" or not falls else 3.0
        depth *= rng.uniform(0.8, 1.2)
        own = min(1.0, max(0.0, share + 0.08 * rng.normal())) if falls else 0.0
        for i, step in enumerate(kept):
            along = max(0, i - 3) / (len(kept) - 4)
            row = {"step": step, "diverged": 0.0, "scale": 1.0}
            row["sharpness"] = 10 * math.exp(-0.3 * max(0, 3 - i) - depth * along)
            if i >= 3:
                row["rescaled"] = row["sharpness"] * math.exp(depth * own * along)
            if i == len(kept) - 1:
                row["from_early"] = row["rescaled"] * math.exp(0.05 * rng.normal())
            yield dict(cell.factors) | row
