"""Does SAM generalize because it flattens? Product of two signs, by bias and by norm."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from optbench import lab
from optbench.boundary.counting import counted
from optbench.lab.measures import definitions
from optbench.lab.point import Point
from optbench.record.axes import plain_log
from optbench.statistics import cluster_bootstrap, kendall_tau, verdict
from optbench.studies.figures import LOOKS, draw_curves, new_figure, save
from optbench.studies.frame import (
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Cell,
    Declaration,
    Finding,
    Size,
    Table,
    length,
    subset,
)
from optbench.studies.judging import UNKNOWN
from optbench.studies.measured_once import measured_once
from optbench.task import Task

PLAIN, BIAS, NORM = "no bias", "bias", "norm"
SAM, SGD = "sam", "sgd"
Arm = tuple[str, str]
"""Architecture and optimizer."""

DRAWS = 2000
DESCENT_STEPS = 3000
"""Most steps of gradient descent from the end of a run to the loss of the comparison."""


class ThreeScenarios:
    """SAM and SGD on y = x₁x₂, in two-layer ReLU networks, at several sizes of the training set.

    Args:
        declaration: What is declared; `sizes` has architectures, examples, seeds, first_seed and
            steps.
        architectures: {name: {words: overrides, lr: learning rate of both optimizers}}.
        common: Overrides of all runs.
        rho: SAM's radius.
        loss: Training loss at or below which solutions are compared.
        floor: Errors of both arms below this, in points, leave no room for a difference.
        ceiling: Errors of both arms above this likewise.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        # as Wen et al. have it
        "three_scenarios": {
            "gain_no_bias": SUPPORTED,
            "gain_bias": REFUTED,
            "gain_norm": SUPPORTED,
            "bias_errs_more": SUPPORTED,
            "bias_is_flatter": SUPPORTED,
        },
        # SAM helps wherever it flattens, and flattens equally
        "flatness_rules": {
            "gain_no_bias": SUPPORTED,
            "gain_bias": SUPPORTED,
            "gain_norm": SUPPORTED,
            "bias_errs_more": REFUTED,
            "bias_is_flatter": REFUTED,
        },
        # SAM flattens and does nothing else
        "nothing": {"gain_no_bias": REFUTED, "gain_bias": REFUTED, "gain_norm": REFUTED},
        # as flatness_rules, but with so many examples that all solutions generalize
        "floor": {"gain_no_bias": SUPPORTED, "gain_bias": SUPPORTED, "gain_norm": SUPPORTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        architectures: Mapping[str, Mapping[str, Any]],
        common: Sequence[str],
        rho: float,
        loss: float,
        floor: float,
        ceiling: float,
    ) -> None:
        self.declaration = declaration
        self.architectures, self.common = architectures, common
        self.rho, self.loss = rho, loss
        self.floor, self.ceiling = floor, ceiling

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size."""
        grid = self.declaration.sizes[size]
        seeds = range(grid["first_seed"], grid["first_seed"] + grid["seeds"])
        arms = product(grid["architectures"], (SGD, SAM), grid["examples"], seeds)
        return [self._cell(*arm, grid["steps"]) for arm in arms]

    def _cell(self, name: str, optimizer: str, examples: int, seed: int, steps: int) -> Cell:
        architecture = self.architectures[name]
        lr = architecture["lr"]
        chosen = (
            ("optimizer=sgd", f"optimizer.lr={lr}")
            if optimizer == SGD
            else ("optimizer=sam", f"optimizer.base.lr={lr}", f"optimizer.rho={self.rho}")
        )
        command = (
            *architecture["words"],
            *chosen,
            *self.common,
            f"task.train_size={examples}",
            f"seed={seed}",
            f"steps={steps}",
        )
        factors = {
            "architecture": name,
            "optimizer": optimizer,
            "examples": examples,
            "seed": seed,
        }
        return Cell(factors, command)

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """One row: the run's end, taken down to the loss of the comparison, and measured there."""
        lr = float(self.architectures[cell.factors["architecture"]]["lr"])
        settings = [self.loss, lr, DESCENT_STEPS, definitions()]
        row = measured_once(folder, "solution", settings, lambda: self._solution(folder, lr))
        return [dict(cell.factors) | row]

    def _solution(self, folder: Path, lr: float) -> dict[str, Any]:
        run = lab.open(folder)
        if run.status != "done":
            return {"reached": 0.0, "diverged": float(run.status == "diverged")}
        end = run.end
        loss, steps = descend(end.model, end.task, lr, self.loss)
        row = {"reached": float(loss <= self.loss), "diverged": 0.0, "descent": steps, "loss": loss}
        measured = lab.measure(Point(end.model, end.task), ["trace", "sharpness"])
        row |= {name: reading.value for name, reading in measured.items()}
        row["error"] = 100 * test_error(end.model, end.task)
        return {name: float(f"{value:.6g}") for name, value in row.items()}

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the runs that reached the loss."""
        if "reached" not in table or "error" not in table:
            table = {}
        rows = subset(table, table["reached"] == 1) if table else table
        rules: dict[str, Callable[[], Finding]] = {
            "gain_no_bias": lambda: self._difference(rows, "gain_no_bias", (PLAIN, SAM)),
            "gain_bias": lambda: self._difference(rows, "gain_bias", (BIAS, SAM)),
            "gain_norm": lambda: self._difference(rows, "gain_norm", (NORM, SAM)),
            "bias_errs_more": lambda: self._difference(
                rows, "bias_errs_more", (BIAS, SAM), (PLAIN, SAM)
            ),
            "bias_is_flatter": lambda: self._difference(
                rows, "bias_is_flatter", (BIAS, SAM), (PLAIN, SAM), "log_trace"
            ),
            "within": lambda: self._within(rows),
        }
        missing = (
            f"Of {counted(length(table), 'run')} {length(table) - length(rows)} did not "
            f"come to the loss."
        )
        return [
            _with(rules[h.name](), missing if length(rows) < length(table) else "")
            for h in self.declaration.hypotheses
        ]

    def _difference(
        self,
        rows: Table,
        name: str,
        arm: Arm,
        other: Arm | None = None,
        outcome: str = "error",
    ) -> Finding:
        """Mean over sizes with room of the outcome of one arm less another's, paired by seed."""
        other = other or (arm[0], SGD)
        hypothesis = next(h for h in self.declaration.hypotheses if h.name == name)
        sizes, full = self._sizes(rows, arm, other)
        pairs = [paired(rows, arm, other, size, outcome) for size in sizes]
        pairs = [pair for pair in pairs if len(pair["seed"]) > 1]
        if not pairs:
            return _unknown(name, f"No size leaves room for a difference. {full}".strip())
        joined = {key: np.concatenate([pair[key] for pair in pairs]) for key in pairs[0]}
        estimate = cluster_bootstrap(
            joined,
            _mean_over_sizes,
            draws=DRAWS,
            level=self.declaration.level,
            method="percentile",
        )
        by_size = ", ".join(f"{s:g}: {_mean_of(joined, s):+.3g}" for s in sizes)
        said = verdict(estimate, hypothesis.sesoi, hypothesis.sign)
        why = f"By number of examples: {by_size}. {full}".strip()
        return Finding(name, estimate, said, len(joined["seed"]), why)

    def _sizes(self, rows: Table, arm: Arm, other: Arm) -> tuple[list[float], str]:
        """Sizes of the training set at which a difference could show, and what to say of others.

        Where both arms err by less than the floor, or by more than the ceiling, an absence of a
        difference says nothing. The rule does not know which arm is which.
        """
        kept, full = [], []
        for size in np.unique(rows["examples"]) if length(rows) else []:
            means = [_mean_error(rows, each, size) for each in (arm, other)]
            if max(means) >= self.floor and min(means) <= self.ceiling:
                kept.append(float(size))
            elif all(map(math.isfinite, means)):
                full.append(f"{size:g}")
        said = f"At {', '.join(full)} examples both arms are at the floor or at chance." * bool(
            full
        )
        return kept, said

    def _within(self, rows: Table) -> Finding:
        """Mean over cells of SAM of Kendall's τ of trace with error, over the seeds."""
        hypothesis = next(h for h in self.declaration.hypotheses if h.name == "within")
        kept = [
            subset(rows, _mask(rows, (name, SAM), size))
            for name in (np.unique(rows["architecture"]) if length(rows) else [])
            for size in self._sizes(rows, (name, SAM), (name, SAM))[0]
        ]
        kept = [cell for cell in kept if length(cell) >= 3]
        if not kept:
            return _unknown("within", "No cell of SAM leaves room for a difference.")
        joined = {key: np.concatenate([cell[key] for cell in kept]) for key in kept[0]}
        estimate = cluster_bootstrap(
            joined, _tau, draws=500, level=self.declaration.level, method="percentile"
        )
        said = verdict(estimate, hypothesis.sesoi, hypothesis.sign)
        return Finding("within", estimate, said, length(joined))

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world: errors and traces with means by arm and size."""
        return planted(world, seed, self.declaration.sizes["small"])

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the error by number of examples, and against the trace."""
        if "error" not in table:
            return
        rows = subset(table, (table["reached"] == 1) & np.isfinite(table["error"]))
        names = [name for name in (PLAIN, BIAS, NORM) if name in rows["architecture"]]
        panels = {
            name: {f"{optimizer}": _curve(rows, (name, optimizer)) for optimizer in (SGD, SAM)}
            for name in names
        }
        yield draw_curves(panels, "training examples", "test error, %", folder / "error")
        yield draw_against_trace(rows, names, folder / "error_against_trace")


def descend(model: nn.Module, task: Task, lr: float, loss: float) -> tuple[float, int]:
    """Take full-batch gradient steps until the training loss is at most `loss`.

    SAM does not come to rest at a minimum but about it, at a loss in proportion to ρ²; a few plain
    steps take it there.

    Returns:
        Loss, and number of steps.
    """
    inputs, targets = task.train.inputs, task.train.targets
    parameters = list(model.parameters())
    for step in range(DESCENT_STEPS + 1):
        value = task.loss(model(inputs), targets)
        if float(value.detach()) <= loss or step == DESCENT_STEPS:
            break
        gradients = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(lr * g)
    return float(value.detach()), step


@torch.no_grad()
def test_error(model: nn.Module, task: Task) -> float:
    """Error on the test split, in [0, 1]."""
    assert task.test is not None and task.error is not None
    return float(task.error(model(task.test.inputs), task.test.targets))


test_error.__test__ = False  # type: ignore[attr-defined]  # pytest: no test of that name


def _with(finding: Finding, words: str) -> Finding:
    why = f"{finding.why} {words}".strip()
    return Finding(finding.hypothesis, finding.estimate, finding.verdict, finding.n, why)


def _unknown(name: str, why: str) -> Finding:
    return Finding(name, UNKNOWN, UNDECIDED, 0, why)


def _mask(rows: Table, arm: Arm, size: float) -> Any:
    return (
        (rows["architecture"] == arm[0])
        & (rows["optimizer"] == arm[1])
        & (rows["examples"] == size)
    )


def _mean_error(rows: Table, arm: Arm, size: float) -> float:
    errors = rows["error"][_mask(rows, arm, size)]
    return float(errors.mean()) if len(errors) else math.nan


def paired(rows: Table, arm: Arm, other: Arm, size: float, outcome: str = "error") -> Table:
    """Outcome of one arm less another's at one size, of the seeds that both have.

    Args:
        rows: Runs.
        arm: Architecture and optimizer.
        other: What is taken off.
        size: Number of training examples.
        outcome: `error`, in points, or `log_trace`, in nats.
    """
    by_seed: list[dict[float, float]] = []
    for each in (arm, other):
        cell = subset(rows, _mask(rows, each, size))
        values = np.log(cell["trace"]) if outcome == "log_trace" else cell["error"]
        by_seed.append(dict(zip(cell["seed"].tolist(), values.tolist(), strict=True)))
    first, second = by_seed
    seeds = sorted(first.keys() & second.keys())
    return {
        "seed": np.asarray(seeds, dtype=float),
        "examples": np.full(len(seeds), size),
        "difference": np.asarray([first[s] - second[s] for s in seeds], dtype=float),
    }


def _mean_of(joined: Table, size: float) -> float:
    return float(joined["difference"][joined["examples"] == size].mean())


def _mean_over_sizes(joined: Table) -> float:
    return float(np.mean([_mean_of(joined, size) for size in np.unique(joined["examples"])]))


def _tau(rows: Table) -> float:
    taus = []
    for name, size in product(np.unique(rows["architecture"]), np.unique(rows["examples"])):
        cell = subset(rows, _mask(rows, (name, SAM), size))
        if length(cell) >= 3:
            taus.append(kendall_tau(cell["trace"], cell["error"], ties="sign"))
    return float(np.mean(taus)) if taus else math.nan


def _curve(rows: Table, arm: Arm) -> tuple[list[float], list[float]]:
    sizes = np.unique(rows["examples"]).tolist()
    return sizes, [_mean_error(rows, arm, size) for size in sizes]


def draw_against_trace(rows: Table, names: Sequence[str], place: Path) -> str:
    """Draw every solution: error against trace, a panel for each size of the training set."""
    sizes = np.unique(rows["examples"])
    figure = new_figure(3.4 * len(sizes), 3.8)
    axes = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axis, size in zip(axes, sizes, strict=True):
        for (name, optimizer), (color, marker) in zip(
            product(names, (SGD, SAM)), LOOKS, strict=False
        ):
            cell = subset(rows, _mask(rows, (name, optimizer), size))
            label = f"{name}, {optimizer}"
            axis.plot(
                cell["trace"],
                cell["error"],
                marker,
                color=color,
                label=label,
                markersize=5,
                alpha=0.8,
            )
        plain_log(axis)
        axis.set_xlabel("trace of ∇²L")
        axis.set_title(f"{size:g} examples", fontsize=10, loc="left")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("test error, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return save(figure, place)


def planted(world: str, seed: int, grid: Mapping[str, Any]) -> Table:
    """Simulate the table of a world.

    The error falls from chance to 0 along the size, errors = 50 σ((m − n)/15), with m the size at
    which an arm is half way; an arm that generalizes better has the smaller m.

    Args:
        world: One of `ThreeScenarios.worlds`.
        seed: Seed of the draw.
        grid: Size of the study: architectures, examples, seeds.
    """
    rng = np.random.default_rng(seed)
    gains = {"three_scenarios": (40, 0, 30), "flatness_rules": (35, 35, 35), "nothing": (0, 0, 0)}
    gain = dict(zip((PLAIN, BIAS, NORM), gains.get(world, (35, 35, 35)), strict=True))
    many = 400 if world == "floor" else 0  # examples more than the grid has room for
    flatter = 0.5 if world == "three_scenarios" else 0.0
    columns: dict[str, list[Any]] = {name: [] for name in PLANTED}
    for of_seed in range(grid["seeds"]):
        luck = rng.normal(scale=6)  # a seed has its examples, the same for both optimizers
        for name, optimizer, size in product(grid["architectures"], (SGD, SAM), grid["examples"]):
            half_way = 110 - gain[name] * (optimizer == SAM) + luck + rng.normal(scale=1)
            error = 50 / (1 + math.exp(min(50.0, (size + many - half_way) / 15)))
            log_trace = 4 - 1.4 * (optimizer == SAM) - flatter * (name == BIAS)
            row = {
                "architecture": name,
                "optimizer": optimizer,
                "examples": float(size),
                "seed": float(of_seed),
                "reached": 1.0,
                "diverged": 0.0,
                "error": max(0.0, error + rng.normal(scale=0.4)),
                "trace": math.exp(log_trace + rng.normal(scale=0.1)),
            }
            for key, value in row.items():
                columns[key].append(value)
    return {name: np.asarray(values) for name, values in columns.items()}


PLANTED = (
    "architecture",
    "optimizer",
    "examples",
    "seed",
    "reached",
    "diverged",
    "error",
    "trace",
)
