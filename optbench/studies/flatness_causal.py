"""Does it change the error of a ReLU network to make it sharper, its function held?

A trained network is rescaled, W₁ → αW₁ and W₂ → W₂/α, which leaves the function as it is and moves
λ₁ by powers of α. It is then trained on, and compared at one training loss.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from optbench import lab
from optbench.boundary.counting import counted
from optbench.errors import UserError
from optbench.lab import per_example
from optbench.lab.flat_model import FlatModel
from optbench.lab.matching import at_loss
from optbench.lab.measures import definitions
from optbench.lab.point import Point
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
    subset,
)
from optbench.studies.judging import judged, mean_of_values
from optbench.studies.measured_once import measured_once

CONTROL, SHAM = "unchanged", "permuted"
PRESERVED = 1e-3
"""Largest relative change of the training loss by an arm that is to leave the function as it is."""
OF_EDGE = 0.5
"""GD's learning rate after the change is at most this share of 2/λ₁ there."""
DRAWS = 500


class FlatnessCausal:
    """α-rescaled and permuted copies of a trained network, trained on by GD and by Adam.

    Args:
        declaration: What is declared; `sizes` has tasks, seeds and steps.
        tasks: {name: {words, start, loss}}: overrides, the training loss at which the network is
            changed, and that at which it is compared after training on.
        common: Overrides of all runs.
        alphas: Values of α.
        rates: Learning rates after the change, of gd (an upper limit) and adam.
        every: Updates between two measurements of the error.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "nothing": {"sharper_gd": REFUTED, "sharper_adam": REFUTED},
        "sharper is worse": {"sharper_gd": SUPPORTED, "sharper_adam": SUPPORTED},
        "sham moves the loss": {"sharper_gd": REFUTED, "sharper_adam": REFUTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        tasks: Mapping[str, Mapping[str, Any]],
        common: Sequence[str],
        alphas: Sequence[float],
        rates: Mapping[str, float],
        every: int,
    ) -> None:
        self.declaration = declaration
        self.tasks, self.common = tasks, common
        self.alphas, self.rates, self.every = alphas, rates, every

    def plan(self, size: Size) -> list[Cell]:
        """The networks that are to be changed."""
        grid = self.declaration.sizes[size]
        cells = []
        for task, seed in product(grid["tasks"], range(grid["first_seed"], grid["last_seed"] + 1)):
            command = (
                *self.tasks[task]["words"],
                *self.common,
                f"seed={seed}",
                "stop.metric=train/loss",
                f"stop.below={self.tasks[task]['start']}",
            )
            cells.append(Cell({"task": task, "seed": seed, "steps": grid["steps"]}, command))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """Rows of a network: arms x {gd, adam}."""
        loss, steps = float(self.tasks[cell.factors["task"]]["loss"]), int(cell.factors["steps"])
        code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        content = [loss, steps, list(self.alphas), dict(self.rates), self.every, code]
        found = measured_once(
            folder,
            "flatness-causal",
            [content, definitions()],
            lambda: {"rows": self._rows(folder, loss, steps)},
        )
        factors = {name: cell.factors[name] for name in ("task", "seed")}
        return [factors | row for row in found["rows"]]

    def _rows(self, folder: Path, loss: float, steps: int) -> list[dict[str, Any]]:
        run = lab.open(folder)
        if run.status != "done" or not run.summary.get("stopped"):
            return [{"arm": CONTROL, "optimizer": name, "reached": 0.0} for name in self.rates]
        point = run.at().point()
        generator = torch.Generator().manual_seed(int(run.config.seed))
        changes: dict[str, Callable[[Sequence[nn.Linear]], None]] = {
            CONTROL: lambda layers: None,
            SHAM: lambda layers: permute(layers, generator),
        }
        for alpha in self.alphas:
            changes[f"alpha {alpha:g}"] = partial(rescale, alpha=alpha)
        rows = []
        for arm, change in changes.items():
            start = FlatModel(point.model, point.task.loss, point.train)
            change(linear_layers(start.model))
            here = Point(start.model, point.task, test_examples=None, seed=point.seed)
            sharpness = float(here.top.values[0])
            first = start.loss_at(start.weights)
            facts = {
                "arm": arm,
                "loss_before": first,
                "error_before": test_error(start.model, point),
                "sharpness_before": sharpness,
            }
            for name, limit in self.rates.items():
                lr = min(limit, OF_EDGE * 2 / sharpness) if name == "gd" else limit
                found = train_on(start, point, name, lr, steps, loss, self.every)
                rows.append(facts | {"optimizer": name, "lr_after": lr} | found)
        return [rounded(row) for row in rows]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the declared rules: the error of an arm less that of the sham, paired."""
        found = []
        for hypothesis in self.declaration.hypotheses:
            rows, why = effects(table, sharper_arms(table), RULES[hypothesis.name])
            estimate = mean_of_values(rows, self.declaration.level, DRAWS, least=3)
            found.append(judged(hypothesis, estimate, length(rows), why))
        return found

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return _planted(world, seed)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the paired differences of every arm with the sham, by task and optimizer."""
        panels = {}
        for optimizer in ("gd", "adam"):
            rows = []
            for task, arm in product(np.unique(table["task"]), np.unique(table["arm"])):
                if arm == SHAM:
                    continue
                part, _ = effects(subset(table, table["task"] == task), [str(arm)], optimizer)
                if length(part) and len(np.unique(part["seed"])) > 2:
                    rows.append(
                        (f"{task}, {arm}", mean_of_values(part, self.declaration.level, DRAWS))
                    )
            if rows:
                panels[f"after training on by {optimizer}"] = rows
        if panels:
            yield draw_forest(panels, "test error less that of the sham, pp", folder / "arms", 1.0)


RULES: Mapping[str, str] = {"sharper_gd": "gd", "sharper_adam": "adam"}
"""{hypothesis: which optimizer trains on}."""


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """The two linear layers of a ReLU network with one hidden layer.

    Raises:
        UserError: If it is another network.
    """
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if len(found) != 2:
        raise UserError(f"rescaling is of networks with two linear layers, got {len(found)}")
    return found


@torch.no_grad()
def rescale(layers: Sequence[nn.Linear], alpha: float) -> None:
    """W₁, b₁ → αW₁, αb₁ and W₂ → W₂/α, in place: a ReLU network's function stays.

    References:
        Dinh et al. (2017), arXiv:1703.04933, section 3.
    """
    first, second = layers
    first.weight.mul_(alpha)
    if first.bias is not None:
        first.bias.mul_(alpha)
    second.weight.div_(alpha)


@torch.no_grad()
def permute(layers: Sequence[nn.Linear], generator: torch.Generator) -> None:
    """Give the hidden units another order, in place: the function stays, and all eigenvalues."""
    first, second = layers
    order = torch.randperm(first.out_features, generator=generator)
    first.weight.copy_(first.weight[order])
    if first.bias is not None:
        first.bias.copy_(first.bias[order])
    second.weight.copy_(second.weight[:, order])


def test_error(model: nn.Module, point: Point) -> float:
    """Test error, in percentage points."""
    data = point.task.test
    assert data is not None and point.task.error is not None
    return 100 * float(point.task.error(per_example.outputs(model, data.inputs), data.targets))


def train_on(
    start: FlatModel, point: Point, name: str, lr: float, steps: int, loss: float, every: int
) -> dict[str, Any]:
    """Train on by full-batch GD or Adam until a loss; return the error there, interpolated.

    The weights are set back at the end.
    """
    first = start.weights.clone()
    kind = {"gd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
    parameter = nn.Parameter(start.weights)  # it shares its memory with the model
    optimizer = kind([parameter], lr=lr)
    points, step = list[tuple[float, float]](), 0
    for step in range(steps + 1):
        value, gradient = start.gradient()
        if not math.isfinite(value):
            break
        if step % every == 0 or value <= loss:
            points.append((value, test_error(start.model, point)))
        if value <= loss:
            break
        parameter.grad = gradient
        optimizer.step()
    last = start.weights.clone()
    start.weights.copy_(first)
    reached = bool(points) and points[-1][0] <= loss
    return {
        "reached": float(reached),
        "steps_after": float(step),
        "moved": float((last - first).norm()),
        "error": at_loss(points, loss).value if reached else math.nan,
    }


def effects(table: Table, arms: Sequence[str], optimizer: str = "") -> tuple[Table, str]:
    """Return the error of these arms less that of the sham, paired by task, seed and optimizer.

    An arm that has moved the training loss by more than 0.1 % has not left the function as it is:
    its pair is left out, as is that of a sham that has.
    """
    by_key: dict[tuple[str, float, str], dict[str, tuple[float, float]]] = {}
    for i in range(length(table)):
        of = str(table["optimizer"][i])
        if optimizer and of != optimizer:
            continue
        key = (str(table["task"][i]), float(table["seed"][i]), of)
        if table["reached"][i] == 1 and np.isfinite(table["error"][i]):
            pair = float(table["error"][i]), float(table["loss_before"][i])
            by_key.setdefault(key, {})[str(table["arm"][i])] = pair
    rows, moved, missing = [], 0, 0
    for (task, seed, of), found in by_key.items():
        for arm in arms:
            if not {arm, SHAM, CONTROL} <= set(found):
                missing += 1
                continue
            base = found[CONTROL][1]
            if max(abs(found[a][1] / base - 1) for a in (arm, SHAM)) > PRESERVED:
                moved += 1
                continue
            value = found[arm][0] - found[SHAM][0]
            rows.append({"task": task, "seed": seed, "optimizer": of, "arm": arm, "value": value})
    parts = ((missing, "did not come to the matched loss"), (moved, "had moved the training loss"))
    words = ", ".join(f"{counted(n, 'pair')} {what}" for n, what in parts if n)
    return columns(rows), f"Of arms {', '.join(arms)}: {words or 'all are compared'}."


def sharper_arms(table: Table) -> list[str]:
    """The α that raise λ₁ by more than a tenth, by the median over all networks."""
    if not length(table) or "sharpness_before" not in table:
        return []
    medians = {
        str(arm): float(np.nanmedian(table["sharpness_before"][table["arm"] == arm]))
        for arm in np.unique(table["arm"])
    }
    least = 1.1 * medians.get(CONTROL, math.nan)
    return [arm for arm, m in medians.items() if arm.startswith("alpha") and m > least]


def _planted(world: str, seed: int) -> Table:
    """Tables of 2 tasks x 10 seeds x {gd, adam}, all arms, noise of .7 pp a run.

    - nothing: the error does not change.
    - sharper is worse: +2 pp where λ₁ is larger.
    - sham moves the loss: no arm changes the error; in a third of the networks the sham has
      moved the loss by 5 %, and its error by −4 pp.
    """
    rng = np.random.default_rng([seed, list(FlatnessCausal.worlds).index(world)])
    sharpness = {
        CONTROL: 10,
        SHAM: 10,
        "alpha 0.1": 500,
        "alpha 1": 10,
        "alpha 3": 50,
        "alpha 10": 90,
    }
    rows = []
    for task, of in product(("first", "second"), range(1, 11)):
        broken = world == "sham moves the loss" and rng.random() < 1 / 3
        for (arm, value), optimizer in product(sharpness.items(), ("gd", "adam")):
            effect = 2.0 * (value > 10) if world == "sharper is worse" else 0.0
            rows.append(
                {
                    "task": task,
                    "seed": of,
                    "arm": arm,
                    "optimizer": optimizer,
                    "reached": 1.0,
                    "loss_before": 0.1 * (1.05 if broken and arm == SHAM else 1.0),
                    "sharpness_before": float(value),
                    "error": 30 + effect + rng.normal(0, 0.7) - 4 * (broken and arm == SHAM),
                }
            )
    return columns(rows)
