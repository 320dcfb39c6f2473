"""The frequency at which Signum oscillates, and the amplitude that harmonic balance gives it there.

At half-period one, an alternation, half of what the run does is foretold. A sign of momentum has
cycles of other half-periods on a parabola; see `optbench.dynamics.describing_function.cycle`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optbench import lab
from optbench.dynamics.describing_function import cycle
from optbench.dynamics.training_map import TrainingMap
from optbench.lab.snapshot import Snapshot
from optbench.studies.edge_atlas import mean_interval
from optbench.studies.figures import LOOKS, new_figure, save
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

LAGS = 12
WINDOW = 64
"""Steps that the autocorrelation is taken over."""

HALF_PERIOD = 2
SIGNUM, ADAMUON = "signum", "adamuon"


class SignumCycle:
    """Signum and AdaMuon on some seeds, late in their runs.

    Args:
        declaration: What is declared; `sizes` has seeds and steps.
        optimizers: {name: overrides} of signum and adamuon.
        common: Overrides of every run.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "period four": dict.fromkeys(("turns", "amplitude", "wanders"), SUPPORTED),
        "period two": {"turns": REFUTED},
        "both turn": {"turns": SUPPORTED, "wanders": REFUTED},
        "another amplitude": {"amplitude": REFUTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        optimizers: Mapping[str, Sequence[str]],
        common: Sequence[str],
    ) -> None:
        self.declaration, self.optimizers, self.common = declaration, optimizers, common

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size."""
        grid = self.declaration.sizes[size]
        return [
            Cell(
                {"optimizer": name, "seed": seed},
                (*self.common, *self.optimizers[name], f"steps={grid['steps']}", f"seed={seed}"),
            )
            for name, seed in product(self.optimizers, grid["seeds"])
        ]

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """One row: the autocorrelation of the updates, and for Signum the amplitude."""
        name = str(cell.factors["optimizer"])
        run = lab.open(folder)
        if run.status != "done":
            return [dict(cell.factors) | {"diverged": 1.0}]
        found = measured_once(
            folder, "cycle", [LAGS, WINDOW, HALF_PERIOD, "1"], lambda: look(run.end, name == SIGNUM)
        )
        return [rounded(dict(cell.factors) | {"diverged": 0.0} | found)]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the declared rules, a number a seed."""
        findings = []
        for hypothesis in self.declaration.hypotheses:
            values, told = STATISTICS[hypothesis.name](table)
            n = int(np.isfinite(values).sum())
            if n < 2 or n < len(values):
                findings.append(judged(hypothesis, UNKNOWN, n, "A run has no value."))
                continue
            estimate = mean_interval(values, self.declaration.level)
            findings.append(judged(hypothesis, estimate, n, told))
        return findings

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world, as large as that of the size small."""
        rng = np.random.default_rng([seed, list(self.worlds).index(world)])
        half = {SIGNUM: 1 if world == "period two" else 2, ADAMUON: 3}
        rows = []
        for name, s in product(self.optimizers, self.declaration.sizes["small"]["seeds"]):
            turning = name == SIGNUM or world == "both turn"
            row = {"optimizer": name, "seed": float(s), "diverged": 0.0}
            for lag in range(1, LAGS + 1):
                level = 0.8 * math.cos(math.pi * lag / half[name]) if turning else 0.6**lag
                row[f"lag_{lag}"] = level + rng.normal(0, 0.04)
            if name == SIGNUM:
                off = 0.2 * (world == "another amplitude")
                row["amplitude"] = math.exp(rng.normal(off, 0.01))
            rows.append(row)
        return columns(rows)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the autocorrelation of the updates, a line a seed."""
        if not length(table) or "lag_1" not in table:
            return
        figure = new_figure(7.2, 3.4)
        panels = figure.subplots(1, len(self.optimizers), sharey=True, squeeze=False)[0]
        for axis, name in zip(panels, self.optimizers, strict=True):
            lines = correlations(table, name)
            for i, line in enumerate(lines):
                color, marker = LOOKS[i % len(LOOKS)]
                axis.plot(range(1, LAGS + 1), line, color=color, marker=marker, markersize=4)
            axis.axhline(0, color="0.6", linewidth=0.8)
            axis.set_title(f"{name}, {len(lines)} seeds", fontsize=10, loc="left")
            axis.set_xlabel("lag, steps")
            axis.grid(alpha=0.25)
        panels[0].set_ylabel("autocorrelation of the updates")
        yield save(figure, folder / "autocorrelation")


Values = NDArray[np.float64]


def look(at: Snapshot, with_amplitude: bool) -> dict[str, float]:
    """The autocorrelation of the next updates, and a cycle's amplitude, predicted over measured.

    Returns:
        lag_1 … lag_12: Σ⟨d_t, d_{t+lag}⟩/√(Σ‖d_t‖² Σ‖d_{t+lag}‖²), d the updates of the weights
            less their mean over 64 steps.
        amplitude: √(mean over t of ‖z_t‖²) of the weights, predicted over measured, at half-period
            2; the solution is sought from the run's own.
    """
    train = at.task.train
    step = TrainingMap(at.model, at.task.loss, (train.inputs, train.targets), at.optimizer)
    weights = torch.tensor([name == "weight" for name in step.names()])
    states = [step.origin]
    for _ in range(WINDOW):
        states.append(step.image(states[-1]))
    updates = torch.stack(states).diff(dim=0)[:, weights]
    row = autocorrelation(updates - updates.mean(0))
    if with_amplitude:
        k = HALF_PERIOD
        start = (states[0] - 2 * states[k] + states[2 * k]) / 4
        found = cycle(step, k, start=start)
        sizes = [z[:, weights].norm() for z in (found.predicted, found.measured)]
        row["amplitude"] = float(sizes[0] / sizes[1])
    return row


def autocorrelation(updates: Tensor) -> dict[str, float]:
    """{lag_1 … lag_12} of rows d_t, shape (steps, size)."""
    found = {}
    for lag in range(1, LAGS + 1):
        early, late = updates[:-lag], updates[lag:]
        found[f"lag_{lag}"] = float((early * late).sum() / (early.norm() * late.norm()))
    return found


def correlations(table: Table, name: str) -> Values:
    """Autocorrelations of an optimizer, (seeds, lags)."""
    if not length(table) or "lag_1" not in table:
        return np.full((0, LAGS), math.nan)
    own = table["optimizer"] == name
    return np.stack([table[f"lag_{lag}"][own] for lag in range(1, LAGS + 1)], 1)


def _turns(table: Table) -> tuple[Values, str]:
    found = correlations(table, SIGNUM)
    means = ", ".join(f"{x:.2f}" for x in found[:, :4].mean(0)) if len(found) else ""
    return -found[:, HALF_PERIOD - 1], f"Means at lags 1 to 4: {means}."


def _amplitude(table: Table) -> tuple[Values, str]:
    if "amplitude" not in table:
        return np.zeros(0), ""
    own = table["amplitude"][table["optimizer"] == SIGNUM]
    seen = ", ".join(f"{x:.3f}" for x in own)
    return 0.1 - np.abs(np.log(own)), f"Predicted over measured: {seen}."


def _wanders(table: Table) -> tuple[Values, str]:
    found = correlations(table, ADAMUON)
    means = ", ".join(f"{x:.2f}" for x in found[:, :4].mean(0)) if len(found) else ""
    lowest = found.min(1) if len(found) else np.zeros(0)
    return 0.4 + np.minimum(lowest, 0), f"Means at lags 1 to 4: {means}."


STATISTICS = {"turns": _turns, "amplitude": _amplitude, "wanders": _wanders}
"""From a table to a number a seed, and what is told of it."""
