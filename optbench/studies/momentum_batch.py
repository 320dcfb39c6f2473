"""Where does batch sharpness settle with momentum: where small batches do, or where large ones do?

    small batches: 2(1−β)/η,    large batches: 2(1+β)/η

β is the momentum, η the learning rate. At a fixed η/(1−β) the first is one value for all β. On a
logarithmic scale between the two, a plateau S has the

    position = log(S η/(2(1−β)))/log((1+β)/(1−β)):    0 at the first, 1 at the second

Its relative position has the plateau of plain SGD with the same batch and η/(1−β) in the place of
2(1−β)/η: what small batches do to SGD without momentum is not momentum's doing. With the full batch
S is λ₁ itself: between oscillations the full gradient leaves the top direction, and curvature along
it says nothing of the edge.

References:
    arXiv:2604.14108 (both plateaus); Andreyev & Beneventano (2024), arXiv:2412.20553 (batch
    sharpness).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from optbench import lab
from optbench.boundary.counting import counted
from optbench.curvature.selection import trainable
from optbench.intervals import Interval
from optbench.seeds import generator
from optbench.statistics import verdict
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
from optbench.studies.judging import interval_of
from optbench.studies.measured_once import measured_once
from optbench.task import Loss, Task

ARRIVED = 0.15
"""Most by which log batch sharpness may change from the third to the last quarter of a run."""

DRAWS = 500


class MomentumBatch:
    """Momenta x batch sizes x seeds at one η/(1−β), long enough to come to a plateau.

    Args:
        declaration: What is declared; `sizes` has momenta, batches, seeds, steps, seen, drawn.
        words: Overrides of all runs.
        rate: η/(1−β).
        examples: Number of training examples: a batch of as many is the full batch.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "both_plateaus": dict.fromkeys(("moves", "small", "relative", "large"), SUPPORTED),
        "one_plateau": {"moves": REFUTED, "small": SUPPORTED, "large": REFUTED},
        "other_plateaus": {"moves": REFUTED, "small": REFUTED, "large": REFUTED},
        "noisy": {"moves": SUPPORTED, "small": REFUTED, "relative": SUPPORTED, "plain": REFUTED},
        # small batches lower all plateaus alike, and momentum has no part in it
        "noise_alone": {"moves": REFUTED, "large": REFUTED, "plain": REFUTED},
        # the truth is that of both_plateaus, and large batches are still on their way
        "too_short": {"moves": SUPPORTED, "large": SUPPORTED},
    }

    def __init__(
        self, declaration: Declaration, words: Sequence[str], rate: float, examples: int
    ) -> None:
        self.declaration, self.words = declaration, words
        self.rate, self.examples = rate, examples

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size; each keeps checkpoints over its second half."""
        grid = self.declaration.sizes[size]
        steps, seen = grid["steps"], grid["seen"]
        kept = [round(steps * (0.5 + 0.5 * (i + 1) / seen)) for i in range(seen)]
        cells = []
        for beta, batch, seed in product(grid["momenta"], grid["batches"], grid["seeds"]):
            command = (
                *self.words,
                "optimizer=momentum",
                f"optimizer.momentum={beta:g}",
                f"optimizer.lr={self.rate * (1 - beta):.6g}",
                f"batch_size={'full' if batch == self.examples else batch}",
                f"seed={seed}",
                f"steps={steps}",
                f"keep_steps=[{','.join(map(str, kept[:-1]))}]",
            )
            factors = {"momentum": beta, "size": batch, "seed": seed}
            cells.append(Cell(factors | {"drawn": grid["drawn"]}, command))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """One row: batch sharpness in the third and the last quarter, and λ₁ in the last."""
        found = measured_once(
            folder,
            "plateau",
            [dict(cell.factors), "1"],
            lambda: plateau(lab.open(folder), cell.factors["size"], cell.factors["drawn"]),
        )
        factors = {name: cell.factors[name] for name in ("momentum", "size", "seed")}
        return [factors | found]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the runs that came to a plateau."""
        rows, missing = self.arrived(table)
        moving = subset(rows, rows["momentum"] > 0) if length(rows) else {}
        plain = subset(rows, rows["momentum"] == 0) if length(rows) else {}
        small, large = self._sizes()
        rules: dict[str, tuple[Table, Callable[[Table], float]]] = {
            "moves": (moving, lambda t: _moved(t, small, large)),
            "small": (moving, lambda t: 0.4 - _at(t, small, _farthest)),
            "relative": (moving, lambda t: 0.4 - _at(t, small, _farthest, "relative")),
            "large": (moving, lambda t: 0.4 - _at(t, self.examples, lambda v: _farthest(v, 1.0))),
            "plain": (plain, lambda t: 0.3 - _farthest(list(_means(t, "size").values()))),
        }
        found = []
        for h in self.declaration.hypotheses:
            of, statistic = rules[h.name]
            estimate = self._bootstrap(of, statistic)
            said = verdict(estimate, h.sesoi, h.sign)
            why = f"{missing} {_told(plain if h.name == 'plain' else moving)}".strip()
            found.append(Finding(h.name, estimate, said, length(of), why))
        return found

    def arrived(self, table: Table) -> tuple[Table, str]:
        """Return the runs at a plateau, with their position, and how many are not at one.

        A momentum and batch size most of whose runs are still moving is left out whole: those that
        arrive first are no fair sample of the others.
        """
        if "last" not in table:
            return {}, "no run came to its end"
        done = subset(table, np.isfinite(table["last"]))
        late = ~(np.abs(np.log(done["last"] / done["third"])) <= ARRIVED)
        keys = list(zip(done["momentum"].tolist(), done["size"].tolist(), strict=True))
        shares = {key: np.mean([x for x, k in zip(late, keys, strict=True) if k == key])
                  for key in set(keys)}  # fmt: skip
        moving = {key for key, share in shares.items() if share > 0.5}
        rows = subset(done, np.array([key not in moving for key in keys], dtype=bool))
        named = ", ".join(f"β={b:g} b={s:g}" for b, s in sorted(moving)) or "none"
        return self._placed(rows), (
            f"{counted(length(table) - length(done), 'run')} diverged. Still moving, and left "
            f"out: {named}."
        )

    def _placed(self, rows: Table) -> Table:
        """The runs with their positions; without momentum, the log of Sη/2."""
        beta = rows["momentum"]
        log = np.log(rows["last"])
        plain = {
            (size, seed): value
            for b, size, seed, value in zip(beta, rows["size"], rows["seed"], log, strict=True)
            if b == 0
        }
        own = zip(rows["size"], rows["seed"], strict=True)
        reference = np.array([plain.get(key, math.nan) for key in own])
        span = np.where(beta > 0, np.log((1 + beta) / (1 - beta)), 1.0)
        return {
            **rows,
            "position": (log - math.log(2 / self.rate)) / span,
            "relative": (log - reference) / span,
        }

    def _sizes(self) -> tuple[float, float]:
        """The smallest batch, and the largest that is not the full one."""
        batches = [b for b in self.declaration.sizes["small"]["batches"] if b < self.examples]
        return min(batches), max(batches)

    def _bootstrap(self, rows: Table, statistic: Callable[[Table], float]) -> Interval:
        return interval_of(rows, statistic, self.declaration.level, DRAWS)

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return planted_table(self, world, seed)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the plateaus of batch sharpness and of λ₁ over 2(1−β)/η against the batch size."""
        rows, _ = self.arrived(table)
        if not length(rows):
            return
        panels = {
            title: {
                f"β = {beta:g}, large: {(1 + beta) / (1 - beta):.3g}": _curve(
                    subset(rows, rows["momentum"] == beta), column, self.rate
                )
                for beta in np.unique(rows["momentum"])
            }
            for title, column in (
                ("batch sharpness; full batch: λ₁", "last"),
                ("λ₁", "sharpness"),
            )
        }
        yield draw_curves(panels, "batch size", "plateau over 2(1−β)/η", folder / "plateaus", "x")


def plateau(run: lab.Run, size: int, drawn: int) -> dict[str, Any]:
    """Return the plateau in two quarters of a run, λ₁ and batch sharpness in the last one.

    The plateau is of batch sharpness, and of λ₁ for the full batch.

    Args:
        run: A run that has kept checkpoints over its second half.
        size: Examples of a batch.
        drawn: Batches drawn at each checkpoint.
    """
    if run.status != "done":
        return {"diverged": 1.0}
    steps, half = run.kept, len(run.kept) // 2
    along, sharpness = list[float](), list[float]()
    for step in steps:
        at = run.at(step=step)
        random = generator(int(run.config.seed), f"momentum_batch/{step}")
        along.append(mean_batch_sharpness(at.model.train(), at.task, size, drawn, random))
        sharpness.append(float(at.point().top.values[0]))
    full = size >= len(at.task.train)
    values = sharpness if full else along
    return {
        "diverged": 0.0,
        "third": six_digits(float(np.mean(values[:half]))),
        "last": six_digits(float(np.mean(values[half:]))),
        "sharpness": six_digits(float(np.mean(sharpness[half:]))),
        "along": six_digits(float(np.mean(along[half:]))),
        "loss": six_digits(run.last["train/loss"]),
    }


def mean_batch_sharpness(
    model: nn.Module, task: Task, size: int, drawn: int, random: torch.Generator
) -> float:
    """Return E_B[g_BᵀH_Bg_B/‖g_B‖²] over batches of a size; the one full batch where it is that."""
    inputs, targets = task.train.inputs, task.train.targets
    if size >= len(inputs):
        return curvature_along_gradient(model, task.loss, inputs, targets)
    values = []
    for _ in range(drawn):
        chosen = torch.randperm(len(inputs), generator=random)[:size].to(inputs.device)
        values.append(curvature_along_gradient(model, task.loss, inputs[chosen], targets[chosen]))
    return float(np.mean(values))


def curvature_along_gradient(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor
) -> float:
    """Return gᵀHg/‖g‖² of the loss on these examples, by Hg = ∇(½‖g‖²)."""
    weights = trainable(model)
    g = torch.autograd.grad(loss(model(inputs), targets), weights, create_graph=True)
    squared = torch.stack([part.square().sum() for part in g]).sum()
    products = torch.autograd.grad(squared / 2, weights)
    bend = sum(float((a.detach() * b).double().sum()) for a, b in zip(g, products, strict=True))
    return bend / float(squared.detach())


def _means(rows: Table, factor: str, column: str = "position") -> dict[float, float]:
    return {
        float(v): float(rows[column][rows[factor] == v].mean()) for v in np.unique(rows[factor])
    }


def _moved(rows: Table, small: float, large: float) -> float:
    """Mean relative position with the larger batch less that with the smaller."""
    ends = [_at(rows, size, np.mean, "relative") for size in (large, small)]
    return ends[0] - ends[1]


def _at(rows: Table, size: float, over: Callable[[Any], Any], column: str = "position") -> float:
    """A function of the mean positions of all momenta at a batch size; NaN where one lacks it."""
    own = subset(rows, rows["size"] == size)
    means = _means(own, "momentum", column) if length(own) else {}
    if set(means) != set(np.unique(rows["momentum"]).tolist()):
        return math.nan
    return float(over(list(means.values())))


def _farthest(values: Sequence[float], place: float = 0.0) -> float:
    return float(np.abs(np.asarray(values) - place).max()) if len(values) else math.nan


def _told(rows: Table) -> str:
    """The mean position at each momentum and batch size."""
    told = []
    for beta in np.unique(rows["momentum"]) if length(rows) else ():
        of = subset(rows, rows["momentum"] == beta)
        means, relative = _means(of, "size"), _means(of, "size", "relative")
        each = (f"b={s:g} {v:.2f} ({relative[s]:.2f})" for s, v in means.items())
        told.append(f"β={beta:g}: " + ", ".join(each))
    return f"Positions (and relative ones): {'; '.join(told)}." if told else ""


def _curve(rows: Table, column: str, rate: float) -> tuple[Any, list[float]]:
    sizes = np.unique(rows["size"])
    return sizes, [float(rows[column][rows["size"] == s].mean() * rate / 2) for s in sizes]


def planted_table(study: MomentumBatch, world: str, seed: int) -> Table:
    """Plateaus of a world, as many as in the size small.

    - both_plateaus: the position goes from 0 to 1 as the batch grows.
    - one_plateau: it is 0 at every batch size.
    - other_plateaus: it is .5 at every batch size.
    - noisy: as both_plateaus, and small batches lower all plateaus, those without momentum too.
    - noise_alone: as one_plateau, and small batches lower all plateaus.
    - too_short: as both_plateaus, but large batches have come half way, and are moving.
    """
    random = np.random.default_rng([seed, sorted(study.worlds).index(world)])
    grid = study.declaration.sizes["small"]
    small, large = study._sizes()
    rows: list[dict[str, Any]] = []
    for beta, size, s in product(grid["momenta"], grid["batches"], grid["seeds"]):
        grown = min(1.0, math.log(size / small) / math.log(large / small))
        fixed = {"one_plateau": 0.0, "noise_alone": 0.0, "other_plateaus": 0.5}
        position = 0.4 * grown if world == "too_short" else fixed.get(world, grown)
        span = math.log((1 + beta) / (1 - beta))
        lowered = -0.7 * (1 - grown) * (world in ("noisy", "noise_alone"))
        last = math.exp(position * span + lowered + random.normal(0, 0.04)) * 2 / study.rate
        change = 0.4 * grown if world == "too_short" else random.normal(0, 0.04)
        rows.append(
            {"momentum": beta, "size": size, "seed": s, "diverged": 0.0, "last": last}
            | {"third": last * math.exp(-change), "sharpness": last}
        )
    return columns(rows)
