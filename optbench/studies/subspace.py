"""Does learning happen in the sharpest directions? Steps projected onto them, and off them.

With V the top k eigenvectors of the Hessian of the training loss at w, and d the optimizer's step,

    full: w + d,    top: w + VVᵀd,    bulk: w + d − VVᵀd

The optimizer's own state sees the gradients along its projected path.

References:
    Song, Ahn & Yun (2024), arXiv:2405.16002.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from optbench import lab, metrics
from optbench.curvature import Eigenpairs, Hessian, top_eigenpairs
from optbench.dynamics import EigenvalueEdge, GradientEdge, edge, reordered
from optbench.intervals import Interval
from optbench.lab.snapshot import Snapshot
from optbench.probes.edge import AtEdge
from optbench.statistics import cluster_bootstrap
from optbench.studies.figures import draw_curves, draw_forest
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
from optbench.task import Task

Arm = Literal["full", "top", "bulk"]

FRESH = 0.8
"""Least share of the top curvature that eigenvectors must still hold when they are renewed."""

AT_EDGE = 0.9
"""Least distance to the edge, of gradient descent, that a start must have."""

ACCURACY = 0.03
"""Residual of the eigenvectors over λ₁. At a tenth of it, loss ratios moved by less than .005."""

LAST = 20
"""Steps at the end over which the loss is averaged: at the edge it oscillates."""

WORST = 10.0
"""Loss ratio that a diverged arm counts as."""

DRAWS = 500
CLAIMS = ("top_stalls", "bulk_learns", "bulk_adam", "bulk_edge", "stale")


class Subspace:
    """Optimizers x seeds, each trained to its edge; then arms of steps projected on k directions.

    Args:
        declaration: What is declared; `sizes` has seeds, steps, after, k, wider, every, stale.
        words: Overrides of the task.
        optimizers: {name: overrides}.
        common: Overrides of all runs.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "valley": dict.fromkeys(CLAIMS, SUPPORTED) | {"stale": REFUTED},
        "shared": dict.fromkeys(CLAIMS, REFUTED) | {"stale": SUPPORTED},
        # the truth is that of shared: the projections were on directions long gone
        "stale_vectors": dict.fromkeys(CLAIMS[:-1], REFUTED),
    }

    def __init__(
        self,
        declaration: Declaration,
        words: Sequence[str],
        optimizers: Mapping[str, Sequence[str]],
        common: Sequence[str],
    ) -> None:
        self.declaration, self.words = declaration, words
        self.optimizers, self.common = optimizers, common
        self.k = int(declaration.sizes["small"]["k"])

    def plan(self, size: Size) -> list[Cell]:
        """The runs to the edge."""
        grid = self.declaration.sizes[size]
        cells = []
        for optimizer, seed in product(self.optimizers, grid["seeds"]):
            own, common = self.optimizers[optimizer], self.common
            command = (*self.words, *own, *common, f"seed={seed}", f"steps={grid['steps']}")
            settings = {name: grid[name] for name in ("after", "k", "wider", "every", "stale")}
            cells.append(Cell({"optimizer": optimizer, "seed": seed} | settings, command))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """A row for each arm; a run that diverged is one row without arms."""
        factors = {name: cell.factors[name] for name in ("optimizer", "seed")}
        arms = measured_once(
            folder, "arms", [dict(cell.factors), "2"], lambda: {"rows": _arms(cell, folder)}
        )["rows"]
        k = cell.factors["k"]
        floor = measured_once(
            folder, "floor", [k, "1"], lambda: {"rows": _floor(lab.open(folder), k)}
        )["rows"]
        return [factors | row | {"floor": floor} for row in arms]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the arms whose eigenvectors were fresh."""
        rows, missing = usable(table)
        rules: dict[str, Callable[[Table], tuple[Callable[[Table], float], Table]]] = {
            "top_stalls": self._top,
            "bulk_learns": self._bulk,
            "bulk_adam": self._bulk_adam,
            "bulk_edge": self._edge,
            "stale": self._stale,
        }
        found = []
        for h in self.declaration.hypotheses:
            statistic, chosen = rules[h.name](rows)
            estimate = self._bootstrap(chosen, statistic)
            why = f"{missing} {_told(rows, h.name, self.k)}".strip()
            found.append(judged(h, estimate, length(chosen), why))
        return found

    def _bootstrap(self, rows: Table, statistic: Callable[[Table], float]) -> Interval:
        return interval_of(rows, statistic, self.declaration.level, DRAWS)

    def _top(self, rows: Table) -> tuple[Callable[[Table], float], Table]:
        chosen = _where(rows, arm="top", k=self.k, main=1)
        return lambda t: _least(t, lambda of: of["ratio"].mean()) - 0.9, chosen

    def _bulk(self, rows: Table) -> tuple[Callable[[Table], float], Table]:
        chosen = _where(rows, arm="bulk", k=self.k, main=1)
        along = chosen["optimizer"] != "adam" if length(chosen) else np.zeros(0, bool)
        return _gained, subset(chosen, along)

    def _bulk_adam(self, rows: Table) -> tuple[Callable[[Table], float], Table]:
        return _gained, _where(rows, arm="bulk", k=self.k, main=1, optimizer="adam")

    def _edge(self, rows: Table) -> tuple[Callable[[Table], float], Table]:
        chosen = _where(rows, arm="bulk", k=self.k, main=1, optimizer="gd")
        return lambda t: float(np.log(t["distance"]).mean() - math.log(1.8)), chosen

    def _stale(self, rows: Table) -> tuple[Callable[[Table], float], Table]:
        """Top ratio with vectors renewed at every second step less that with fresh ones."""
        ages = _where(rows, arm="top", k=self.k, optimizer="gd")
        chosen = subset(ages, ages["every"] <= 2) if length(ages) else {}

        def statistic(t: Table) -> float:
            old = t["every"] == 2
            if old.all() or not old.any():
                return math.nan
            return float(t["ratio"][old].mean() - t["ratio"][~old].mean())

        return statistic, chosen

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return planted_table(self, world, seed)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the loss ratio of each arm, by optimizer and k; and what old eigenvectors do."""
        rows, _ = usable(table)
        if not length(rows):
            return
        main = _where(rows, main=1)
        yield draw_forest(
            {
                f"{arm} steps": _intervals(_where(main, arm=arm), self.k, self.declaration.level)
                for arm in ("full", "top", "bulk")
            },
            "log(loss after/loss before)",
            folder / "loss_ratio",
        )
        aged = _where(table, optimizer="gd", k=self.k)
        if len(np.unique(aged["every"])) > 1:
            curves = {arm: _by_age(_where(aged, arm=arm)) for arm in ("top", "bulk")}
            yield draw_curves(
                {"gradient descent": curves},
                "steps between eigenvectors",
                "loss after over loss before",
                folder / "stale",
                "x",
            )


def _floor(run: lab.Run, k: int) -> float | None:
    if run.status != "done":
        return None
    return six_digits(
        valley_floor(run.at(), k, float(run.series(metrics.TRAIN_LOSS)[1][-LAST:].mean()))
    )


def _arms(cell: Cell, folder: Path) -> list[dict[str, Any]]:
    run, wanted = lab.open(folder), cell.factors
    if run.status != "done":
        return [{"arm": "failed"}]
    steps = wanted["after"]
    first = float(run.series(metrics.TRAIN_LOSS)[1][-LAST:].mean())
    full = advance(run.at(), "full", 0, 1, steps, first)
    rows = [{"arm": "full", "k": 0, "main": 1} | full]
    ages = _ages(wanted["optimizer"], wanted)
    arms: tuple[Arm, Arm] = ("top", "bulk")
    for (k, age, main), arm in product(ages, arms):
        found = advance(run.at(), arm, k, age, steps, first)
        rows.append({"arm": arm, "k": k, "main": main} | found)
    return [row | {"full_ratio": full["ratio"]} for row in rows]


def _ages(optimizer: str, grid: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """(k, steps between renewals, whether the hypotheses are about it) of an optimizer's arms."""
    k, every = grid["k"], grid["every"]
    ages = [(k, every, 1)]
    if optimizer == "gd":
        ages += [(wider, every, 1) for wider in grid["wider"]]
        ages += [(k, age, 0) for age in grid["stale"]]
    return ages


def valley_floor(snapshot: Snapshot, k: int, first: float, steps: int = 3) -> float:
    """Return the loss without oscillation over the loss `first`, by Newton's steps in the top.

        w ← w − V diag(λ)⁻¹ Vᵀ∇L(w)

    At the edge a run swings across a valley along its sharpest directions. What top steps gain
    down to this floor is the end of the swing, and no progress along the valley. The snapshot's
    model is moved.
    """
    model, task, weights = snapshot.model, snapshot.task, snapshot.parts.update.parameters
    hessian = Hessian(model, task.loss, (task.train.inputs, task.train.targets))
    for _ in range(steps):
        pairs = top_eigenpairs(hessian, k)
        along = pairs.vectors.T @ hessian.loss.gradient()
        w = parameters_to_vector(weights).detach()
        vector_to_parameters(w - pairs.vectors @ (along / pairs.values), weights)
    return _loss(model, task) / first


@dataclass
class Top:
    """The k top eigenvectors along a path, renewed every so many steps.

    Attributes:
        hessian: Operator at the current weights.
        k: Number of eigenvectors.
        every: Steps between renewals.
        kept: What share of the new top curvature the old vectors still hold, at each renewal:
            Σ λ_i ‖V_oldᵀv_i‖²/Σ λ_i.
    """

    hessian: Hessian
    k: int
    every: int
    kept: list[float] = field(default_factory=list)
    _pairs: Eigenpairs | None = None

    def at(self, step: int) -> Tensor:
        """Eigenvectors for a step, (P, k), to be asked for before it is taken."""
        if self._pairs is None or step % self.every == 0:
            before = self._pairs
            self._pairs = top_eigenpairs(
                self.hessian, self.k, start=before, tol=ACCURACY, accuracy=ACCURACY
            )
            if before is not None:
                overlaps = (before.vectors.T @ self._pairs.vectors).square().sum(0)
                weights = self._pairs.values.clamp(min=0)
                self.kept.append(float(overlaps @ weights / weights.sum()))
        return self._pairs.vectors


def advance(
    snapshot: Snapshot, arm: Arm, k: int, every: int, steps: int, first: float
) -> dict[str, Any]:
    """Go on from a snapshot by projected steps; return the loss ratio and where it came to.

    Args:
        snapshot: Start; its model is moved.
        arm: Which part of the steps is taken.
        k: Number of top directions; 0 for the arm `full`.
        every: Steps between renewals of the eigenvectors.
        steps: Number of steps.
        first: Training loss before, the mean of as many steps as at the end.

    Returns:
        ratio: mean training loss of the last steps over `first`; `WORST` if it diverged.
        start_distance, distance: to the optimizer's edge, 1 at the edge; None where unknown.
        held: mean share of ‖d‖² that lies in the top directions.
        fresh: least of `Top.kept`.
        every: the argument.
    """
    update, task, batches = snapshot.parts.update, snapshot.task, snapshot.batches
    model = update.model.train()
    data = (task.train.inputs, task.train.targets)
    top = Top(Hessian(model, task.loss, data), k, every)
    losses, held = list[float](), list[float]()
    row: dict[str, Any] = {"every": every, "start_distance": _distance(snapshot, task)}
    for step in range(steps):
        before = parameters_to_vector(update.parameters).detach().clone()
        vectors = top.at(step) if k else None
        update(*batches.next())
        if vectors is not None:
            d = parameters_to_vector(update.parameters).detach() - before
            inside = vectors @ (vectors.T @ d)
            held.append(float(inside.square().sum() / d.square().sum().clamp(min=1e-30)))
            vector_to_parameters(
                before + (inside if arm == "top" else d - inside), update.parameters
            )
        if step >= steps - LAST or step % 10 == 0:
            losses.append(_loss(model, task))
            if not losses[-1] <= WORST * first:
                return row | {"ratio": WORST, "diverged": 1.0, "held": _mean(held)}
    ratio = float(np.mean(losses[-LAST:])) / first
    row |= {"ratio": six_digits(ratio), "diverged": 0.0, "held": _mean(held)}
    row["fresh"] = six_digits(min(top.kept)) if top.kept else None
    return row | {"distance": _distance(snapshot, task)}


def _loss(model: nn.Module, task: Task) -> float:
    with torch.no_grad():
        return float(task.loss(model(task.train.inputs), task.train.targets))


def _distance(snapshot: Snapshot, task: Task) -> float | None:
    """Distance to the edge of the snapshot's optimizer at its model's present weights."""
    model, optimizer = snapshot.model, snapshot.optimizer
    hessian = Hessian(model, task.loss, (task.train.inputs, task.train.targets))
    own = reordered(edge(optimizer), list(snapshot.parts.update.parameters))
    if isinstance(own, GradientEdge):
        own = own.at(hessian.loss.gradient())
    if not isinstance(own, EigenvalueEdge):
        return None
    operator = hessian if own.plain else AtEdge(own, hessian)
    distance = own.distance(float(top_eigenpairs(operator, 1, accuracy=1e-2).values[0]))
    return None if distance is None else six_digits(distance)


def _mean(values: Sequence[float]) -> float | None:
    return six_digits(float(np.mean(values))) if values else None


def usable(table: Table) -> tuple[Table, str]:
    """Return the arms that say something, and how many do not.

    - Runs that diverged before the arms began, and starts of gradient descent below its edge, are
      left out.
    - So are arms whose eigenvectors were stale, unless staleness is what they are there for.
    """
    if "ratio" not in table:
        return {}, "no run came to its edge"
    failed = table["arm"] == "failed"
    below = (table["optimizer"] == "gd") & ~(table["start_distance"] >= AT_EDGE) & ~failed
    stale = (table["main"] == 1) & (table["fresh"] < FRESH)
    counts = {
        "runs diverged": int(failed.sum()),
        "arms began below the edge": int(below.sum()),
        "arms had stale eigenvectors": int((stale & ~below).sum()),
        "arms diverged": int(np.nansum(table["diverged"])),
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return subset(table, ~(failed | below | stale)), f"{said}." if said else ""


def _where(rows: Table, **values: Any) -> Table:
    if not length(rows):
        return {}
    mask = np.ones(length(rows), dtype=bool)
    for name, value in values.items():
        mask &= rows[name] == value
    return subset(rows, mask)


def _least(rows: Table, value: Callable[[Table], Any]) -> float:
    """The least over the optimizers: the claims are of every one of them."""
    names = np.unique(rows["optimizer"])
    return float(min(value(_where(rows, optimizer=name)) for name in names))


def _gained(rows: Table) -> float:
    """Loss ratio of whole steps less that of bulk steps, plus .1."""
    return _least(rows, lambda of: (of["full_ratio"] - of["ratio"]).mean()) + 0.1


def _told(rows: Table, hypothesis: str, k: int) -> str:
    """The means by optimizer (or age) behind a hypothesis."""
    if hypothesis == "stale":
        of = _where(rows, arm="top", optimizer="gd", k=k)
        ages = np.unique(of["every"]) if length(of) else ()
        told = [
            f"renewed every {age:g}: top {each['ratio'].mean():.3f}, holding "
            f"{np.nanmean(each['fresh']):.2f} of the curvature"
            for age in ages
            for each in (_where(of, every=age),)
            if np.isfinite(each["fresh"]).any()
        ]
        return "; ".join(told)
    arm, column = {
        "top_stalls": ("top", "ratio"),
        "bulk_learns": ("bulk", "ratio"),
        "bulk_adam": ("bulk", "ratio"),
        "bulk_edge": ("bulk", "distance"),
    }[hypothesis]
    told = []
    floors = ""
    if hypothesis == "top_stalls" and "floor" in rows:
        floors = _floors(_where(rows, arm="top", main=1, k=k))
    for optimizer in np.unique(rows["optimizer"]) if length(rows) else ():
        for each in np.unique(rows["k"][rows["arm"] == arm]):
            of = _where(rows, arm=arm, k=each, main=1, optimizer=optimizer)
            if length(of) and np.isfinite(of[column]).any():
                told.append(
                    f"{optimizer} k={each:g} {np.nanmean(of[column]):.3f} (full "
                    f"{of['full_ratio'].mean():.3f}, step in the top {np.nanmean(of['held']):.2f}, "
                    f"start {np.nanmean(of['start_distance']):.2f} of its edge)"
                )
    word = "Loss ratios: " if column == "ratio" else "Distances: "
    return word + "; ".join(told) + "." + floors


def _floors(rows: Table) -> str:
    """Top steps against the floor of the valley at their start."""
    told = []
    for optimizer in np.unique(rows["optimizer"]):
        of = _where(rows, optimizer=optimizer)
        above = of["ratio"] / of["floor"]
        told.append(
            f"{optimizer} {of['floor'].mean():.3f} (top steps end at {above.mean():.3f} times it)"
        )
    return (
        " Added after this verdict was seen, and no part of it: without the oscillation along "
        f"these directions, the ratio at the start is {'; '.join(told)}."
    )


def _intervals(rows: Table, usual: int, level: float) -> list[tuple[str, Interval]]:
    """Mean log loss ratio by optimizer, and by k where it is not the usual one."""
    found = []
    for optimizer in dict.fromkeys(rows["optimizer"].tolist()):
        for k in np.unique(rows["k"]):
            of = _where(rows, optimizer=optimizer, k=k)
            if length(of) and len(np.unique(of["seed"])) > 1:
                interval = cluster_bootstrap(
                    of, lambda t: float(np.log(t["ratio"]).mean()), "seed", 200, level, "percentile"
                )
                label = optimizer if k in (0, usual) else f"{optimizer}, k={k:g}"
                found.append((label, interval))
    return found


def _by_age(rows: Table) -> tuple[NDArray[Any], list[float]]:
    ages = np.unique(rows["every"])
    return ages, [float(rows["ratio"][rows["every"] == age].mean()) for age in ages]


def planted_table(study: Subspace, world: str, seed: int) -> Table:
    """Arms of a world, as many as in the size small.

    - valley: the top stalls, the bulk learns and goes past the edge.
    - shared: progress is in both, and the bulk run stays near the edge; old vectors hide it.
    - stale_vectors: as shared, but the vectors were stale: top and bulk look as in valley.
    """
    random = np.random.default_rng([seed, sorted(study.worlds).index(world)])
    grid = study.declaration.sizes["small"]
    like_valley = world != "shared"
    ratio = {"full": 0.86, "top": 0.99 if like_valley else 0.89}
    ratio["bulk"] = 0.8 if like_valley else 0.95
    rows: list[dict[str, Any]] = []
    for optimizer, s in product(study.optimizers, grid["seeds"]):
        shift = random.normal(0, 0.01)
        base = {"optimizer": optimizer, "seed": s, "start_distance": 1.05, "diverged": 0.0}
        base |= {"full_ratio": ratio["full"] + shift}
        rows.append(base | {"arm": "full", "k": 0, "every": 1, "main": 1} | _planted(base, 1.05))
        for (k, age, main), arm in product(_ages(optimizer, grid), ("top", "bulk")):
            own = ratio[arm] + shift + random.normal(0, 0.01)
            if arm == "top" and age > 1 and world == "shared":
                own += 0.15
            fresh = 0.3 if world == "stale_vectors" else 0.97
            distance = (3.0 if like_valley else 1.1) * math.exp(random.normal(0, 0.05))
            row = {"arm": arm, "k": k, "every": age, "main": main, "ratio": own, "fresh": fresh}
            rows.append(base | row | {"held": 0.95, "distance": distance})
    return columns(rows)


def _planted(base: Mapping[str, Any], distance: float) -> dict[str, Any]:
    return {"ratio": base["full_ratio"], "distance": distance}
