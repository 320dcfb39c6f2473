"""What holds the optimizers that stand beyond their formula: the oscillation, at its finite size.

Adadelta and Adafactor stand a tenth above 2/η on λ₁(P⁻¹H). Here they are looked at twice, on the
orbit x₀, x₁, x₂ and at its centre x̄ = (x₀ + 2x₁ + x₂)/4, where nothing oscillates. For sign descent
the centre alone has to foretell the orbit.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench import lab
from optbench.curvature import Loss, top_eigenpairs
from optbench.dynamics.critical_rate import critical_rate
from optbench.dynamics.describing_function import alternation
from optbench.dynamics.dispatch import edge
from optbench.dynamics.edges import EigenvalueEdge
from optbench.dynamics.norm_sharpness import norm_sharpness
from optbench.dynamics.oscillating_eigenvalue import multiplier
from optbench.dynamics.training_map import TrainingMap
from optbench.intervals import Interval
from optbench.lab.snapshot import Snapshot
from optbench.probes.edge import AtEdge
from optbench.studies.edge_atlas import mean_interval
from optbench.studies.figures import draw_forest
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
)
from optbench.studies.judging import UNKNOWN, judged
from optbench.studies.measured_once import measured_once

SIGN = "signsgd"
NEAR = math.log(1.05)
"""Largest |log| of what is met."""

VERSION = "1"


class EdgePlateaus:
    """Some optimizers on some seeds, looked at on their plateau.

    Args:
        declaration: What is declared; `sizes` has seeds, steps and looks, the steps looked at.
        optimizers: {name: overrides}; `signsgd` among them is predicted, the others are compared
            with their own centre.
        common: Overrides of every run.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "theory": dict.fromkeys(("moving", "held", "sign_level", "sign_floor"), SUPPORTED),
        # the oscillation has no part in it: centre and orbit are at the same distance
        "linear": {"moving": REFUTED, "held": REFUTED},
        # the mean of two optimizers is at 1, and neither of them
        "apart": {"moving": REFUTED},
        "elsewhere": dict.fromkeys(("sign_level", "sign_floor"), REFUTED),
    }

    def __init__(
        self,
        declaration: Declaration,
        optimizers: Mapping[str, Sequence[str]],
        common: Sequence[str],
    ) -> None:
        self.declaration, self.optimizers, self.common = declaration, optimizers, common

    @property
    def adaptive(self) -> list[str]:
        """The optimizers that have accumulators."""
        return [name for name in self.optimizers if name != SIGN]

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size."""
        grid = self.declaration.sizes[size]
        own = (f"steps={grid['steps']}", f"keep_steps={list(grid['looks'])}".replace(" ", ""))
        return [
            Cell(
                {"optimizer": name, "seed": seed, "looks": tuple(grid["looks"])},
                (*self.common, *self.optimizers[name], *own, f"seed={seed}"),
            )
            for name, seed in product(self.optimizers, grid["seeds"])
        ]

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """A row for each look; one alone for a run that diverged."""
        name, looks = str(cell.factors["optimizer"]), list(cell.factors["looks"])
        factors = {"optimizer": name, "seed": cell.factors["seed"]}
        run = lab.open(folder)
        if run.status != "done":
            return [factors | {"diverged": 1.0}]

        def look(step: int) -> dict[str, float]:
            at = run.at(step=step)
            return foretold(at) if name == SIGN else with_and_without(at)

        found = measured_once(
            folder, "plateau", [looks, VERSION], lambda: {str(step): look(step) for step in looks}
        )
        return [
            rounded(factors | {"diverged": 0.0, "step": step} | found[str(step)]) for step in looks
        ]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the declared rules, to each seed's mean over its looks."""
        rules: Mapping[str, tuple[str, list[str], Callable[[Values], Values]]] = {
            "moving": ("multiplier", self.adaptive, lambda v: 2 - np.abs(v).max(0) / NEAR),
            "held": ("centre", self.adaptive, lambda v: np.asarray(v.min(0))),
            "sign_level": ("level", [SIGN], lambda v: 0.1 - np.abs(v).max(0)),
            "sign_floor": ("floor", [SIGN], lambda v: 0.1 - np.abs(v).max(0)),
        }
        findings = []
        for hypothesis in self.declaration.hypotheses:
            column, names, rule = rules[hypothesis.name]
            values = self.logs(table, column, names)
            n = int(np.isfinite(values).sum())
            if values.shape[1] < 2 or not np.isfinite(values).all():
                findings.append(judged(hypothesis, UNKNOWN, n, "A run has no level."))
                continue
            means = zip(names, np.exp(values.mean(1)), strict=True)
            told = ", ".join(f"{name} {mean:.3f}" for name, mean in means)
            estimate = mean_interval(rule(values), self.declaration.level)
            findings.append(judged(hypothesis, estimate, n, f"Means of {column}: {told}."))
        return findings

    def logs(self, table: Table, column: str, names: Sequence[str]) -> "Values":
        """Mean over the looks of the logarithm of a column, (optimizers, seeds); NaN: no level."""
        if not length(table) or column not in table:
            return np.full((len(names), 0), math.nan)
        seeds = np.unique(table["seed"])
        found = np.full((len(names), len(seeds)), math.nan)
        for (i, name), (j, seed) in product(enumerate(names), enumerate(seeds)):
            own = table[column][(table["optimizer"] == name) & (table["seed"] == seed)]
            if len(own) and bool((own > 0).all()):
                found[i, j] = np.log(own).mean()
        return found

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world, as large as that of the size small."""
        rng = np.random.default_rng([seed, list(self.worlds).index(world)])
        grid = self.declaration.sizes["small"]
        rows = []
        for name, s, step in product(self.optimizers, grid["seeds"], grid["looks"]):
            multiplier, centre = rng.normal(0.015, 0.015), rng.normal(0.1, 0.015)
            level, floor = rng.normal(0.01, 0.01, 2)
            if world == "linear":
                multiplier = centre
                centre = rng.normal(0, 0.01)
            if world == "apart":
                multiplier += 0.1 if name == self.adaptive[0] else -0.1
            if world == "elsewhere":
                level, floor = level + 0.2, floor - 0.2
            logs = {"multiplier": multiplier, "centre": centre, "level": level, "floor": floor}
            row = {"optimizer": name, "seed": s, "step": step, "diverged": 0.0}
            rows.append(row | {key: math.exp(log) for key, log in logs.items()})
        return columns(rows)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw each optimizer's distances, as logarithms: 0 is the edge."""
        columns_of = {
            **dict.fromkeys(self.adaptive, ("formula", "multiplier", "formula_centre", "centre")),
            SIGN: ("measured", "predicted", "level", "floor"),
        }
        panels: dict[str, list[tuple[str, Interval]]] = {}
        for name, wanted in columns_of.items():
            for column in wanted:
                values = self.logs(table, column, [name])[0]
                if len(values) > 1 and np.isfinite(values).all():
                    interval = mean_interval(values, self.declaration.level)
                    panels.setdefault(name, []).append((LABELS[column], interval))
        if panels:
            yield draw_forest(panels, "ln(distance or ratio)", folder / "distances", sesoi=NEAR)


LABELS = {
    "formula": "formula, on the orbit",
    "multiplier": "multiplier, on the orbit",
    "formula_centre": "formula, at the centre",
    "centre": "multiplier, at the centre",
    "measured": "norm sharpness over its threshold",
    "predicted": "the same, predicted",
    "level": "predicted over measured",
    "floor": "loss, predicted over measured",
}
Values = NDArray[np.float64]
"""One number an optimizer and seed, (optimizers, seeds)."""


def with_and_without(at: Snapshot) -> dict[str, float]:
    """Distances to the edge on the orbit, and at its centre, where nothing oscillates.

    Returns:
        formula: λ₁(P⁻¹H) over its threshold, P of the accumulators as they are, at x₀.
        multiplier: 1/c, where the map's multiplier has modulus 1 at c times the learning rate, the
            accumulators moving as weights do, at x₀.
        formula_centre, centre: the same at x̄, of weights and accumulators.
    """
    step, states = _orbit(at)
    row = {"formula": _formula(at, *step.copies(states[0])), "multiplier": _distance(step)}
    model, optimizer = step.copies(_centre(states))
    row["formula_centre"] = _formula(at, model, optimizer)
    still = TrainingMap(model, at.task.loss, _data(at), optimizer)
    return row | {"centre": _distance(still)}


def foretold(at: Snapshot) -> dict[str, float]:
    """What the centre of sign descent's orbit foretells of the orbit, by harmonic balance.

    1. z solves ½(F(x̄ + z) − F(x̄ − z)) = −z: the alternation, from the centre alone.
    2. The threshold of norm sharpness, 2‖g‖₁/η, is taken at x̄ ± z in place of x₀, x₁; the loss too.

    Returns:
        measured: S η/(2‖g‖₁), S = max dᵀHd over ‖d‖_∞ ≤ 1, mean of x₀ and x₁.
        predicted: S at x̄, with the mean of ‖g(x̄ ± z)‖₁.
        level: predicted over measured.
        floor: loss at x̄ ± z over that at x₀ and x₁, means.
        amplitude: ‖z‖ of the weights over that of (x₀ − 2x₁ + x₂)/4.
    """
    step, states = _orbit(at)
    found, centre = alternation(step), _centre(states)
    weights = torch.tensor([name == "weight" for name in step.names()])
    lr = float(at.optimizer.param_groups[0]["lr"])

    def loss(x: Tensor) -> Loss:
        return Loss(step.copies(x)[0], at.task.loss, _data(at))

    def top(x: Tensor, starts: Sequence[Tensor]) -> float:
        hessian, held = loss(x).hessian(), [p for p in at.model.parameters() if p.requires_grad]
        best = norm_sharpness(hessian.__matmul__, held, "linf", starts=starts, dtype=torch.float64)
        return best.value

    sides = states[:2], [centre + found.predicted, centre - found.predicted]
    orbit, both = ([loss(x).value_and_gradient() for x in of] for of in sides)
    measured = [
        lr * top(x, [g.sign()]) / (2 * float(g.abs().sum()))
        for x, (_, g) in zip(states[:2], orbit, strict=True)
    ]
    size = float(np.mean([float(g.abs().sum()) for _, g in both]))
    predicted = lr * top(centre, [g.sign() for _, g in both]) / (2 * size)
    floors = [float(np.mean([float(value) for value, _ in of])) for of in (both, orbit)]
    return {
        "measured": float(np.mean(measured)),
        "predicted": predicted,
        "level": predicted / float(np.mean(measured)),
        "floor": floors[0] / floors[1],
        "amplitude": float(found.predicted[weights].norm() / found.measured[weights].norm()),
    }


def _data(at: Snapshot) -> tuple[Tensor, Any]:
    """Inputs in double precision, and targets."""
    return at.task.train.inputs.double(), at.task.train.targets


def _orbit(at: Snapshot) -> tuple[TrainingMap, list[Tensor]]:
    """The map at a state, and three states in a row."""
    step = TrainingMap(at.model, at.task.loss, _data(at), at.optimizer)
    states = [step.origin]
    for _ in range(2):
        states.append(step.image(states[-1]))
    return step, states


def _centre(states: Sequence[Tensor]) -> Tensor:
    return (states[0] + 2 * states[1] + states[2]) / 4


def _distance(step: TrainingMap) -> float:
    return critical_rate(step, multiplier(step.product, step.size)).distance


def _formula(at: Snapshot, model: nn.Module, optimizer: Optimizer) -> float:
    known = edge(optimizer)
    assert isinstance(known, EigenvalueEdge), "their formulas are on an eigenvalue"
    hessian = Loss(model, at.task.loss, _data(at)).hessian()
    return float(top_eigenpairs(AtEdge(known, hessian), 1).values[0]) / known.threshold
