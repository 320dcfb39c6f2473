"""Does SAM gain by flatness, or by the smaller input Jacobian that is its by-product?"""

import copy
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from omegaconf import OmegaConf
from torch import nn

from optbench import lab, metrics
from optbench.boundary.counting import counted
from optbench.configuration.construct import optimizer_factory
from optbench.intervals import Interval
from optbench.lab.matching import at_loss
from optbench.optimizers import input_jacobian
from optbench.studies.figures import draw_forest
from optbench.studies.frame import (
    REFUTED,
    SUPPORTED,
    UNDECIDED,
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
from optbench.studies.judging import UNKNOWN, interval_of, judged
from optbench.studies.measured_once import measured_once

SGD, SAM, REDUCER = "sgd", "sam", "jacobian_reducer"
LESS_JACOBIAN, SHAM = "sam_without_jacobian", "sam_sham"
LESS_FLATTENING = "jacobian_reducer_without_flattening"

ASKED: Mapping[str, tuple[str, str]] = {
    "sam": (SAM, LESS_JACOBIAN),
    "reducer": (REDUCER, LESS_FLATTENING),
    "sham": (SAM, SHAM),
    "took_sam": (SAM, LESS_JACOBIAN),
    "took_reducer": (REDUCER, LESS_FLATTENING),
}
"""{hypothesis: (optimizer, the variant that lacks a part of it)}."""

SURE = 0.5
"""Gain, in pp, that the interval of a task must lie above for the task to say something."""

SIZE = 0.02
"""Largest relative difference of the variant's step from its parent's, at one state."""

DRAWS = 2000


class ByProduct:
    """Tasks x {sgd, sam, reducer, each less the other's part, sham} x seeds, to one training loss.

    Args:
        declaration: What is declared; `sizes` has tasks, seeds, first_seed.
        tasks: {name: {words, loss, lr, rho, mu}}.
        optimizers: {name: overrides}, with {lr}, {rho} and {mu} of the task in their places.
        common: Overrides of all runs.
        measures: Names of the measures at the end of a run.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "jacobian": {"sam": SUPPORTED, "reducer": SUPPORTED, "sham": SUPPORTED},
        "flatness": {"sam": REFUTED, "reducer": REFUTED, "sham": SUPPORTED},
        "size": {"sam": REFUTED, "reducer": SUPPORTED, "sham": SUPPORTED},
        "no_gain": {},
    }

    def __init__(
        self,
        declaration: Declaration,
        tasks: Mapping[str, Mapping[str, Any]],
        optimizers: Mapping[str, Sequence[str]],
        common: Sequence[str],
        measures: Sequence[str],
    ) -> None:
        self.declaration = declaration
        self.tasks, self.optimizers, self.common = tasks, optimizers, common
        self.measures = measures

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size."""
        grid, cells = self.declaration.sizes[size], []
        for task, optimizer in product(grid["tasks"], self.optimizers):
            of = self.tasks[task]
            own = [word.format(**of) for word in self.optimizers[optimizer]]
            for seed in range(grid["first_seed"], grid["first_seed"] + grid["seeds"]):
                words = (
                    *of["words"],
                    *own,
                    *self.common,
                    f"seed={seed}",
                    "stop.metric=train/loss",
                    f"stop.below={of['loss']}",
                )
                cells.append(Cell({"task": task, "optimizer": optimizer, "seed": seed}, words))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """One row: how the run ended, its error at the matched loss, its measures, its step."""
        loss = float(self.tasks[cell.factors["task"]]["loss"])
        code = Path(__file__).read_bytes() + inspect.getsource(input_jacobian).encode()
        settings = [loss, list(self.measures), hashlib.sha256(code).hexdigest()]
        row = measured_once(folder, "by_product", settings, lambda: self._row(folder, loss))
        return [dict(cell.factors) | row]

    def _row(self, folder: Path, loss: float) -> dict[str, Any]:
        run = lab.open(folder)
        row: dict[str, Any] = {"steps": run.summary["step"], "reached": 0.0, "diverged": 0.0}
        if run.status != "done" or not run.summary.get("stopped"):
            return row | {"diverged": float(run.status == "diverged")}
        losses, errors = (
            dict(zip(*(x.tolist() for x in run.series(name)), strict=True))
            for name in (metrics.TRAIN_LOSS, metrics.TEST_ERROR)
        )
        points = [(losses[step], 100 * errors[step]) for step in sorted(losses) if step in errors]
        row |= {"reached": 1.0, "error": six_digits(at_loss(points, loss).value)}
        for name, reading in lab.measure(run, self.measures).items():
            row[name] = six_digits(reading.value) if reading.reason is None else None
        return row | step_beside_its_parent(run)

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the runs that came to the matched loss."""
        rows = reached(table)
        findings = []
        for hypothesis in self.declaration.hypotheses:
            parent, variant = ASKED[hypothesis.name]
            if hypothesis.name.startswith("took_"):
                pairs, why, rule = _taken(rows, parent, variant)
            else:
                lost = hypothesis.name == "sam"
                pairs, why, rule = _shares(rows, parent, variant, lost, self.declaration.level)
            said = f"{left_out(table)} {why}".strip()
            estimate = interval_of(pairs, rule, self.declaration.level, DRAWS)
            if estimate is UNKNOWN:
                findings.append(judged(hypothesis, estimate, 0, said))
                continue
            finding = judged(hypothesis, estimate, length(pairs), said)
            if (off := _size_off(rows, variant)) is not None:
                finding = replace(finding, verdict=UNDECIDED, why=f"{said} {off}")
            findings.append(finding)
        return findings

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world, as large as that of the size small."""
        grid = self.declaration.sizes["small"]
        return plant(world, seed, grid["tasks"], list(self.optimizers), grid["seeds"])

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the gains over SGD, and what each optimizer ends with beside SGD."""
        rows, level = reached(table), self.declaration.level
        if len(np.unique(rows.get("seed", ()))) < 2:
            return
        names = [name for name in self.optimizers if name != SGD]
        yield draw_forest(
            _panels(rows, names, "error", level, lambda sgd, own: sgd - own),
            "gain over SGD, pp",
            folder / "gains",
        )
        for name in self.measures:
            yield draw_forest(
                _panels(rows, names, name, level, lambda sgd, own: np.log(own / sgd)),
                f"ln {name.replace('_', ' ')} beside SGD's",
                folder / f"ends_{name}",
            )


def step_beside_its_parent(run: lab.Run) -> dict[str, float]:
    """Length of a variant's step over its parent's on one batch, and the cosine between them.

    Both optimizers are built anew with the run's settings, and take one step each from the same
    weights, those of the run's end. {} for an optimizer that is no variant.
    """
    end = run.end
    settings, target = copy.deepcopy(run.config.optimizer), str(run.config.optimizer._target_)
    OmegaConf.set_struct(settings, False)
    if target.endswith("SAMWithoutJacobian"):
        settings._target_ = target.replace("input_jacobian.SAMWithoutJacobian", "sam.SAM")
        settings.pop("sham", None)
    elif target.endswith("JacobianReducer") and not settings.flattens:
        settings.flattens = True
    else:
        return {}
    inputs, targets = end.batches.next()
    own, parents = (
        lab.Shadow(end.model, end.task.loss, _factory(each)).step(inputs, targets).double()
        for each in (run.config.optimizer, settings)
    )
    lengths = float(own.norm()), float(parents.norm())
    return {
        "step_ratio": float(f"{lengths[0] / lengths[1]:.6g}"),
        "step_cosine": float(f"{float(own @ parents) / (lengths[0] * lengths[1]):.6g}"),
    }


def _factory(settings: Any) -> Callable[[Sequence[nn.Parameter]], Any]:
    return optimizer_factory(settings)


def reached(table: Table) -> Table:
    """The runs that came to the matched loss, with an error there."""
    if "error" not in table:
        return {}
    return subset(table, (table["reached"] == 1) & np.isfinite(table["error"]))


def left_out(table: Table) -> str:
    """Say how many runs a finding does not rest on."""
    diverged = int(np.nansum(table["diverged"])) if length(table) else 0
    late = int(np.sum(table["reached"] == 0)) - diverged if length(table) else 0
    said = [f"{late} did not come to the loss in time"] if late else []
    said += [f"{diverged} diverged"] if diverged else []
    return f"Of {counted(length(table), 'run')} {', '.join(said)}." if said else ""


def paired(rows: Table, names: Sequence[str], column: str) -> Table:
    """One row for each task and seed of which all these optimizers have a run.

    Returns:
        Columns task, seed, and the column's value by each optimizer's name.
    """
    values: dict[tuple[str, float], dict[str, float]] = {}
    keys = zip(rows["task"], rows["seed"], rows["optimizer"], rows[column], strict=True)
    for task, seed, optimizer, value in keys if rows else ():
        values.setdefault((str(task), float(seed)), {})[str(optimizer)] = float(value)
    return columns(
        [
            {"task": task, "seed": seed, **{name: of[name] for name in names}}
            for (task, seed), of in values.items()
            if all(math.isfinite(of.get(name, math.nan)) for name in names)
        ]
    )


def _shares(
    rows: Table, parent: str, variant: str, lost: bool, level: float
) -> tuple[Table, str, Callable[[Table], float]]:
    """Pairs of the tasks where the parent surely gains; the share of its gain that is kept.

        kept = Σ_tasks mean(e_sgd − e_variant) / Σ_tasks mean(e_sgd − e_parent)

    Where losing is the claim it is 1 − kept − ½, else kept − ½.
    """
    pairs = paired(rows, (SGD, parent, variant), "error") if rows else {}
    told, sure = [], []
    for task in np.unique(pairs.get("task", ())):
        of = subset(pairs, pairs["task"] == task)
        if len(np.unique(of["seed"])) < 2:
            continue
        gains = [interval_of(of, _gain(name), level, DRAWS) for name in (parent, variant)]
        told.append(
            f"{task}: {parent} gains {_shown(gains[0])} pp, {variant} {_shown(gains[1])}"
            + ("" if gains[0].low > SURE else ", which says nothing: no sure gain to lose")
        )
        sure += [task] if gains[0].low > SURE else []
    kept = subset(pairs, np.isin(pairs["task"], sure)) if pairs else {}

    def share(table: Table) -> float:
        whole, part = (_summed(table, name) for name in (parent, variant))
        return 0.5 - part / whole if lost else part / whole - 0.5

    return kept, "; ".join(told) + ".", share


def _summed(pairs: Table, name: str) -> float:
    """Σ over tasks of the mean over seeds of a gain over SGD."""
    return sum(
        float((pairs[SGD] - pairs[name])[pairs["task"] == task].mean())
        for task in np.unique(pairs["task"])
    )


def _gain(name: str) -> Callable[[Table], float]:
    return lambda table: float((table[SGD] - table[name]).mean())


def _shown(interval: Interval) -> str:
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


TOOK = {SAM: "input_jacobian_train", REDUCER: "sharpness"}
"""What each variant was to leave higher than its parent does."""


def _taken(rows: Table, parent: str, variant: str) -> tuple[Table, str, Callable[[Table], float]]:
    """Mean over tasks of ln of the measure of the variant over that of its parent."""
    measure = TOOK[parent]
    pairs = paired(rows, (parent, variant), measure) if measure in rows else {}

    def rise(table: Table) -> float:
        logs = np.log(table[variant] / table[parent])
        return float(np.mean([logs[table["task"] == t].mean() for t in np.unique(table["task"])]))

    told = [
        f"{task}: {np.log(pairs[variant] / pairs[parent])[pairs['task'] == task].mean():+.2f}"
        for task in np.unique(pairs.get("task", ()))
    ]
    cosines = _of_variant(rows, variant, "step_cosine")
    turned = (
        f" Steps of the two at the end have a cosine of {cosines.mean():.3f}."
        if len(cosines)
        else ""
    )
    return pairs, f"By task, in nats: {'; '.join(told)}.{turned}", rise


def _of_variant(rows: Table, variant: str, column: str) -> Any:
    if column not in rows:
        return np.zeros(0)
    values = rows[column][rows["optimizer"] == variant].astype(float)
    return values[np.isfinite(values)]


def _size_off(rows: Table, variant: str) -> str | None:
    """What to say of steps that are not as long as the parent's; None where they are."""
    ratios = _of_variant(rows, variant, "step_ratio")
    if len(ratios) and float(np.abs(ratios - 1).max()) <= SIZE:
        return None
    if not len(ratios):
        return "The length of its steps was not measured."
    return f"Its steps are {ratios.mean():.2f} times as long as its parent's: the size is not held."


def _panels(
    rows: Table,
    names: Sequence[str],
    column: str,
    level: float,
    compare: Callable[[Any, Any], Any],
) -> dict[str, list[tuple[str, Interval]]]:
    """{task: [(optimizer, mean of the comparison with SGD, paired by seed), …]}."""
    panels: dict[str, list[tuple[str, Interval]]] = {}
    for task, name in product(map(str, np.unique(rows["task"])), names):
        pairs = paired(rows, (SGD, name), column)
        of = subset(pairs, pairs["task"] == task) if pairs else {}
        if length(of) < 2:
            continue

        def mean(table: Table, name: str = name) -> float:
            return float(np.mean(compare(table[SGD], table[name])))

        label = name.replace("jacobian_reducer", "reducer").replace("_", " ")
        panels.setdefault(task, []).append((label, interval_of(of, mean, level, DRAWS)))
    return panels


GAINS: Mapping[str, Mapping[str, float]] = {
    "jacobian": {SAM: 3.0, LESS_JACOBIAN: 0.5, SHAM: 2.8, REDUCER: 3.0, LESS_FLATTENING: 2.6},
    "flatness": {SAM: 3.0, LESS_JACOBIAN: 2.6, SHAM: 2.8, REDUCER: 3.0, LESS_FLATTENING: 0.5},
    "size": {SAM: 3.0, LESS_JACOBIAN: 1.0, SHAM: 2.8, REDUCER: 3.0, LESS_FLATTENING: 2.6},
    "no_gain": {},
}
"""Planted gains over SGD, in pp."""


def plant(
    world: str, seed: int, tasks: Sequence[str], optimizers: Sequence[str], seeds: int
) -> Table:
    """A simulated table.

    - jacobian: SAM's gain is nearly all in what was taken out of it, the reducer's is not;
    - flatness: the other way round;
    - size: nothing of SAM's gain is in the Jacobian, but the projection shortens its steps to .6,
      and that costs two thirds of the gain: the confounder;
    - no_gain: no optimizer gains.
    """
    rng = np.random.default_rng([seed, list(GAINS).index(world)])
    found = []
    for task, run in product(tasks, range(1, seeds + 1)):
        shared = rng.normal(0, 0.7)  # of the seed: initial weights and data order
        for optimizer in optimizers:
            row: dict[str, Any] = {
                "task": task,
                "optimizer": optimizer,
                "seed": float(run),
                "reached": 1.0,
                "diverged": 0.0,
                "error": 50 + shared - GAINS[world].get(optimizer, 0.0) + rng.normal(0, 0.6),
                "input_jacobian_train": math.exp(rng.normal(0, 0.1)),
                "sharpness": math.exp(rng.normal(0, 0.1)),
                "step_ratio": math.nan,
                "step_cosine": math.nan,
            }
            if optimizer in (LESS_JACOBIAN, SHAM, LESS_FLATTENING):
                short = world == "size" and optimizer == LESS_JACOBIAN
                row |= {"step_ratio": 0.6 if short else 1.0, "step_cosine": 0.9}
            found.append(row)
    return columns(found)
