"""Does Adam lead gradient descent because rare classes wait: is class k's loss like 1/(π_k t)?

    x_k ∈ [−1, 0] places class k: its share is π_k ∝ I^{x_k}, I the imbalance
    s(I) = slope of log ℓ_k on x_k at the step of the matched total loss
    exponent b = (s(I) − s(1))/log I:    ℓ_k ∝ π_k^b, less what the classes differ by anyway

Gradient descent in a softmax regression on one-hot inputs has b = −1, sign descent b = 0: every row
of weights moves at its own π_k, or at one speed for all. Steps are counted to a training loss, at
the rate that takes the fewest.

References:
    Kunstner et al. (2024), arXiv:2402.19449.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from optbench import lab
from optbench.intervals import Interval
from optbench.lab import Snapshot
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
    subset,
)
from optbench.studies.judging import interval_of, judged
from optbench.studies.many_rates import ManyRates
from optbench.studies.measured_once import measured_once
from optbench.task import Task

GD, ADAM, SIGN = "sgd", "adam_without_momentum", "sign"
FLOOR = 1e-6
"""Smallest loss of a class whose logarithm is taken, in nats."""

PATIENCE = 2
"""Training ends at this multiple of the steps of the first rate that came to the loss."""

DRAWS = 500


@dataclass(frozen=True)
class Problem:
    """A task of the study.

    Attributes:
        words: Overrides.
        loss: Training loss, less the smallest there can be, to which steps are counted; in nats.
        rates: {optimizer: (low, high)} of log₁₀ of the learning rate; four rates a decade.
    """

    words: Sequence[str]
    loss: float
    rates: Mapping[str, tuple[float, float]]

    def grid(self, optimizer: str) -> list[float]:
        """Learning rates, rising."""
        low, high = self.rates[optimizer]
        return [float(f"{10**x:.4g}") for x in np.arange(low, high + 1e-9, 0.25)]


class Imbalance:
    """Tasks x imbalances x seeds; every cell is a start, from which each optimizer is tuned.

    Args:
        declaration: What is declared; `sizes` has tasks, imbalances, seeds, steps.
        tasks: {name: fields of `Problem`}.
        common: Overrides of all runs.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "waits": dict.fromkeys(
            [f"{what}_{t}" for what in ("gd", "gap", "lead") for t in ("bigram", "digits")],
            SUPPORTED,
        ),
        "nothing": dict.fromkeys(
            [f"{what}_{t}" for what in ("gd", "gap", "lead") for t in ("bigram", "digits")], REFUTED
        ),
        # the classes that are made rare are the hard ones, whatever their share
        "hard_classes": dict.fromkeys(
            [f"{what}_{t}" for what in ("gd", "gap") for t in ("bigram", "digits")], REFUTED
        ),
        # nothing again, and GD's grid ends below its best rate, the more so the longer the tail
        "truncated": {"lead_bigram": REFUTED, "lead_digits": REFUTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        tasks: Mapping[str, Mapping[str, Any]],
        common: Sequence[str],
    ) -> None:
        self.declaration, self.common = declaration, common
        self.tasks = {name: Problem(**fields) for name, fields in tasks.items()}

    def plan(self, size: Size) -> list[Cell]:
        """The starts of a size."""
        grid = self.declaration.sizes[size]
        cells = []
        for task, ratio, seed in product(grid["tasks"], grid["imbalances"], grid["seeds"]):
            words = [word.format(seed=seed) for word in self.tasks[task].words]
            command = (*words, *self.common, f"task.imbalance={ratio}", f"seed={seed}")
            factors = {"task": task, "imbalance": ratio, "seed": seed}
            cells.append(Cell(factors | {"steps": grid["steps"]}, command))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """A row for each optimizer and rate: steps to the loss, and the tilt over classes there."""
        problem, steps = self.tasks[cell.factors["task"]], cell.factors["steps"]
        found = measured_once(
            folder,
            "imbalance",
            [vars(problem), steps, PATIENCE],
            lambda: {"rows": from_start(lab.open(folder).at(step=0), problem, steps)},
        )
        factors = {name: cell.factors[name] for name in ("task", "imbalance", "seed")}
        return [factors | row for row in found["rows"]]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules at the best rates, where these lie inside their grids."""
        found = []
        for h in self.declaration.hypotheses:
            what, task = h.name.split("_")
            optimizers = {"gd": [GD], "flat": [SIGN], "adam": [ADAM, GD], "gap": [SIGN, GD]}
            rows, why = best(table, task, optimizers.get(what, [ADAM, GD]))
            if length(rows) and what != "lead":  # an exponent is of the ends alone
                ends = (1, rows["imbalance"].max())
                rows = subset(rows, np.isin(rows["imbalance"], ends))
            estimate = interval_of(rows, STATISTICS[what], self.declaration.level, DRAWS)
            found.append(judged(h, estimate, length(rows), why))
        return found

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return columns(list(_planted(self, world, np.random.default_rng([seed, len(world)]))))

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw steps against the rate, and the estimates."""
        if not length(table):
            return
        tasks = [task for task in self.tasks if (table["task"] == task).any()]
        for task in tasks:
            yield draw_curves(
                _panels(subset(table, table["task"] == task)),
                "log₁₀ of the learning rate",
                "steps to the loss, median over seeds",
                folder / f"rates_{task}",
                log="y",
            )
        shown = [f for f in findings if math.isfinite(f.estimate.low)]
        panels: dict[str, list[tuple[str, Interval]]] = {}
        for finding in shown:
            what, task = finding.hypothesis.split("_")
            panels.setdefault(task, []).append((LABELS[what], finding.estimate))
        if panels:
            yield draw_forest(panels, "exponent, or nats a decade", folder / "estimates")


LABELS = {
    "gd": "b of GD",
    "gap": "b of sign − b of GD",
    "adam": "b of Adam − b of GD",
    "flat": ".5 − |b of sign|",
    "lead": "Adam's lead a decade",
}


# What a start comes to


@dataclass(frozen=True)
class Weighted:
    """A training set as rows with weights, soft labels, and a group each.

    Attributes:
        inputs: (M, …).
        targets: Shares of the labels (M, C).
        weights: Of the rows (M,), with sum 1.
        groups: Class of the row, or its current token (M,).
        places: x_k of each group (K,), in [−1, 0].
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    groups: Tensor
    places: NDArray[np.float64]

    def excess(self, outputs: Tensor) -> Tensor:
        """Cross-entropy less the entropy of the labels (R, M) for outputs (R, M, C)."""
        entropy = -torch.xlogy(self.targets, self.targets).sum(-1)
        return -(self.targets * F.log_softmax(outputs, -1)).sum(-1) - entropy

    def group_losses(self, excess: Tensor) -> Tensor:
        """Weighted mean in each group (R, K) of (R, M)."""
        one_hot = F.one_hot(self.groups, len(self.places)).to(excess.dtype)
        return (excess * self.weights) @ one_hot / (self.weights @ one_hot)


def weighted(task: Task) -> Weighted:
    """Rows of a task: the different inputs if they repeat (bigram), or its examples (digits)."""
    inputs, labels = task.train.inputs, task.train.targets
    C = task.output_width
    rows, which = torch.unique(inputs.flatten(1), dim=0, return_inverse=True)
    counts = torch.zeros(len(rows), C).index_put_(
        (which, labels), torch.ones(len(labels)), accumulate=True
    )
    of_row = counts.sum(1)
    one_token = len(rows) == rows.shape[1] == C and bool((rows.sum(1) == 1).all())
    groups = rows.argmax(1) if one_token else counts.argmax(1)
    ranks = np.arange(1, C + 1, dtype=np.float64)
    places = -np.log(ranks) / math.log(C) if one_token else -(ranks - 1) / (C - 1)
    shaped = rows.reshape(-1, *inputs.shape[1:])
    return Weighted(shaped, counts / of_row[:, None], of_row / of_row.sum(), groups, places)


def from_start(start: Snapshot, problem: Problem, steps: int) -> list[dict[str, Any]]:
    """Train by every optimizer at every rate; return a row for each."""
    data, rows = weighted(start.task), []
    for optimizer in problem.rates:
        rates = problem.grid(optimizer)
        for rate, (step, tilt) in zip(
            rates, trained(start, data, optimizer, rates, problem.loss, steps), strict=True
        ):
            row: dict[str, Any] = {"optimizer": optimizer, "rate": rate}
            if step is not None:
                row |= {"steps": step, "tilt": float(f"{tilt:.6g}")}
            rows.append(row)
    return rows


def trained(
    start: Snapshot,
    data: Weighted,
    optimizer: str,
    rates: Sequence[float],
    loss: float,
    steps: int,
) -> list[tuple[int, float] | tuple[None, None]]:
    """Return, for each rate, the first step at or below the loss, and the tilt there."""

    def mean(outputs: Tensor, _: Tensor) -> Tensor:
        return (data.weights * data.excess(outputs)).sum(-1)

    copies = ManyRates(start.model, optimizer, rates, mean)
    found: list[tuple[int, float] | tuple[None, None]] = [(None, None)] * len(rates)
    first = steps
    for step in range(steps + 1):  # outputs are those after `step` updates
        excess = data.excess(copies.step(data.inputs, data.targets))
        arrived = (excess @ data.weights <= loss).tolist()
        new = [r for r, yes in enumerate(arrived) if yes and found[r][0] is None]
        for r in new:
            found[r] = step, tilt(data.group_losses(excess[r : r + 1])[0].numpy(), data.places)
        if new:
            first = min(first, PATIENCE * step)
        if step >= first:
            break
    return found


def tilt(losses: NDArray[Any], places: NDArray[np.float64]) -> float:
    """Slope of log ℓ_k on x_k, all classes alike; losses (K,) and places (K,)."""
    logs = np.log(np.maximum(losses.astype(np.float64), FLOOR))
    centred = places - places.mean()
    return float(centred @ logs / (centred @ centred))


# The rules


def best(table: Table, task: str, optimizers: Sequence[str]) -> tuple[Table, str]:
    """Return the rows at each optimizer's best rate, by imbalance; none if one is at an end.

    The best rate has the smallest median over seeds of the steps to the loss, a run that did not
    come to it counting as infinitely long. Rates that tie: the middle one.
    """
    if "steps" not in table:
        return {}, "no run came to the loss"
    of_task = subset(table, table["task"] == task)
    chosen, said, ends = np.zeros(length(of_task), dtype=bool), [], []
    for optimizer, ratio in product(optimizers, np.unique(of_task["imbalance"])):
        mask = (of_task["optimizer"] == optimizer) & (of_task["imbalance"] == ratio)
        rates = np.unique(of_task["rate"][mask])
        steps = [_median(of_task["steps"][mask & (of_task["rate"] == r)]) for r in rates]
        ties = np.flatnonzero(np.asarray(steps) == min(steps, default=math.nan))
        where = f"{optimizer} at imbalance {ratio:g}"
        if not len(ties) or not math.isfinite(min(steps)):
            return {}, f"{where} did not come to the loss"
        if ties[0] == 0 or ties[-1] == len(rates) - 1:
            ends.append(where)
        rate = rates[ties[len(ties) // 2]]
        chosen |= mask & (of_task["rate"] == rate)
        said.append(f"{where}: {min(steps):g} steps at {rate:g}")
    if ends:
        return {}, f"the best rate is at the grid's end: {', '.join(ends)}"
    return subset(of_task, chosen), "; ".join(said)


def _median(steps: NDArray[Any]) -> float:
    return float(np.median(np.where(np.isfinite(steps), steps, math.inf)))


def exponent(rows: Table, optimizer: str) -> float:
    """b: tilt at the largest imbalance less that at 1, a unit of log imbalance; mean over seeds."""
    of = rows["optimizer"] == optimizer
    most = rows["imbalance"].max()
    means = [np.nanmean(rows["tilt"][of & (rows["imbalance"] == r)]) for r in (most, 1)]
    return float((means[0] - means[1]) / math.log(most))


def lead_slope(rows: Table) -> float:
    """Least-squares slope of log(GD's steps/Adam's) on log₁₀ of the imbalance."""
    ratios = np.unique(rows["imbalance"])
    leads = []
    for ratio in ratios:
        logs = [
            np.nanmean(
                np.log(rows["steps"][(rows["optimizer"] == o) & (rows["imbalance"] == ratio)])
            )
            for o in (GD, ADAM)
        ]
        leads.append(logs[0] - logs[1])
    return float(np.polyfit(np.log10(ratios), leads, 1)[0])


STATISTICS = {
    "gd": lambda t: exponent(t, GD),
    "gap": lambda t: exponent(t, SIGN) - exponent(t, GD),
    "adam": lambda t: exponent(t, ADAM) - exponent(t, GD),
    "flat": lambda t: 0.5 - abs(exponent(t, SIGN)),
    "lead": lead_slope,
}


# Planted worlds and figures


def _planted(study: Imbalance, world: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Rows whose steps are a parabola of the log rate; the best rate is where a world has it."""
    grid = study.declaration.sizes["small"]
    slow, b = (0.6, -1.0) if world == "waits" else (0.0, 0.0)
    hard = -3.0 if world == "hard_classes" else 0.0
    for task, ratio, seed in product(grid["tasks"], grid["imbalances"], grid["seeds"]):
        problem, decades = study.tasks[task], math.log10(ratio)
        for optimizer, (low, high) in problem.rates.items():
            best_at = (low + high) / 2
            if world == "truncated" and optimizer == GD:
                best_at = high + 0.5 * decades
            bias, noise = rng.normal(0, 0.05), rng.normal(0, 0.5)
            wait = (slow * decades, b * decades * math.log(10)) if optimizer == GD else (0.0, 0.0)
            for rate in problem.grid(optimizer):
                far = math.log10(rate) - best_at
                steps = round(60 * math.exp(wait[0] + bias + 2 * far**2))
                row = {"task": task, "imbalance": ratio, "seed": seed, "optimizer": optimizer}
                yield row | {"rate": rate, "steps": steps, "tilt": hard + wait[1] + noise}


def _panels(rows: Table) -> dict[str, dict[str, tuple[Any, Any]]]:
    panels: dict[str, dict[str, tuple[Any, Any]]] = {}
    for ratio, optimizer in product(np.unique(rows["imbalance"]), (GD, ADAM, SIGN)):
        mask = (rows["imbalance"] == ratio) & (rows["optimizer"] == optimizer)
        rates = np.unique(rows["rate"][mask])
        steps = [_median(rows["steps"][mask & (rows["rate"] == rate)]) for rate in rates]
        finite = [i for i, value in enumerate(steps) if math.isfinite(value)]
        name = optimizer.replace("_", " ")
        panels.setdefault(f"imbalance {ratio:g}", {})[name] = (
            np.log10(rates[finite]),
            [steps[i] for i in finite],
        )
    return panels
