"""Sharpness at one training loss, by width, depth, normalization, label noise and inputs.

Exponents are slopes of log λ₁ on the log of the setting, by least squares with a level for each
task. All comparisons are at one loss, on paths far below the edge.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from optbench import lab, metrics
from optbench.boundary.counting import counted
from optbench.studies.figures import draw_curves
from optbench.studies.frame import (
    REFUTED,
    SUPPORTED,
    Cell,
    Declaration,
    Finding,
    Size,
    Table,
    columns,
    length,
    six_digits,
    subset,
)
from optbench.studies.judging import interval_of, judged
from optbench.studies.measured_once import measured_once

MEASURES = ("sharpness", "lr_preconditioned_sharpness")
RATE = "progressive_sharpening"
STANDARD_WIDTH, STANDARD_DEPTH, NORM_DEPTH = 64, 2, 3
NOISE_EXAMPLES = 100
DRAWS = 1000


class Architecture:
    """One setting at a time, from a two-layer network of width 64; each run stopped at a loss.

    Args:
        declaration: What is declared; `sizes` has tasks, widths, depths, seeds, steps.
        loss: Training loss at which runs are compared.
        above: Factors on it at which the earlier checkpoints are kept, falling.
        examples: Number of training examples.
        tasks: {name: overrides}.
        common: Overrides of all runs.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "all_true": dict.fromkeys(
            ("width_standard", "width_mup", "depth", "layer_norm", "batch_norm", "label_noise"),
            SUPPORTED,
        )
        | {"rate": SUPPORTED},
        "nothing": dict.fromkeys(
            ("width_standard", "width_mup", "depth", "layer_norm", "batch_norm", "label_noise"),
            REFUTED,
        )
        | {"rate": REFUTED},
        # raw λ₁ under μP rises with width, the preconditioned one does not
        "raw_mup": {"width_mup": REFUTED, "width_standard": SUPPORTED},
        # the truth is an exponent of .4; half of the widest runs began beyond the edge, and so are
        # flat
        "catapult": {"width_standard": SUPPORTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        loss: float,
        above: Sequence[float],
        examples: int,
        tasks: Mapping[str, Sequence[str]],
        common: Sequence[str],
    ) -> None:
        self.declaration, self.loss, self.above = declaration, loss, above
        self.examples, self.tasks, self.common = examples, tasks, common

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size."""
        grid = self.declaration.sizes[size]
        return [
            self._cell(task, arm, level, words, seed, grid["steps"])
            for task in grid["tasks"]
            for arm, level, words in self._arms(task, grid)
            for seed in grid["seeds"]
        ]

    def _arms(
        self, task: str, grid: Mapping[str, Any]
    ) -> Iterator[tuple[str, float, Sequence[str]]]:
        """(arm, level, overrides) of each setting on a task."""
        base = (f"task.train_size={self.examples}",)
        for width in grid["widths"]:
            words = (*base, _widths(width, STANDARD_DEPTH))
            yield "width", width, words
            yield "mup", width, (*words, "model.scaling=mup_sgd")
        for depth in grid["depths"]:
            yield "depth", depth, (*base, _widths(STANDARD_WIDTH, depth))
        for level, norm in enumerate(("none", "layer", "batch")):
            words = (*base, _widths(STANDARD_WIDTH, NORM_DEPTH))
            yield "norm", level, (*words, f"model.norm={norm}") if level else words
        if task == "digits":
            few = (f"task.train_size={NOISE_EXAMPLES}", _widths(STANDARD_WIDTH, STANDARD_DEPTH))
            for noise in (0, 0.5, 1):
                yield "noise", noise, (*few, f"task.label_noise={noise:g}")
            for level, kind in enumerate(("none", "standard")):
                words = (*base, _widths(STANDARD_WIDTH, STANDARD_DEPTH))
                yield "inputs", level, (*words, f"task.normalise={kind}") if level else words

    def _cell(
        self, task: str, arm: str, level: float, words: Sequence[str], seed: int, steps: int
    ) -> Cell:
        keep = [round(self.loss * factor, 6) for factor in (*self.above, 1.0)]
        command = (
            *self.tasks[task],
            *self.common,
            *words,
            f"seed={seed}",
            f"steps={steps}",
            "stop.metric=train/loss",
            f"stop.below={self.loss:g}",
            f"keep=[{','.join(map(str, keep))}]",
        )
        return Cell({"task": task, "arm": arm, "level": level, "seed": seed}, command)

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """One row: λ₁ at the matched loss, raw and preconditioned, and the sharpening rate."""
        settings = [self.loss, list(self.above), "1"]
        row = measured_once(folder, "architecture", settings, lambda: self._matched(folder))
        return [dict(cell.factors) | row]

    def _matched(self, folder: Path) -> dict[str, Any]:
        run = lab.open(folder)
        if run.status != "done" or not run.summary.get("stopped"):
            return {"reached": 0.0, "diverged": float(run.status == "diverged")}
        optimizer = run.config.optimizer
        # the threshold of the lr-preconditioned λ₁, whatever the layers' rates
        edge = 2 * (1 + optimizer.momentum) / optimizer.lr
        matched = lab.match(run, self.loss, MEASURES)
        rate = lab.measure(run, [RATE])[RATE]
        row = {name: six_digits(matched[name].value) for name in MEASURES}
        start = float(run.series(metrics.SHARPNESS)[1][0])
        return {
            "reached": 1.0,
            "diverged": 0.0,
            "steps": run.summary["step"],
            "start_distance": six_digits(start / edge),
            **row,
            RATE: six_digits(rate.value),
        }

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the runs that came to the loss from below the edge."""
        rules: Mapping[str, tuple[str, Callable[[Table], float]]] = {
            "width_standard": ("width", lambda rows: exponent(rows, "sharpness")),
            "width_mup": ("mup", lambda rows: exponent(rows, "lr_preconditioned_sharpness")),
            "depth": ("depth", lambda rows: exponent(rows, "sharpness")),
            "layer_norm": ("norm", lambda rows: _rise(rows, 1)),
            "batch_norm": ("norm", lambda rows: _rise(rows, 2)),
            "label_noise": ("noise", lambda rows: _rise(rows, 1)),
            "rate": ("noise", lambda rows: difference(rows, rows[RATE], 1)),
            "spectrum": ("inputs", lambda rows: _rise(rows, 1)),
        }
        rows, why = usable(table)
        found = []
        for hypothesis in self.declaration.hypotheses:
            arm, rule = rules[hypothesis.name]
            of_arm = subset(rows, rows["arm"] == arm) if length(rows) else rows
            estimate = interval_of(of_arm, rule, self.declaration.level, DRAWS, method="bca")
            found.append(judged(hypothesis, estimate, length(of_arm), why))
        return found

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        rng = np.random.default_rng([seed, list(self.worlds).index(world)])
        return columns(list(_planted_rows(world, self, rng)))

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw λ₁ against width and depth, and against everything else."""
        rows, _ = usable(table)
        if not length(rows):
            return
        panels = {
            "width, standard": _curves(rows, "width", "sharpness"),
            "width, μP (preconditioned)": _curves(rows, "mup", "lr_preconditioned_sharpness"),
            "width, μP (raw)": _curves(rows, "mup", "sharpness"),
            "depth": _curves(rows, "depth", "sharpness"),
        }
        label = f"λ₁ at ½-MSE {self.loss:g}"
        yield draw_curves(panels, "width, or number of layers", label, folder / "shape", log="xy")
        panels = {
            "norm (none, layer, batch)": _curves(rows, "norm", "sharpness"),
            "label noise": _curves(rows, "noise", "sharpness"),
            "inputs (raw, standardised)": _curves(rows, "inputs", "sharpness"),
        }
        yield draw_curves(panels, "setting", label, folder / "data_and_norm", log="y")
        rates = {"label noise": _curves(rows, "noise", RATE)}
        yield draw_curves(rates, "share of random labels", "d log λ₁ / d log(1/L)", folder / "rate")


def _widths(width: int, depth: int) -> str:
    return f"model.widths=[{','.join([str(width)] * depth)}]"


def usable(table: Table) -> tuple[Table, str]:
    """The runs that came to the loss and did not start beyond the edge; and what was left out."""
    if "start_distance" not in table:
        return {}, "no run came to the loss"
    reached = table["reached"] == 1
    below = reached & (table["start_distance"] < 1) & np.isfinite(table["sharpness"])
    late, beyond = int((~reached).sum()), int((reached & ~below).sum())
    counts = ((late, "did not come to the loss"), (beyond, "began beyond their edge"))
    parts = [f"{count} {what}" for count, what in counts if count]
    return subset(
        table, below
    ), f"Of {counted(length(table), 'run')} {', '.join(parts)}." if parts else ""


def exponent(rows: Table, measure: str) -> float:
    """Mean over tasks of the least-squares slope of log measure on log level."""
    slopes = []
    for task in np.unique(rows["task"]):
        of_task = subset(rows, rows["task"] == task)
        x, y = np.log(of_task["level"]), np.log(of_task[measure])
        x = x - x.mean()
        spread = float(x @ x)
        slopes.append(float(x @ y) / spread if spread > 0 else math.nan)
    return float(np.mean(slopes))


def _rise(rows: Table, level: float) -> float:
    return difference(rows, np.log(rows["sharpness"]), level)


def difference(rows: Table, values: Any, level: float) -> float:
    """Mean over tasks of the mean at a level less that at level 0."""
    found = []
    for task in np.unique(rows["task"]):
        of_task = rows["task"] == task
        with_it, without = (values[of_task & (rows["level"] == at)] for at in (level, 0))
        known = len(with_it) and len(without)
        found.append(float(np.mean(with_it) - np.mean(without)) if known else math.nan)
    return float(np.mean(found))


def _curves(rows: Table, arm: str, measure: str) -> dict[str, tuple[Any, Any]]:
    """Geometric mean over seeds (arithmetic, of a rate) against the level, a curve a task."""
    curves = {}
    for task in np.unique(rows["task"]):
        of_task = subset(rows, (rows["task"] == task) & (rows["arm"] == arm))
        levels = np.unique(of_task["level"])
        if not len(levels):
            continue
        values = [of_task[measure][of_task["level"] == level] for level in levels]
        means = [np.mean(v) if measure == RATE else np.exp(np.mean(np.log(v))) for v in values]
        curves[str(task)] = (levels, np.array(means))
    return curves


def _planted_rows(
    world: str, study: Architecture, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Log λ₁ = level of the task + effect of the setting + noise of .15 a run."""
    true = 0.0 if world == "nothing" else 1.0
    wide = max(study.declaration.sizes["small"]["widths"])
    for cell in study.plan("small"):
        f = cell.factors
        size = math.log(f["level"] / STANDARD_WIDTH) if f["arm"] in ("width", "mup") else 0.0
        effect = {
            "width": 0.4 * size,
            "mup": 0.0 if world == "raw_mup" else 0.4 * size,
            "depth": 0.4 * math.log(f["level"] or 1),
            "norm": -0.8 * (f["level"] > 0),
            "noise": 0.8 * f["level"],
            "inputs": 0.8 * f["level"],
        }[f["arm"]]
        noise = 0.15 * rng.normal()
        raw = 0.5 * size if f["arm"] == "mup" else 0.0
        thrown = world == "catapult" and f["arm"] == "width" and f["level"] == wide
        thrown = thrown and rng.random() < 0.5
        log_sharpness = 2 + true * effect + noise - (2.0 if thrown else 0.0)
        yield {
            **f,
            "reached": 1.0,
            "diverged": 0.0,
            "start_distance": 1.5 if thrown else 0.05,
            "sharpness": math.exp(log_sharpness + raw),
            "lr_preconditioned_sharpness": math.exp(log_sharpness),
            RATE: true * 0.8 * f["level"] * (f["arm"] == "noise") + 0.1 * rng.normal(),
        }
