"""Why does a step gain more than gradient descent's: better aligned, or along lower curvature?

Shadow optimizers are fed with the gradients of one path, so that all of them are compared at the
same weights. With the gradient g and the Hessian H of the training loss, a step d has

    gain(d) = (gᵀd)²/(2 dᵀHd),    the decrease at the best length along d, of the quadratic model
    cos(d) = −gᵀd/(‖g‖‖d‖),       its alignment
    NDS(d) = dᵀHd/‖d‖²,           its normalized directional sharpness
    log gain(d)/gain(−g) = 2 log cos(d) − log NDS(d)/NDS(−g)

Since cos(−g) = 1, no step is better aligned than gradient descent's: any gain over it is by lower
curvature, by this identity. What is open is which of the two tells the optimizers apart.

References:
    arXiv:2606.04662 (gain, alignment, directional sharpness); arXiv:2306.00204 (directional
    sharpness of adaptive optimizers).
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from optbench import lab
from optbench.boundary.counting import agreeing, counted
from optbench.configuration.construct import optimizer_factory
from optbench.curvature import GaussNewton
from optbench.curvature.errors import MeasurementError
from optbench.curvature.selection import trainable
from optbench.intervals import Interval
from optbench.lab.comparisons import along
from optbench.lab.shadow import Factory
from optbench.run.update import Update
from optbench.statistics import cluster_bootstrap, group_labels, verdict
from optbench.studies.figures import draw_forest, draw_heat
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
    rounded,
    six_digits,
    subset,
)
from optbench.studies.judging import UNKNOWN, interval_of
from optbench.studies.measured_once import measured_once
from optbench.task import Task

REFERENCE = "sgd"
"""The probe that is gradient descent: of the full batch, its step is −ηg."""

CAP = 10.0
"""Nats that a part counts at most: where the curvature is not positive or the step goes uphill,
its logarithm is not a number. Medians do not depend on it unless half of the rows are such."""

DRAWS = 500
EXPLODED = 1e3  # times the first loss


class SpeedCurvature:
    """Tasks x drivers x seeds; along each path, the steps of all probes at declared losses.

    Args:
        declaration: What is declared; `sizes` has tasks, seeds, steps, scales.
        tasks: {name: words, rate (a factor on the drivers' learning rates), losses (falling)}.
        drivers: {name: overrides}: optimizers whose path is followed.
        probes: {name: overrides}: optimizers that are fed with it, about their best learning rate.
        adaptive: Drivers that precondition; each is a probe of the same name.
        common: Overrides of all runs.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "own_path": {
            "share": SUPPORTED,
            "own_path": SUPPORTED,
            "sgd_path": SUPPORTED,
            "foretells": SUPPORTED,
        },
        "alignment": {"share": REFUTED, "own_path": REFUTED, "sgd_path": SUPPORTED},
        "every_path": {"share": SUPPORTED, "own_path": SUPPORTED, "sgd_path": REFUTED},
        "negative_curvature": {"share": REFUTED, "own_path": REFUTED},
        "unrelated": {"foretells": REFUTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        tasks: Mapping[str, Mapping[str, Any]],
        drivers: Mapping[str, Sequence[str]],
        probes: Mapping[str, Sequence[str]],
        adaptive: Sequence[str],
        common: Sequence[str],
    ) -> None:
        self.declaration = declaration
        self.tasks, self.drivers, self.probes = tasks, drivers, probes
        self.adaptive, self.common = adaptive, common

    def plan(self, size: Size) -> list[Cell]:
        """The drivers' runs of a size; each keeps its first step, from which it is replayed."""
        grid = self.declaration.sizes[size]
        cells = []
        for task, driver, seed in product(grid["tasks"], self.drivers, grid["seeds"]):
            about = self.tasks[task]
            command = (
                *about["words"],
                *self.drivers[driver],
                *self.common,
                f"optimizer.scale={about['rate']:g}",
                f"seed={seed}",
                f"steps={grid['steps']}",
                "stop.metric=train/loss",
                f"stop.below={about['losses'][-1]:g}",
                "keep_steps=[0]",
            )
            factors = {"task": task, "driver": driver, "seed": seed}
            timing = {"scales": grid["scales"], "limit": grid["limit"]}
            cells.append(Cell(factors | timing, command))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """A row for each probe at each loss; for the first driver, the steps to the last loss too.

        A run that did not come to the last loss is one row, without a probe.
        """
        about = self.tasks[cell.factors["task"]]
        settings = [dict(cell.factors), dict(about), dict(self.probes), "1"]
        found = measured_once(
            folder, "shadows", settings, lambda: {"rows": self._rows(cell, folder)}
        )
        factors = {name: cell.factors[name] for name in ("task", "driver", "seed")}
        return [factors | row for row in found["rows"]]

    def _rows(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        run = lab.open(folder)
        if run.status != "done" or not run.summary.get("stopped"):
            return [{"kind": "failed", "steps": run.summary["step"]}]
        about = self.tasks[cell.factors["task"]]
        probes = {name: _factory(tuple(own)) for name, own in self.probes.items()}
        rows = replay(run, probes, about["losses"])
        if cell.factors["driver"] == REFERENCE:
            start = run.at(step=0)
            for (name, own), scale in product(self.probes.items(), cell.factors["scales"]):
                factory, limit = _factory(tuple(own), scale), cell.factors["limit"]
                taken = steps_to(start.model, start.task, factory, about["losses"][-1], limit)
                rows.append({"kind": "timed", "probe": name, "scale": scale, "steps": taken})
        return rows

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the steps that were measured."""
        rows = with_parts(table)
        rules: dict[str, Callable[[Table, Table], tuple[Interval, int, str]]] = {
            "share": self._share,
            "own_path": partial(self._path, own=True),
            "sgd_path": partial(self._path, own=False),
            "foretells": self._foretells,
        }
        found = []
        for h in self.declaration.hypotheses:
            estimate, n, why = rules[h.name](table, rows)
            found.append(Finding(h.name, estimate, verdict(estimate, h.sesoi, h.sign), n, why))
        return found

    def _share(self, table: Table, rows: Table) -> tuple[Interval, int, str]:
        plain = _regular(rows)
        centred = _centred(plain, "curvature_part") if length(plain) else {}
        estimate = self._bootstrap(centred, _share_of)
        moved = Interval(*(x - 0.5 for x in (estimate.value, estimate.low, estimate.high)))
        others = rows["probe"] != REFERENCE if length(rows) else np.zeros(0, bool)
        why = (
            f"{_left_out(table, rows)} Share by task: {_by(plain, 'task')}; by driver: "
            f"{_by(plain, 'driver')}. With the Gauss-Newton matrix in place of H, which is never "
            f"negative: {share(_regular(rows, 'gn_'), 'gn_part'):.2f}. Median of the parts over "
            f"gradient descent's: alignment {_median(rows, others, 'alignment_part'):+.2f}, "
            f"curvature {_median(rows, others, 'curvature_part'):+.2f} nat."
        )
        return moved, length(plain), why

    def _path(self, table: Table, rows: Table, *, own: bool) -> tuple[Interval, int, str]:
        if not length(rows):
            return UNKNOWN, 0, "no path was measured"
        on = rows["driver"] == (rows["probe"] if own else REFERENCE)
        chosen = subset(rows, on & np.isin(rows["probe"], self.adaptive))
        each = "; ".join(
            f"{task} {probe} {value:+.2f}" for (task, probe), value in _cells(chosen).items()
        )
        estimate = self._bootstrap(chosen, lambda t: float(np.mean(list(_cells(t).values()))))
        said = f"Medians, nat: {each}."
        return estimate, length(chosen), said if own else f"{said} {_anova(rows)}"

    def _foretells(self, table: Table, rows: Table) -> tuple[Interval, int, str]:
        timed, ends = best_steps(table)
        if not timed or not length(rows):
            return UNKNOWN, 0, "nothing was timed"
        pairs = _gains_and_steps(rows, timed)
        estimate = self._bootstrap(pairs, concordance, cluster="name")
        drivers = {
            d: concordance(_gains_and_steps(subset(rows, rows["driver"] == d), timed))
            for d in np.unique(rows["driver"])
        }
        told = ", ".join(f"{name} {value:+.2f}" for name, value in drivers.items())
        why = (
            f"From one driver's path alone: {told}. Best steps: "
            + "; ".join(f"{t} {p} {s:g}" for (t, p), s in timed.items())
            + f". Left out, the best rate being at the grid's end: {', '.join(ends) or 'none'}."
        )
        return estimate, length(pairs), why

    def _bootstrap(
        self, rows: Table, statistic: Callable[[Table], float], cluster: str = "seed"
    ) -> Interval:
        return interval_of(rows, statistic, self.declaration.level, DRAWS, cluster)

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return planted_table(self, world, seed)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw driver x probe matrices, and the gains on the own path and on SGD's by task."""
        rows = with_parts(table)
        if not length(rows):
            return
        names = (
            ("gain", "log gain over gradient descent's, nat", "log_gain"),
            ("alignment", "its part by alignment, 2 log cos", "alignment_part"),
            ("curvature", "its part by curvature, −log of the ratio", "curvature_part"),
        )
        for name, title, column in names:
            yield draw_heat(_matrix(rows, column), f"{title} (row: whose path)", folder / name, 4.0)
        yield draw_forest(
            _panels(rows, self.adaptive, self.declaration.level),
            "median log gain, nat",
            folder / "paths",
            0.2,
        )


@cache
def _settings(words: tuple[str, ...]) -> DictConfig:
    settings: DictConfig = lab.start(*words).config.optimizer
    return settings


def _factory(words: tuple[str, ...], scale: float = 1.0) -> Factory:
    settings = _settings(words).copy()
    with open_dict(settings):
        settings.scale = scale
    return optimizer_factory(settings)


def replay(
    run: lab.Run, probes: Mapping[str, Factory], losses: Sequence[float]
) -> list[dict[str, Any]]:
    """Run a full-batch path again from its first step, shadows beside it; return a row a step seen.

    At the first weights whose training loss is at most each of the losses, the steps of all shadows
    are measured; by then each has seen every gradient of the path.

    Args:
        run: A run that has kept its step 0.
        probes: {name: maker of the shadow's optimizer}.
        losses: Training losses, falling.
    """
    start = run.at(step=0)
    update, task, batches = start.parts.update, start.task, start.batches
    update.model.train()
    shadows = {name: lab.Shadow(update.model, task.loss, make) for name, make in probes.items()}
    rows: list[dict[str, Any]] = []
    awaited = list(losses)
    for step in range(int(run.summary["step"]) + 1):
        inputs, targets = batches.next()
        directions = {name: shadow.step(inputs, targets) for name, shadow in shadows.items()}
        with torch.no_grad():
            loss = float(task.loss(update.model(inputs), targets))
        while awaited and loss <= awaited[0]:
            level = awaited.pop(0)
            about = {
                "kind": "step",
                "level": losses.index(level),
                "step": step,
                "loss": six_digits(loss),
            }
            rows += [about | row for row in measure_steps(update.model, task, directions)]
        if not awaited:
            break
        update(inputs, targets)
    return rows


def measure_steps(
    model: nn.Module, task: Task, directions: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """Return alignment and curvature of each step, beside gradient descent's curvature."""
    point = lab.Point(model, task)
    gauss_newton = GaussNewton.of(point.loss)
    gradient = point.value_and_gradient[1]

    def bend(d: Tensor) -> float:
        unit = d / d.norm()
        return float(unit.double() @ (gauss_newton @ unit).double())

    descent = {"gd_curvature": along(point, -gradient).curvature, "gn_gd": bend(gradient)}
    rows = []
    for name, d in directions.items():
        row: dict[str, Any] = {"probe": name}
        try:
            seen = along(point, d)
            row |= {"alignment": seen.alignment, "curvature": seen.curvature, "gn": bend(d)}
        except MeasurementError:  # a step of 0
            row |= {"alignment": 0.0, "curvature": math.nan, "gn": math.nan}
        rows.append(row | descent)
    return [rounded(row) for row in rows]


def steps_to(
    model: nn.Module, task: Task, factory: Factory, loss: float, limit: int
) -> float | None:
    """Return the full-batch updates until the training loss is at most a value; None if never."""
    own = copy.deepcopy(model).train()
    update = Update(own, task.loss, factory(trainable(own)))
    inputs, targets = task.train.inputs, task.train.targets
    first = math.inf
    for step in range(limit + 1):
        try:
            value = float(update(inputs, targets))
        except RuntimeError:  # a decomposition of weights or gradients that are not finite
            return None
        if value <= loss:
            return float(step)
        first = min(first, value) if step else value
        if not value <= EXPLODED * max(first, loss):
            return None
    return None


def with_parts(table: Table) -> Table:
    """Return the measured steps with the parts of their log gain, in nats.

    - alignment_part = 2 log cos; −CAP where the step goes uphill.
    - curvature_part = −log NDS/NDS(−g); CAP where only this step's curvature is not positive, −CAP
      where only gradient descent's is not, NaN where both are not.
    - log_gain, their sum; −CAP uphill.
    - gn_part, curvature_part with the Gauss-Newton matrix.
    """
    if "kind" not in table or "curvature" not in table:
        return {}
    known = (table["kind"] == "step") & np.isfinite(table["curvature"])
    rows = subset(table, known)
    cos, uphill = rows["alignment"], rows["alignment"] <= 0
    aligned = np.where(uphill, -CAP, 2 * np.log(np.where(uphill, 1.0, cos)))
    parts = {
        "alignment_part": np.clip(aligned, -CAP, CAP),
        "curvature_part": _log_ratio(rows["curvature"], rows["gd_curvature"]),
        "gn_part": _log_ratio(rows["gn"], rows["gn_gd"]),
    }
    gain = np.clip(parts["alignment_part"] + parts["curvature_part"], -CAP, CAP)
    return {**rows, **parts, "log_gain": np.where(uphill, -CAP, gain)}


def _log_ratio(own: NDArray[Any], reference: NDArray[Any]) -> NDArray[Any]:
    positive = (own > 0) & (reference > 0)
    ratio = -np.log(np.where(positive, own, 1.0) / np.where(positive, reference, 1.0))
    found = np.where(positive, np.clip(ratio, -CAP, CAP), np.nan)
    found = np.where((own <= 0) & (reference > 0), CAP, found)
    return np.where((own > 0) & (reference <= 0), -CAP, found)


def _regular(rows: Table, prefix: str = "") -> Table:
    """Steps downhill along positive curvature, with their point: the parts have logarithms."""
    if not length(rows):
        return {}
    own, reference = ("gn", "gn_gd") if prefix else ("curvature", "gd_curvature")
    return subset(rows, (rows["alignment"] > 0) & (rows[own] > 0) & (rows[reference] > 0))


def share(rows: Table, part: str) -> float:
    """Share of the spread of log gains, among the probes at one point, that is by a part.

        Σ (p − p̄)(a + p − mean) / Σ (a + p − mean)²,    a the alignment part, p the curvature part

    The shares of both parts add up to 1. Sums are over the points of a task; the mean over tasks.
    """
    return _share_of(_centred(rows, part)) if length(rows) else math.nan


def _centred(rows: Table, part: str) -> Table:
    """A part and the log gain of each step, less their means over the probes at its point."""
    group = group_labels([rows[k] for k in ("task", "driver", "seed", "level")], length(rows))
    counts = np.bincount(group)
    pair = {"part": rows[part], "total": rows["alignment_part"] + rows[part]}
    centred = {k: v - (np.bincount(group, v) / counts)[group] for k, v in pair.items()}
    return {"task": rows["task"], "seed": rows["seed"], **centred}


def _share_of(centred: Table) -> float:
    shares = []
    for task in np.unique(centred["task"]):
        of = centred["task"] == task
        part, total = centred["part"][of], centred["total"][of]
        shares.append(float(part @ total) / float(total @ total) if total.any() else math.nan)
    return float(np.mean(shares))


def _cells(rows: Table) -> dict[tuple[str, str], float]:
    """{(task, probe): median log gain}; that of undefined gains is left out."""
    found = {}
    for task, probe in product(np.unique(rows["task"]), np.unique(rows["probe"])):
        gains = rows["log_gain"][(rows["task"] == task) & (rows["probe"] == probe)]
        if np.isfinite(gains).any():
            found[str(task), str(probe)] = float(np.nanmedian(gains))
    return found


def best_steps(table: Table) -> tuple[dict[tuple[str, str], float], list[str]]:
    """Return {(task, probe): steps at the best learning rate}, and those whose best is at an end.

    The steps of a rate are the median over seeds; a seed that never came to the loss took ∞.
    """
    if "kind" not in table or not (table["kind"] == "timed").any():
        return {}, []
    rows = subset(table, table["kind"] == "timed")
    steps = np.where(np.isfinite(rows["steps"]), rows["steps"], np.inf)
    scales = np.unique(rows["scale"])
    found, ends = {}, []
    for task, probe in product(np.unique(rows["task"]), np.unique(rows["probe"])):
        own = (rows["task"] == task) & (rows["probe"] == probe)
        # the middle seed of an odd number, else the slower of the two: ∞ has no mean
        typical = [_upper_median(steps[own & (rows["scale"] == scale)]) for scale in scales]
        best = int(np.argmin(typical))
        if best in (0, len(scales) - 1) or not math.isfinite(typical[best]):
            ends.append(f"{probe} on {task}")
        else:
            found[str(task), str(probe)] = typical[best]
    return found, ends


def _upper_median(values: NDArray[Any]) -> float:
    return float(np.sort(values)[len(values) // 2]) if len(values) else math.inf


def _gains_and_steps(rows: Table, timed: Mapping[tuple[str, str], float]) -> Table:
    gains = _cells(rows)
    both = [key for key in timed if key in gains]
    return columns(
        [
            {"task": t, "name": p, "own_name": p, "gain": gains[t, p], "steps": timed[t, p]}
            for t, p in both
        ]
    )


def concordance(pairs: Table) -> float:
    """Kendall's τ of gain with speed within a task, over pairs of different probes; its mean.

    A probe that the bootstrap has drawn twice is no pair with itself.
    """
    values = []
    for task in np.unique(pairs["task"]) if length(pairs) else ():
        of = subset(pairs, pairs["task"] == task)
        i, j = np.triu_indices(length(of), 1)
        apart = of["own_name"][i] != of["own_name"][j]
        signs = np.sign(of["gain"][i] - of["gain"][j]) * np.sign(of["steps"][j] - of["steps"][i])
        if apart.any():
            values.append(float(signs[apart].mean()))
    return float(np.mean(values)) if values else 0.0


def _median(rows: Table, mask: NDArray[Any], column: str) -> float:
    return float(np.nanmedian(rows[column][mask])) if mask.any() else math.nan


def _by(rows: Table, factor: str) -> str:
    values = np.unique(rows[factor]) if length(rows) else ()
    return ", ".join(
        f"{v} {share(subset(rows, rows[factor] == v), 'curvature_part'):.2f}" for v in values
    )


def _left_out(table: Table, rows: Table) -> str:
    """Count the runs and the steps whose gain has no logarithm."""
    failed = int((table["kind"] == "failed").sum()) if "kind" in table else 0
    still = int((table["kind"] == "step").sum()) - length(rows) if "kind" in table else 0
    if not length(rows):
        return f"{counted(failed, 'path')} did not come to the last loss."
    own, reference = rows["curvature"] <= 0, rows["gd_curvature"] <= 0
    return (
        f"{counted(failed, 'path')} did not come to the last loss; {counted(still, 'step')} "
        f"{agreeing(still, 'was', 'were')} 0. Of {counted(length(rows), 'step')} "
        f"{int((rows['alignment'] <= 0).sum())} go uphill, {int(own.sum())} along curvature "
        f"that is not positive, {int(reference.sum())} are at points where gradient descent's is "
        "not: they are left out here."
    )


def _matrix(rows: Table, column: str) -> dict[str, dict[str, float]]:
    """{driver: {probe: mean over tasks of the median}}."""
    found: dict[str, dict[str, float]] = {}
    probes = [p for p in dict.fromkeys(rows["probe"].tolist()) if p != REFERENCE]
    for driver in dict.fromkeys(rows["driver"].tolist()):
        found[driver] = {}
        for probe in probes:
            own = (rows["driver"] == driver) & (rows["probe"] == probe)
            medians = [
                _median(rows, own & (rows["task"] == t), column) for t in np.unique(rows["task"])
            ]
            found[driver][probe] = float(np.nanmean(medians)) if medians else math.nan
    return found


def _anova(rows: Table) -> str:
    """Shares of the spread of the driver x probe matrix of log gains."""
    grid = np.array([list(row.values()) for row in _matrix(rows, "log_gain").values()])
    centred = grid - grid.mean()
    total = float((centred**2).sum())
    if not (np.isfinite(total) and total > 0):
        return ""
    driver = float((centred.mean(1) ** 2).sum()) * grid.shape[1] / total
    probe = float((centred.mean(0) ** 2).sum()) * grid.shape[0] / total
    return (
        f"Of the spread of the driver x probe matrix {driver:.0%} is the driver's, {probe:.0%} the "
        f"probe's, {1 - driver - probe:.0%} is interaction."
    )


def _panels(
    rows: Table, adaptive: Sequence[str], level: float
) -> dict[str, list[tuple[str, Interval]]]:
    """For the own path and for SGD's: the median log gain of each probe on each task."""
    panels: dict[str, list[tuple[str, Interval]]] = {}
    for title, own in (("on its own path", True), ("on gradient descent's path", False)):
        panels[title] = []
        for task, probe in product(np.unique(rows["task"]), adaptive):
            on = rows["driver"] == (probe if own else REFERENCE)
            of = subset(rows, on & (rows["probe"] == probe) & (rows["task"] == task))
            if length(of) and len(np.unique(of["seed"])) > 1:
                interval = cluster_bootstrap(of, _median_gain, "seed", 200, level, "percentile")
                if math.isfinite(interval.low):
                    panels[title].append((f"{probe}, {task}", interval))
    return panels


def _median_gain(rows: Table) -> float:
    return float(np.nanmedian(rows["log_gain"]))


def planted_table(study: SpeedCurvature, world: str, seed: int) -> Table:
    """Steps and times of a world, as many as in the size small.

    - own_path: probes differ by curvature; adaptive ones gain on their own path and lose on SGD's.
    - every_path: they gain on every path, which one driver alone cannot tell from own_path.
    - alignment: probes differ by alignment alone.
    - negative_curvature: as alignment, and one step in seven has curvature that is not positive.
    - unrelated: as own_path, times having nothing to do with gains.
    """
    random = np.random.default_rng([seed, sorted(study.worlds).index(world)])
    grid = study.declaration.sizes["small"]
    by_alignment = world in ("alignment", "negative_curvature")
    quality = {p: 0.0 if p == REFERENCE else random.normal(0, 1) for p in study.probes}
    rows: list[dict[str, Any]] = []
    for task, driver, s in product(grid["tasks"], study.drivers, grid["seeds"]):
        for level, probe in product(range(3), study.probes):
            gain = _planted_gain(world, driver, probe, study.adaptive) + quality[probe]
            noise = random.normal(0, 0.3, 2) * (probe != REFERENCE)
            if by_alignment:
                aligned, curved = -abs(gain) + 0.3 * noise[0], 0.1 * noise[1]
                aligned *= not (world == "negative_curvature" and driver == probe)
            else:
                aligned = -0.5 * (probe != REFERENCE)
                curved = gain - aligned + noise[1]
            row = {"task": task, "driver": driver, "seed": s, "kind": "step", "probe": probe}
            bend = math.exp(-curved)
            if world == "negative_curvature" and probe != REFERENCE and random.random() < 1 / 7:
                bend = -bend
            rows.append(
                row
                | {"level": level, "alignment": math.exp(min(0.0, aligned) / 2), "curvature": bend}
                | {"gd_curvature": 1.0, "gn": abs(bend), "gn_gd": 1.0}
            )
    for task, probe in product(grid["tasks"], study.probes):
        speed = random.normal(0, 1) if world == "unrelated" else quality[probe]
        for scale, s in product(grid["scales"], grid["seeds"]):
            off = math.log(scale) ** 2 / 3
            steps = 100 * math.exp(-0.5 * speed + off + random.normal(0, 0.05))
            row = {"task": task, "driver": REFERENCE, "seed": s, "kind": "timed", "probe": probe}
            rows.append(row | {"scale": scale, "steps": steps})
    return columns(rows)


def _planted_gain(world: str, driver: str, probe: str, adaptive: Sequence[str]) -> float:
    if probe not in adaptive or world in ("alignment", "negative_curvature"):
        return 0.0 if probe == REFERENCE else 0.7
    if world == "every_path" or driver == probe:
        return 3.0
    return -3.0 if driver == REFERENCE else 0.0
