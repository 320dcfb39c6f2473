"""Does the central flow foretell the time average of a run at its edge?

A run that crosses its edge goes on as if there were none, until the oscillation along the unstable
directions, small at first, has grown. What is compared begins there, at the run's own onset.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from optbench import lab
from optbench.boundary.counting import agreeing, counted
from optbench.curvature import Loss, Preconditioned, top_eigenpairs
from optbench.dynamics.central_flow import (
    EDGE,
    GradientDescent,
    RMSprop,
    Rule,
    State,
    central_flow,
    discrete,
    stable_flow,
)
from optbench.dynamics.flat_loss import FlatLoss
from optbench.errors import UserError
from optbench.intervals import Interval
from optbench.lab import Snapshot
from optbench.studies.figures import draw_curves, draw_forest
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
    subset,
)
from optbench.studies.judging import UNKNOWN, interval_of, judged
from optbench.studies.measured_once import measured_once

SGD, RMSPROP = "sgd", "rmsprop"
DRAWS = 2000
HALVES = math.log(2)
ACCURACY = 1e-3
LOOK = 5
"""Steps between two looks at λ₁ for the onset."""
ONSET_ACCURACY = 1e-4
"""Relative accuracy of λ₁ there; it rises by more than that from look to look."""

OUTCOMES = {
    "sgd_weights": (SGD, "weights"),
    "rmsprop_weights": (RMSPROP, "weights"),
    "sgd_loss": (SGD, "loss"),
    "rmsprop_loss": (RMSPROP, "loss"),
    "sgd_top": (SGD, "top"),
    "rmsprop_top": (RMSPROP, "top"),
}
"""{hypothesis: (optimizer, what is foretold)}."""


@dataclass(frozen=True)
class Guards:
    """When a run says something about a flow at the edge.

    Attributes:
        swing: Least excess of the average loss over the loss of the average weights, relative:
            below it the run did not oscillate.
        beyond: Most by which the flow's eigenvalues may pass the edge: above it the flow was not
            solved, as with a wrong third derivative.
    """

    swing: float
    beyond: float


@dataclass(frozen=True)
class Onset:
    """Where the edge phase of a run begins.

    Attributes:
        step: Steps from where the run was taken up.
        crossed: The first look at which it was past its edge, in steps too.
        top: Largest λ₁ of P⁻¹H before the onset.
    """

    step: int
    crossed: int
    top: float


class Flow:
    """Runs taken up below the edge, and followed by the optimizer, its stable and central flows.

    Args:
        declaration: What is declared; `sizes` has activations, optimizers, seeds, first_seed.
        settings: {activation: {optimizer: {lr, start}}}: learning rate, and steps before the flows
            begin.
        common: Overrides of all runs.
        patience: Most steps from there to the onset.
        length: Steps that are followed after the onset.
        substeps: Euler steps of the central flow a step of the optimizer.
        stable_substeps: Runge-Kutta steps of the stable flow a step of the optimizer.
        half_width: Steps on either side over which the run, and each flow, is averaged.
        times: Number of times after the onset at which they are compared.
        before: Number of times before it that are drawn, and not judged.
        guards: When a run counts.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "central": dict.fromkeys(OUTCOMES, SUPPORTED),
        # the oscillation does not move the average
        "no_better": dict.fromkeys(OUTCOMES, REFUTED),
        # the central flow is right, but the third derivative that it was given is not
        "wrong_third_derivative": dict.fromkeys(OUTCOMES, SUPPORTED),
        # the same, but the runs have not come to the edge
        "below_the_edge": dict.fromkeys(OUTCOMES, SUPPORTED),
        # the central flow is right, but for long the runs go on beyond the edge as the stable flow
        "long_overshoot": dict.fromkeys(OUTCOMES, SUPPORTED),
    }

    def __init__(
        self,
        declaration: Declaration,
        settings: Mapping[str, Mapping[str, Mapping[str, Any]]],
        common: Sequence[str],
        patience: int,
        length: int,
        substeps: int,
        stable_substeps: int,
        half_width: int,
        times: int,
        before: int,
        guards: Mapping[str, float],
    ) -> None:
        self.declaration, self.settings, self.common = declaration, settings, common
        self.substeps, self.stable_substeps = substeps, stable_substeps
        self.patience, self.length = patience, length
        self.half_width, self.times, self.before = half_width, times, before
        self.guards = Guards(**guards)

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size, each up to where the flows begin."""
        grid = self.declaration.sizes[size]
        seeds = range(grid["first_seed"], grid["first_seed"] + grid["seeds"])
        return [
            self._cell(activation, optimizer, seed)
            for activation, optimizer, seed in product(
                grid["activations"], grid["optimizers"], seeds
            )
        ]

    def _cell(self, activation: str, optimizer: str, seed: int) -> Cell:
        chosen = self.settings[activation][optimizer]
        command = (
            *self.common,
            f"model.activation={activation}",
            f"optimizer={optimizer}",
            f"optimizer.lr={chosen['lr']}",
            f"steps={chosen['start']}",
            f"seed={seed}",
        )
        return Cell({"activation": activation, "optimizer": optimizer, "seed": seed}, command)

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """A row for each time: how far each flow is from the run's time average."""
        settings = [
            self.patience,
            self.length,
            self.substeps,
            self.stable_substeps,
            self.half_width,
            self.times,
            self.before,
            ACCURACY,
            LOOK,
            ONSET_ACCURACY,
        ]
        found = measured_once(folder, "flows", settings, lambda: {"rows": self._rows(folder)})
        return [dict(cell.factors) | row for row in found["rows"]]

    def _rows(self, folder: Path) -> list[dict[str, Any]]:
        run = lab.open(folder)
        if run.status != "done":
            return [{"solved": 0.0}]
        loss, rule, state = begin(run.end)
        try:
            return self._compare(loss, rule, state)
        except (UserError, FloatingPointError):  # a flow without solution is a result
            return [{"solved": 0.0}]

    def _compare(self, loss: FlatLoss, rule: Rule, state: State) -> list[dict[str, Any]]:
        """Follow the optimizer and both flows, and compare them under one moving average."""
        run, began = follow(loss, rule, state, self.patience, self.length)
        if began is None:
            return [{"solved": 1.0}]
        onset, steps = began.step, len(run)
        losses = np.array([loss.value(s.weights) for s in run])
        stable = list(islice(stable_flow(loss, rule, state, self.stable_substeps), steps))
        central = list(islice(central_flow(loss, rule, state, self.substeps), steps))
        of_stable = np.array([loss.value(s.weights) for s in stable])
        predicted = np.array([c.predicted_loss for c in central])
        facts = {
            "solved": 1.0,
            "start": _top(loss, rule, state),
            "crossed": began.crossed,
            "onset": onset,
            "top_at_onset": began.top,
        }
        rows = []
        for time in self._looks(onset, steps):
            window = slice(time - self.half_width, time + self.half_width)
            average, of_central = (
                _average(run[window]),
                _average([c.state for c in central[window]]),
            )
            row = {
                "time": (time - onset) / self.length,
                **facts,
                "weights_central": _distance(of_central, average),
                "weights_stable": _distance(_average(stable[window]), average),
                "moved": _distance(state, average),
                "loss_run": losses[window].mean(),
                "loss_center": loss.value(average.weights),
                "loss_central": predicted[window].mean(),
                "loss_stable": of_stable[window].mean(),
                "top_run": _top(loss, rule, average),
                "top_central": _top(loss, rule, of_central),
                "top_stable": _top(loss, rule, _average(stable[window])),
                "highest": max(float(center.top[0]) for center in central[window]),
                "near": float((central[time].covariance.diagonal() > 0).sum()),
            }
            rows.append({name: float(f"{value:.6g}") for name, value in row.items()})
        return rows

    def _looks(self, onset: int, steps: int) -> list[int]:
        """Middles of the windows; those that are judged hold no step before the onset."""
        half = self.half_width
        count = self.before if onset >= 2 * half else 0
        before = np.linspace(half, onset - half, count)
        after = np.linspace(onset + half, steps - half, self.times)
        return [int(time) for time in (*before, *after)]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the runs that came to oscillate at the edge, from the onset on."""
        cells = [cell_of(rows) for rows in _by_run(table)]
        kept = [cell for cell in cells if self._counts(cell)]
        return [self._finding(h, kept, cells) for h in self.declaration.hypotheses]

    def _counts(self, cell: Mapping[str, Any]) -> bool:
        return bool(
            cell["solved"]
            and cell["start"] <= EDGE
            and cell["swing"] >= self.guards.swing
            and cell["beyond"] <= self.guards.beyond
        )

    def _finding(
        self,
        hypothesis: Hypothesis,
        kept: Sequence[Mapping[str, Any]],
        cells: Sequence[Mapping[str, Any]],
    ) -> Finding:
        optimizer, outcome = OUTCOMES[hypothesis.name]
        rows = columns([cell for cell in kept if cell["optimizer"] == optimizer])
        total = sum(cell["optimizer"] == optimizer for cell in cells)
        count = agreeing(length(rows), "counts", "count")
        why = (
            f"{length(rows)} of {counted(total, 'run')} {count}: the flows were solved and "
            f"the run oscillated."
        )
        if length(rows):
            late, top = np.median(rows["late"]), np.median(rows["top_at_onset"])
            why += (
                f" The oscillation began {late:.0f} steps after the edge was passed, at an "
                f"eigenvalue of {top:.2f} (medians)."
            )

        def statistic(table: Table) -> float:
            return float(table[outcome].mean()) - HALVES

        estimate = interval_of(rows, statistic, self.declaration.level, DRAWS)
        if estimate is not UNKNOWN:
            why = f"{why} {_told(rows, outcome)}"
        return judged(hypothesis, estimate, length(rows), why)

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return planted(world, seed, self.declaration.sizes["small"], self.times)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw distances, losses and eigenvalues over time, and the ratio of each run."""
        if "time" not in table:
            return
        rows = subset(table, (table["solved"] == 1) & np.isfinite(table["time"]))
        steps = {**rows, "time": rows["time"] * self.length}
        panels = _panels(steps)
        if not panels:
            return
        yield _draw_over_time(
            panels, ("weights_stable", "weights_central"), "distance of weights", folder / "weights"
        )
        yield _draw_over_time(
            panels, ("loss_run", "loss_stable", "loss_central"), "loss", folder / "loss"
        )
        yield _draw_over_time(
            panels, ("top_run", "top_stable", "top_central"), "top of P⁻¹H", folder / "top"
        )
        ratios = {
            name: [
                (f"{cell['activation']}, {cell['optimizer']}, {cell['seed']:g}", _point(cell[name]))
                for cell in map(cell_of, _by_run(table))
                if self._counts(cell)
            ]
            for name in ("weights", "loss", "top")
        }
        if any(ratios.values()):
            unit = "log(error of stable / of central flow)"
            yield draw_forest(ratios, unit, folder / "ratios", HALVES)


def follow(
    loss: FlatLoss, rule: Rule, state: State, patience: int, length: int
) -> tuple[list[State], Onset | None]:
    """Follow the optimizer to its onset, and some steps more.

    λ₁ of P⁻¹H is looked at every `LOOK` steps. The onset is the first look, after it has passed the
    edge, at which it is less than at the look before: from there an oscillation holds it down. The
    loss says it later, or not at all: RMSprop's need not rise.

    Args:
        loss: L.
        rule: Optimizer.
        state: Where it begins, w_0.
        patience: Most steps to the onset.
        length: Steps after it.

    Returns:
        w_1, …, w_{onset + length}, and the onset; None for it if it did not come.
    """
    states, crossed, last, pairs = list[State](), 0, -math.inf, None
    for step, at in enumerate(islice(discrete(loss, rule, state), patience), start=1):
        states.append(at)
        if step % LOOK:
            continue
        operator = Preconditioned(loss.at(at.weights).hessian, rule.preconditioner(at.squares))
        pairs = top_eigenpairs(operator, 1, accuracy=ONSET_ACCURACY, start=pairs)
        top = float(pairs.values[0])
        if crossed and top < last:
            states += islice(discrete(loss, rule, at), length)
            return states, Onset(step, crossed, last)
        crossed = crossed or (step if top > EDGE else 0)
        last = top
    return states, None


def begin(end: Snapshot) -> tuple[FlatLoss, Rule, State]:
    """The loss, optimizer and state of a finished run, in double precision."""
    data = (end.task.train.inputs, end.task.train.targets)
    loss = Loss(end.model, end.task.loss, data, dtype=torch.float64)
    parameters = dict(end.model.named_parameters())
    chosen = [parameters[name] for name in loss.objective.names]
    weights = torch.cat([p.detach().double().flatten() for p in chosen])
    group = end.optimizer.param_groups[0]
    if isinstance(end.optimizer, torch.optim.RMSprop):
        squares = torch.cat(
            [end.optimizer.state[p]["square_avg"].double().flatten() for p in chosen]
        )
        rule: Rule = RMSprop(float(group["lr"]), float(group["alpha"]), float(group["eps"]))
    else:
        squares, rule = torch.zeros_like(weights), GradientDescent(float(group["lr"]))
    return FlatLoss.of_model(loss), rule, State(weights, squares)


def _average(states: Sequence[State]) -> State:
    return State(
        torch.stack([s.weights for s in states]).mean(0),
        torch.stack([s.squares for s in states]).mean(0),
    )


def _distance(first: State, second: State) -> float:
    return float(torch.linalg.vector_norm(first.weights - second.weights))


def _top(loss: FlatLoss, rule: Rule, state: State) -> float:
    """Largest eigenvalue of P⁻¹H."""
    preconditioner: Tensor = rule.preconditioner(state.squares)
    operator = Preconditioned(loss.at(state.weights).hessian, preconditioner)
    return float(top_eigenpairs(operator, 1, accuracy=ACCURACY).values[0])


def _by_run(table: Table) -> list[Table]:
    """The rows of each run."""
    if not length(table):
        return []
    names = zip(table["activation"], table["optimizer"], table["seed"], strict=True)
    labels = np.asarray(["|".join(map(str, name)) for name in names])
    return [subset(table, labels == label) for label in dict.fromkeys(labels.tolist())]


def cell_of(rows: Table) -> dict[str, Any]:
    """What a run says: log of the stable flow's error over the central flow's, and its guards.

    Errors are root mean squares over the times after the onset: of the distance of weights, of the
    difference of loss, and of that of the largest eigenvalue. A run without an onset has none.
    """
    named = {name: rows[name][0] for name in ("activation", "optimizer", "seed")}
    if not (rows["solved"] == 1).all() or "time" not in rows:
        return {**named, "solved": 0.0}
    late = subset(rows, rows["time"] > 0)
    if not length(late):
        return {**named, "solved": 0.0}
    excess = (late["loss_run"] - late["loss_center"]) / late["loss_center"]

    def gain(name: str) -> float:
        errors = [_rms(late[f"{name}_{of}"] - late[f"{name}_run"]) for of in ("stable", "central")]
        return math.log(errors[0] / errors[1])

    return {
        **named,
        "solved": 1.0,
        "start": float(rows["start"][0]),
        "swing": float(excess.max()),
        "beyond": float(rows["highest"].max()) - EDGE,
        "late": float(rows["onset"][0] - rows["crossed"][0]),
        "top_at_onset": float(rows["top_at_onset"][0]),
        "weights": math.log(_rms(late["weights_stable"]) / _rms(late["weights_central"])),
        "loss": gain("loss"),
        "top": gain("top"),
    }


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _told(rows: Table, outcome: str) -> str:
    by = {
        str(name): math.exp(float(rows[outcome][rows["activation"] == name].mean()))
        for name in np.unique(rows["activation"])
    }
    return "The stable flow's error over the central flow's: " + ", ".join(
        f"{name} {ratio:.3g}" for name, ratio in by.items()
    )


def _point(value: float) -> Interval:
    return Interval(value, value, value)


def _panels(rows: Table) -> dict[str, Table]:
    """The runs of the first seed, a panel for each activation and optimizer."""
    found: dict[str, Table] = {}
    for of_run in _by_run(rows):
        found.setdefault(f"{of_run['activation'][0]}, {of_run['optimizer'][0]}", of_run)
    return found


LABELS = {"run": "run, averaged", "stable": "stable flow", "central": "central flow"}


def _draw_over_time(panels: Mapping[str, Table], names: Sequence[str], y: str, place: Path) -> str:
    curves = {
        title: {
            LABELS[name.split("_")[1]]: (rows["time"], rows[name]) for name in names if name in rows
        }
        for title, rows in panels.items()
    }
    return draw_curves(curves, "steps after the onset", y, place)


def planted(world: str, seed: int, grid: Mapping[str, Any], times: int) -> Table:
    """Simulate the table of a world.

    The stable flow drifts from the average in proportion to the time at the edge; the central flow
    keeps a fifth of that distance, where it is right and solved.

    Args:
        world: One of `Flow.worlds`.
        seed: Seed of the draw.
        grid: Size of the study.
        times: Rows of a run.
    """
    rng = np.random.default_rng(seed)
    share = {"no_better": 0.9, "wrong_third_derivative": 1.1, "below_the_edge": 1.0}.get(world, 0.2)
    solved = world != "wrong_third_derivative"
    at_edge = world != "below_the_edge"
    # until the onset the run is with the stable flow, while the central flow has left it
    early = np.linspace(-2, -0.1, times if world == "long_overshoot" else 3)
    rows = []
    for activation, optimizer, of_seed in product(
        grid["activations"], grid["optimizers"], range(grid["seeds"])
    ):
        luck = math.exp(rng.normal(scale=0.2))
        for time in (*early, *np.linspace(0.05, 0.95, times)):
            drift = (max(time, 0.01) if at_edge else 0.01) * math.exp(rng.normal(scale=0.1))
            ratio = share * luck * math.exp(rng.normal(scale=0.1))
            off = drift * ratio if time > 0 or not at_edge else 0.5
            rows.append(
                {
                    "activation": activation,
                    "optimizer": optimizer,
                    "seed": float(of_seed),
                    "time": time,
                    "solved": 1.0,
                    "start": 1.7,
                    "crossed": 10.0,
                    "onset": 60.0,
                    "top_at_onset": 2.3,
                    "weights_stable": drift,
                    "weights_central": off,
                    "loss_run": 1.0,
                    "loss_center": 0.95 if at_edge and time > 0 else 0.9999,
                    "loss_stable": 1 - 0.1 * drift,
                    "loss_central": 1 + 0.1 * off,
                    "top_run": 2.05,
                    "top_stable": 2.05 + drift,
                    "top_central": 2.05 - off,
                    "highest": EDGE + (0.01 if solved else 0.5 * max(time, 0)),
                }
            )
    return columns(rows)
