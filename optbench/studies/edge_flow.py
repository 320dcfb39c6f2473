"""Does the Edge Flow foretell a run at its edge, and when it comes to oscillate?

Beside the central flow, on runs of gradient descent: `optbench.studies.flow` says what a run's
onset is, and compares the central flow with gradient flow.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from optbench import lab
from optbench.boundary.counting import agreeing, counted
from optbench.curvature import top_eigenpairs
from optbench.dynamics.central_flow import EDGE, Rule, State, central_flow
from optbench.dynamics.edge_flow import Growth, Oscillating, edge_flow, oscillation_at
from optbench.dynamics.flat_loss import FlatLoss
from optbench.errors import UserError
from optbench.intervals import Interval
from optbench.studies.figures import draw_curves, draw_forest
from optbench.studies.flow import ACCURACY, LOOK, ONSET_ACCURACY, Guards, begin, follow
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
from optbench.studies.judging import interval_of, judged
from optbench.studies.measured_once import measured_once

DRAWS = 2000
TWICE = math.log(2)
FLOWS: Mapping[str, Growth] = {"edge": "first_order", "per_step": "per_step"}
"""{column: rate of the magnitude}: the Edge Flow as derived, and with the rate of a step."""


class EdgeFlow:
    """Runs taken up below the edge, and followed by the optimizer, its central and Edge Flows.

    Args:
        declaration: What is declared; `sizes` has activations, seeds, first_seed.
        settings: {activation: {lr, start}}: learning rate, and steps before the flows begin.
        common: Overrides of all runs.
        patience: Most steps from there to the onset.
        length: Steps that are followed after the onset.
        substeps: Euler steps of the central flow a step of the optimizer.
        edge_substeps: Euler steps of the Edge Flow a step of the optimizer.
        half_width: Steps on either side over which the run, and each flow, is averaged.
        times: Number of times after the onset at which they are compared.
        before: Number of times between the passing of the edge and the onset.
        guards: When a run counts, see `optbench.studies.flow.Guards`.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "foretells": dict.fromkeys(
            ("weights", "loss", "top", "overshoot", "onset", "onset_per_step"), SUPPORTED
        ),
        # the magnitude does not hold the curvature: the center goes on as gradient flow
        "no_feedback": {"weights": REFUTED, "top": REFUTED, "overshoot": SUPPORTED},
        # right but for when: the oscillation has grown in two fifths of the time
        "early": {"overshoot": SUPPORTED, "onset": REFUTED, "onset_per_step": REFUTED},
        # runs do not pass their edge, so that the central flow is right there, too
        "no_overshoot": {"weights": SUPPORTED, "overshoot": REFUTED},
        # both are equally far: as good, and no better
        "as_good": {"weights": SUPPORTED, "nearer": REFUTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        settings: Mapping[str, Mapping[str, Any]],
        common: Sequence[str],
        patience: int,
        length: int,
        substeps: int,
        edge_substeps: int,
        half_width: int,
        times: int,
        before: int,
        guards: Mapping[str, float],
    ) -> None:
        self.declaration, self.settings, self.common = declaration, settings, common
        self.patience, self.length = patience, length
        self.substeps, self.edge_substeps = substeps, edge_substeps
        self.half_width, self.times, self.before = half_width, times, before
        self.guards = Guards(**guards)

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size, each up to where the flows begin."""
        grid = self.declaration.sizes[size]
        seeds = range(grid["first_seed"], grid["first_seed"] + grid["seeds"])
        return [self._cell(a, seed) for a, seed in product(grid["activations"], seeds)]

    def _cell(self, activation: str, seed: int) -> Cell:
        chosen = self.settings[activation]
        command = (
            *self.common,
            f"model.activation={activation}",
            f"optimizer.lr={chosen['lr']}",
            f"steps={chosen['start']}",
            f"seed={seed}",
        )
        return Cell({"activation": activation, "seed": seed}, command)

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """A row for each time: how far each flow is from the run's time average."""
        settings = [
            self.patience,
            self.length,
            self.substeps,
            self.edge_substeps,
            self.half_width,
            self.times,
            self.before,
            ACCURACY,
            LOOK,
            ONSET_ACCURACY,
        ]
        found = measured_once(folder, "edge_flow", settings, lambda: {"rows": self._rows(folder)})
        return [rounded(dict(cell.factors) | row) for row in found["rows"]]

    def _rows(self, folder: Path) -> list[dict[str, Any]]:
        run = lab.open(folder)
        if run.status != "done":
            return [{"solved": 0.0}]
        loss, rule, state = begin(run.end)
        lr = float(run.end.optimizer.param_groups[0]["lr"])
        try:
            return self._compare(loss, rule, lr, state)
        except (UserError, FloatingPointError):  # a flow without solution is a result
            return [{"solved": 0.0}]

    def _compare(self, loss: FlatLoss, rule: Rule, lr: float, state: State) -> list[dict[str, Any]]:
        """Follow the optimizer and the flows, and compare them under one moving average."""
        run, began = follow(loss, rule, state, self.patience, self.length)
        if began is None:
            return [{"solved": 1.0}]
        steps = len(run)
        central = list(islice(central_flow(loss, rule, state, self.substeps), steps))
        start = oscillation_at(loss, lr, state.weights)
        edges = {
            name: list(islice(edge_flow(loss, lr, start, self.edge_substeps, growth), steps))
            for name, growth in FLOWS.items()
        }
        paths = {
            "run": [s.weights for s in run],
            "central": [c.state.weights for c in central],
            **{name: [at.center for at in path] for name, path in edges.items()},
        }
        losses = {
            "run": np.array([loss.value(w) for w in paths["run"]]),
            "central": np.array([c.predicted_loss for c in central]),
            **{
                name: np.array([at.predicted_loss(loss) for at in path])
                for name, path in edges.items()
            },
        }
        facts = {
            "solved": 1.0,
            "start": lr * _top(loss, state.weights),
            "crossed": float(began.crossed),
            "onset": float(began.step),
            "top_at_onset": began.top,
            "highest": max(float(center.top[0]) for center in central),
            **{f"onset_{name}": onset_of(loss, lr, path) for name, path in edges.items()},
        }
        rows = []
        for time in self._looks(began.crossed, began.step, steps):
            window = slice(time - self.half_width, time + self.half_width)
            means = {name: torch.stack(path[window]).mean(0) for name, path in paths.items()}
            row = {"time": float(time), "loss_center": loss.value(means["run"]), **facts}
            for name, mean in means.items():
                row[f"loss_{name}"] = float(losses[name][window].mean())
                row[f"top_{name}"] = lr * _top(loss, mean)
                if name != "run":
                    row[f"weights_{name}"] = float((mean - means["run"]).norm())
            rows.append(row)
        return rows

    def _looks(self, crossed: int, onset: int, steps: int) -> list[int]:
        """Middles of the windows: none holds both a step before the onset and one after it."""
        half = self.half_width
        first, last = max(crossed, half), onset - half
        before = np.linspace(first, last, self.before) if last > first else ()
        after = np.linspace(onset + half, steps - half, self.times)
        return [int(time) for time in (*before, *after)]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the runs that came to oscillate at the edge."""
        cells = [cell_of(rows) for rows in _by_run(table)]
        kept = [cell for cell in cells if self._counts(cell)]
        return [self._finding(h, kept, len(cells)) for h in self.declaration.hypotheses]

    def _counts(self, cell: Mapping[str, Any]) -> bool:
        return bool(
            cell["solved"]
            and cell["start"] <= EDGE
            and cell["swing"] >= self.guards.swing
            and cell["beyond"] <= self.guards.beyond
        )

    def _finding(
        self, hypothesis: Hypothesis, cells: Sequence[Mapping[str, Any]], total: int
    ) -> Finding:
        said = SAID[hypothesis.name]
        rows = columns([{**cell, "value": said.statistic(cell)} for cell in cells])
        count = agreeing(length(rows), "counts", "count")
        why = (
            f"{length(rows)} of {counted(total, 'run')} {count}: the flows were solved and the run "
            "oscillated."
        )

        def mean(some: Table) -> float:
            return float(some["value"].mean())

        estimate = interval_of(rows, mean, self.declaration.level, DRAWS)
        if length(rows):
            means = ", ".join(
                f"{name} {said.told(rows[said.column][rows['activation'] == name]):.3g}"
                for name in np.unique(rows["activation"])
            )
            why += f" {said.words}: {means}."
        return judged(hypothesis, estimate, length(rows), why)

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return planted(world, seed, self.declaration.sizes["small"], self.times, self.before)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw distances, losses and λ₁ of the first seeds, and when runs come to oscillate."""
        if "time" not in table:
            return
        shown: dict[str, Table] = {}
        for rows in _by_run(table):
            if rows["solved"][0] == 1 and np.isfinite(rows["time"][0]):
                shown.setdefault(str(rows["activation"][0]), rows)
        if not shown:
            return
        for what, y in (
            ("top", "η λ₁ at the averaged weights"),
            ("weights", "distance to the run"),
            ("loss", "loss"),
        ):
            names = [name for name in LABELS if f"{what}_{name}" in table]
            panels = {
                f"{activation}, seed {rows['seed'][0]:g}": {
                    LABELS[name]: (rows["time"], rows[f"{what}_{name}"]) for name in names
                }
                for activation, rows in shown.items()
            }
            log = "y" if what == "weights" else ""
            yield draw_curves(panels, "steps since the flows began", y, folder / what, log)
        kept = [cell for cell in map(cell_of, _by_run(table)) if self._counts(cell)]
        if kept:
            yield _draw_delays(kept, folder)


LABELS = {
    "run": "run, averaged",
    "central": "central flow",
    "edge": "Edge Flow",
    "per_step": "Edge Flow, growth per step",
}


class _Said:
    """What a hypothesis takes from a run, and what is told of it beside the verdict."""

    def __init__(
        self,
        column: str,
        statistic: Callable[[Mapping[str, Any]], float],
        words: str,
        told: Callable[[Any], float] = lambda values: math.exp(float(np.mean(values))),
    ) -> None:
        self.column, self.statistic, self.words, self.told = column, statistic, words, told


def _within_two(column: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda cell: float(cell[column]) + 2 * TWICE


def _within(column: str, factor: float) -> Callable[[Mapping[str, Any]], float]:
    return lambda cell: 2 * math.log(factor) - abs(float(cell[column]))


_RATIO = "The central flow's error over the Edge Flow's"
_DELAY = "Steps from the passing of the edge to the onset, flow over run"
SAID = {
    "weights": _Said("weights", _within_two("weights"), _RATIO),
    "loss": _Said("loss", _within_two("loss"), _RATIO),
    "top": _Said("top", _within_two("top"), _RATIO),
    "nearer": _Said("weights", lambda cell: float(cell["weights"]), _RATIO),
    "overshoot": _Said("overshoot", lambda cell: float(cell["overshoot"]), _RATIO),
    "onset": _Said("delay_edge", _within("delay_edge", 1.25), _DELAY),
    "onset_per_step": _Said("delay_per_step", _within("delay_per_step", 1.1), _DELAY),
}
"""{hypothesis: its column, its statistic of a run, and what is told}."""


def onset_of(loss: FlatLoss, lr: float, path: Sequence[Oscillating]) -> float:
    """The step at which a flow's λ₁ has turned past the edge, by the rule of a run; NaN if never.

    Args:
        loss: L.
        lr: η.
        path: The flow after each step.
    """
    crossed, last, pairs = False, -math.inf, None
    for step in range(LOOK, len(path) + 1, LOOK):
        hessian = loss.at(path[step - 1].center).hessian
        pairs = top_eigenpairs(hessian, 1, accuracy=ONSET_ACCURACY, start=pairs)
        top = lr * float(pairs.values[0])
        if crossed and top < last:
            return float(step)
        crossed, last = crossed or top > EDGE, top
    return math.nan


def _top(loss: FlatLoss, weights: Tensor) -> float:
    """Largest eigenvalue of H."""
    return float(top_eigenpairs(loss.at(weights).hessian, 1, accuracy=ACCURACY).values[0])


def _by_run(table: Table) -> list[Table]:
    """The rows of each run."""
    if not length(table):
        return []
    labels = np.char.add(table["activation"].astype(str), table["seed"].astype(str))
    return [subset(table, labels == label) for label in dict.fromkeys(labels.tolist())]


def cell_of(rows: Table) -> dict[str, Any]:
    """What a run says: logs of the central flow's errors over the Edge Flow's, and its guards.

    Errors are root mean squares over the times after the onset: of the distance of weights, of the
    difference of loss, and of that of λ₁; `overshoot` is that of λ₁ over the times before it.
    """
    named = {name: rows[name][0] for name in ("activation", "seed")}
    if not (rows["solved"] == 1).all() or "time" not in rows or not np.isfinite(rows["time"]).all():
        return {**named, "solved": 0.0}
    late = rows["time"] > rows["onset"]
    after, before = subset(rows, late), subset(rows, ~late)
    excess = (after["loss_run"] - after["loss_center"]) / after["loss_center"]

    def gain(some: Table, what: str) -> float:
        errors = [_rms(some[f"{what}_{of}"] - some[f"{what}_run"]) for of in ("central", "edge")]
        return math.log(errors[0] / errors[1])

    delay = rows["onset"][0] - rows["crossed"][0]
    return {
        **named,
        "solved": float(length(before) > 0),
        "start": float(rows["start"][0]),
        "swing": float(excess.max()),
        "beyond": float(rows["highest"][0]) - EDGE,
        "delay": float(delay),
        "weights": math.log(_rms(after["weights_central"]) / _rms(after["weights_edge"])),
        "loss": gain(after, "loss"),
        "top": gain(after, "top"),
        "overshoot": gain(before, "top") if length(before) else math.nan,
        **{
            # a flow that never turns, or turns before the run's edge, is as late as can be
            f"delay_{name}": math.log(_late(rows, name) / delay)
            for name in FLOWS
        },
    }


def _late(rows: Table, name: str) -> float:
    onset = float(rows[f"onset_{name}"][0])
    end = float(rows["time"].max())
    return max((end if math.isnan(onset) else onset) - float(rows["crossed"][0]), 1.0)


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _draw_delays(cells: Sequence[Mapping[str, Any]], folder: Path) -> str:
    panels = {
        LABELS[name]: [
            (f"{cell['activation']}, seed {cell['seed']:g}", _point(cell[f"delay_{name}"]))
            for cell in cells
        ]
        for name in FLOWS
    }
    return draw_forest(panels, "log(steps to the onset, flow / run)", folder / "delays")


def _point(value: float) -> Interval:
    return Interval(value, value, value)


def planted(world: str, seed: int, grid: Mapping[str, Any], times: int, before: int) -> Table:
    """Simulate the table of a world.

    A run passes its edge at step 60, turns at 200, and is followed to 500.

    Args:
        world: One of `EdgeFlow.worlds`.
        seed: Seed of the draw.
        grid: Size of the study.
        times: Rows of a run after the onset.
        before: Rows of a run before it.
    """
    rng = np.random.default_rng([seed, list(EdgeFlow.worlds).index(world)])
    crossed, onset, end = 60.0, 200.0, 500.0
    share = {"no_feedback": 4.0, "as_good": 1.0}.get(world, 0.5)
    early = 0.4 if world == "early" else 1.0
    rows = []
    for activation, of_seed in product(grid["activations"], range(grid["seeds"])):

        def noise(scale: float) -> float:
            return math.exp(rng.normal(scale=scale))

        facts = {
            "activation": activation,
            "seed": float(of_seed),
            "solved": 1.0,
            "start": 1.7,
            "crossed": crossed,
            "onset": onset,
            "top_at_onset": 2.4,
            "highest": EDGE + 0.01,
            "onset_edge": crossed + early * (onset - crossed) * noise(0.08),
            "onset_per_step": crossed + early * (onset - crossed) * noise(0.03),
        }
        passes = 0.0 if world == "no_overshoot" else 0.4
        luck = noise(0.15)
        looks = (*np.linspace(crossed, onset - 10, before), *np.linspace(onset + 10, end, times))
        for time in looks:
            late = time > onset
            top = EDGE + (0.08 if late else passes * (time - crossed) / (onset - crossed))
            off = 0.08 * noise(0.1) if late or passes else 0.002 * noise(0.1)
            by_edge = off * share * luck * noise(0.1)
            row = {
                **facts,
                "time": float(time),
                "loss_center": 0.95,
                "loss_run": 1.0,
                "loss_central": 1 + 0.1 * off,
                "loss_edge": 1 + 0.1 * by_edge,
                "weights_central": off,
                "weights_edge": by_edge,
                "top_run": top,
                "top_central": top - off if late else EDGE - 0.002 * noise(0.1),
                "top_edge": top - (by_edge if late else 0.002 * noise(0.1)),
            }
            for what in ("loss", "weights", "top"):
                row[f"{what}_per_step"] = row[f"{what}_edge"]
            rows.append(row)
    return columns(rows)
