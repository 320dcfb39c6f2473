"""How much of SAM's gain is left at one training loss, at one logit scale, and against a control?

The other half of `flatness_causal`: there a network is made sharper by hand, here SAM makes it
flatter. SAM and SGD are compared after as many updates, at one training loss, and at one training
loss of the outputs brought to one scale.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from optbench import lab, metrics
from optbench.lab import per_example
from optbench.lab.matching import at_loss
from optbench.studies.figures import draw_forest
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
    rounded,
    subset,
)
from optbench.studies.judging import UNKNOWN, interval_of, judged, mean_of_values
from optbench.studies.measured_once import measured_once

SGD, SAM, SHAM = "sgd", "sam", "sham"
UPDATES, LOSS, SCALED = "error_at_updates", "error_at_loss", "error_at_scaled_loss"
FULL = "full"
DRAWS = 500


class SamGain:
    """SGD, SAM and its control, x ρ x batch x tasks x seeds, each run for as many updates.

    Args:
        declaration: What is declared; `sizes` has tasks, batches, rhos, seeds, first_seed, steps.
        tasks: {name: {words, lr, loss, scaled_loss}}: overrides, learning rate, and the two
            training losses that are matched.
        common: Overrides of all runs.
        keep: Training losses at which a checkpoint is kept, to measure the scaled loss at.
        scale: Root mean square of the centred outputs at which the scaled loss is measured.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "kept": {
            "gains": SUPPORTED,
            "shrinks": REFUTED,
            "shrinks_scaled": REFUTED,
            "beyond_sham": SUPPORTED,
        },
        # SAM is ahead where it stops, and at one loss it is not
        "another loss": {
            "gains": REFUTED,
            "shrinks": SUPPORTED,
            "shrinks_scaled": SUPPORTED,
            "beyond_sham": REFUTED,
        },
        "nothing": {
            "gains": REFUTED,
            "shrinks": REFUTED,
            "shrinks_scaled": REFUTED,
            "beyond_sham": REFUTED,
        },
        "any displacement": {
            "gains": SUPPORTED,
            "shrinks": REFUTED,
            "shrinks_scaled": REFUTED,
            "beyond_sham": REFUTED,
        },
    }

    def __init__(
        self,
        declaration: Declaration,
        tasks: Mapping[str, Mapping[str, Any]],
        common: Sequence[str],
        keep: Sequence[float],
        scale: float,
    ) -> None:
        self.declaration, self.tasks, self.common = declaration, tasks, common
        self.keep, self.scale = keep, scale

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size."""
        grid = self.declaration.sizes[size]
        seeds = range(grid["first_seed"], grid["first_seed"] + grid["seeds"])
        arms = [(SGD, 0.0), *product((SAM, SHAM), grid["rhos"])]
        return [
            self._cell(task, str(batch), arm, rho, seed, grid["steps"])
            for task, batch, (arm, rho), seed in product(
                grid["tasks"], grid["batches"], arms, seeds
            )
        ]

    def _cell(self, task: str, batch: str, arm: str, rho: float, seed: int, steps: int) -> Cell:
        chosen = self.tasks[task]
        command = (
            *chosen["words"],
            *_optimizer(arm, rho, chosen["lr"]),
            *self.common,
            f"batch_size={batch}",
            f"steps={steps}",
            f"keep=[{','.join(map(str, self.keep))}]",
            f"seed={seed}",
        )
        factors = {"task": task, "batch": batch, "optimizer": arm, "rho": rho, "seed": seed}
        return Cell(factors, command)

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """One row: the test error after all updates, at the loss, and at the scaled loss."""
        loss, scaled = (float(self.tasks[cell.factors["task"]][n]) for n in ("loss", "scaled_loss"))
        found = measured_once(
            folder, "sam-gain", [loss, scaled, self.scale], lambda: self._row(folder, loss, scaled)
        )
        return [dict(cell.factors) | found]

    def _row(self, folder: Path, loss: float, scaled: float) -> dict[str, Any]:
        run = lab.open(folder)
        row: dict[str, Any] = {"done": float(run.status == "done")}
        if not row["done"]:
            return row
        losses, errors = run.series(metrics.TRAIN_LOSS)[1], 100 * run.series(metrics.TEST_ERROR)[1]
        kept = [self._scaled(run, step) for step in run.kept]
        row |= {
            UPDATES: float(errors[-1]),
            "loss_at_updates": float(losses[-1]),
            LOSS: at_loss(list(zip(losses.tolist(), errors.tolist(), strict=True)), loss).value,
            SCALED: at_loss(kept, scaled).value,
            "least_scaled_loss": min((value for value, _ in kept), default=math.nan),
        }
        return rounded(row)

    def _scaled(self, run: lab.Run, step: int) -> tuple[float, float]:
        """The scaled training loss and the test error at a step that was kept."""
        point = run.at(step=step).point()
        test, error = point.task.test, point.task.error
        assert test is not None and error is not None, "these tasks have classes and a test split"
        with point.reading() as model:
            outputs = per_example.outputs(model, point.train.inputs)
            tested = per_example.outputs(model, test.inputs)
        return (
            scaled_loss(outputs, point.train.targets, self.scale),
            100 * float(error(tested, test.targets)),
        )

    def judge(self, table: Table) -> list[Finding]:
        """Apply the declared rules to SAM's gains, paired by task, batch and seed."""
        return [self._finding(h, table) for h in self.declaration.hypotheses]

    def _finding(self, hypothesis: Hypothesis, table: Table) -> Finding:
        rows, missing = gains(table)
        why = f"{missing} pairs are left out: a run did not come to its loss." if missing else ""
        value, statistic = RULES[hypothesis.name]
        usable = columns([r for r in rows if math.isfinite(value(r))])
        if not length(usable) or len(np.unique(usable["seed"])) < 3:
            return judged(hypothesis, UNKNOWN, length(usable), why)
        usable = {**usable, "value": np.array([value(r) for r in rows if math.isfinite(value(r))])}
        level = self.declaration.level
        estimate = interval_of(usable, statistic, level, DRAWS, least=3)
        told = "; ".join(
            f"{task}, batch {batch} {part.value:+.2f} [{part.low:+.2f}, {part.high:+.2f}]"
            for (task, batch), part in _by_cell(usable, level)
        )
        return judged(hypothesis, estimate, length(usable), f"{why} {told}.".strip())

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world, as large as that of the size small."""
        return planted(world, seed, self.declaration.sizes["small"])

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the gains of SAM and of its control over SGD, in each of the three comparisons."""
        rows, _ = gains(table)
        level, panels = self.declaration.level, {}
        for title, name in TITLES.items():
            found = []
            for (arm, task, batch, rho), group in _grouped(rows).items():
                part = columns([{**r, "value": r[name]} for r in group if math.isfinite(r[name])])
                if length(part) and len(np.unique(part["seed"])) > 2:
                    label = f"{arm} ρ = {rho:g}, {task}, batch {batch}"
                    found.append((label, mean_of_values(part, level, DRAWS)))
            if found:
                panels[title] = found
        if panels:
            yield draw_forest(panels, "test error of SGD less its own, pp", folder / "gains", 1.0)


TITLES = {
    "after as many updates": UPDATES,
    "at one training loss": LOSS,
    "at one scaled training loss": SCALED,
}


def _optimizer(arm: str, rho: float, lr: float) -> list[str]:
    if arm == SGD:
        return ["optimizer=sgd", f"optimizer.lr={lr}"]
    if arm == SAM:
        return ["optimizer=sam", f"optimizer.base.lr={lr}", f"optimizer.rho={rho}"]
    return [
        "optimizer=custom",
        "optimizer._target_=optbench.optimizers.random_ascent.RandomAscent",
        f"+optimizer.base={{_target_:torch.optim.SGD,_partial_:true,lr:{lr}}}",
        "~optimizer.lr",
        f"+optimizer.rho={rho}",
    ]


def scaled_loss(outputs: Tensor, targets: Tensor, scale: float) -> float:
    """Cross-entropy of s f/rms(f), f centred over the classes of each example.

    It is the same for f and for any multiple of it: a network that only lets its outputs grow does
    not lower it.

    Args:
        outputs: f, (N, C).
        targets: Classes, (N,).
        scale: s.
    """
    f = outputs.double() - outputs.double().mean(1, keepdim=True)
    return float(nn.functional.cross_entropy(scale * f / f.square().mean().sqrt(), targets))


Row = Mapping[str, Any]


def gains(table: Table) -> tuple[list[dict[str, Any]], int]:
    """SGD's error less that of each other run with its task, batch and seed, in pp.

    Returns:
        A row a pair, with the gain in each comparison and, for SAM, what of that at one loss is
        beyond the control of its ρ; and how many pairs lack one of these.
    """
    runs: dict[tuple[str, str, float], dict[tuple[str, float], dict[str, float]]] = {}
    for i in range(length(table)):
        key = (str(table["task"][i]), str(table["batch"][i]), float(table["seed"][i]))
        arm = (str(table["optimizer"][i]), float(table["rho"][i]))
        names = (UPDATES, LOSS, SCALED)
        errors = {n: float(table[n][i]) if n in table else math.nan for n in names}
        runs.setdefault(key, {})[arm] = errors
    rows, missing = list[dict[str, Any]](), 0
    for (task, batch, seed), arms in runs.items():
        base = arms.get((SGD, 0.0), {})
        for (arm_name, rho), errors in arms.items():
            if arm_name == SGD:
                continue
            row = {n: base.get(n, math.nan) - errors[n] for n in errors}
            control = arms.get((SHAM, rho), {})
            row["beyond"] = control.get(LOSS, math.nan) - errors[LOSS]
            missing += not all(map(math.isfinite, row.values()))
            named = {"task": task, "batch": batch, "seed": seed, "arm": arm_name, "rho": rho}
            rows.append(named | row)
    return rows, missing


def _mean(rows: Table) -> float:
    """Mean over tasks and batches, each with the same weight, however many pairs each has."""
    return float(np.mean([part["value"].mean() for _, part in _cells(rows)]))


def _small_less_full(rows: Table) -> float:
    means = {
        full: [part["value"].mean() for (_, b), part in _cells(rows) if (b == FULL) == full]
        for full in (True, False)
    }
    return float(np.mean(means[False]) - np.mean(means[True])) if all(means.values()) else math.nan


def _of(arm: str, value: Callable[[Row], float]) -> Callable[[Row], float]:
    """The value of the pairs of an arm; NaN for those of others."""
    return lambda row: value(row) if row["arm"] == arm else math.nan


RULES: Mapping[str, tuple[Callable[[Row], float], Callable[[Table], float]]] = {
    "gains": (_of(SAM, lambda r: r[LOSS]), _mean),
    "shrinks": (_of(SAM, lambda r: 0.5 * r[UPDATES] - r[LOSS]), _mean),
    "shrinks_scaled": (_of(SAM, lambda r: 0.5 * r[UPDATES] - r[SCALED]), _mean),
    "beyond_sham": (_of(SAM, lambda r: r["beyond"]), _mean),
    "sham": (_of(SHAM, lambda r: r[LOSS]), _mean),
    "batch": (_of(SAM, lambda r: r[LOSS]), _small_less_full),
    "gains_at_updates": (_of(SAM, lambda r: r[UPDATES]), _mean),
}
"""{hypothesis: (value of a pair, statistic over pairs)}."""


def _cells(rows: Table) -> Iterator[tuple[tuple[str, str], Table]]:
    for task, batch in dict.fromkeys(zip(rows["task"], rows["batch"], strict=True)):
        yield (
            (str(task), str(batch)),
            subset(rows, (rows["task"] == task) & (rows["batch"] == batch)),
        )


def _by_cell(rows: Table, level: float) -> Iterator[tuple[tuple[str, str], Any]]:
    for key, part in _cells(rows):
        if len(np.unique(part["seed"])) > 2:
            yield key, mean_of_values(part, level, DRAWS)


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str, str, float], list[Row]]:
    groups: dict[tuple[str, str, str, float], list[Row]] = {}
    for row in rows:
        key = (row["arm"], row["task"], row["batch"], row["rho"])
        groups.setdefault(key, []).append(row)
    return groups


def planted(world: str, seed: int, grid: Mapping[str, Any]) -> Table:
    """Simulate a table; noise of .7 pp a run.

    - kept: SAM gains 3 pp in every comparison, its control nothing.
    - another loss: SAM gains 3 pp after as many updates, and nothing at one loss, since it has
      come to another.
    - nothing: nobody gains.
    - any displacement: the control gains what SAM does.
    """
    rng = np.random.default_rng([seed, list(SamGain.worlds).index(world)])
    arms = [(SGD, 0.0), *product((SAM, SHAM), grid["rhos"])]
    rows = []
    for task, batch, of in product(grid["tasks"], grid["batches"], range(grid["seeds"])):
        luck = rng.normal(0, 0.5)
        for arm, rho in arms:
            gain = 3.0 * (arm == SAM or (arm == SHAM and world == "any displacement"))
            gain *= world != "nothing"
            left = 0.0 if world == "another loss" else gain
            each = {UPDATES: gain, LOSS: left, SCALED: left}
            errors = {n: 40 + luck - g + rng.normal(0, 0.7) for n, g in each.items()}
            factors = {"task": task, "batch": str(batch), "optimizer": arm, "rho": rho}
            rows.append(factors | {"seed": float(of), "done": 1.0, **errors})
    return columns(rows)
