"""Planted worlds: simulated tables of runs in which the truth about flatness is known.

Every verdict rule of a study is run on these tables too, and its confusion matrix stands beside
its verdict: a rule that a planted confounder fools is not used. A table has one row a run and the
columns `optimizer`, `lr`, `batch`, `decay`, `task`, `seed`; `log_sharpness` and `log_jacobian`, the
alternative mediator, in nats; and `test_error` in percentage points.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optbench.statistics import Array, Table, group_labels

Moves = Mapping[str, float]

SHARPNESS_MOVES: Moves = {"optimizer": 0.5, "lr": -1.0, "batch": 0.5, "decay": -0.4}
"""Change of log λ₁, in nats, from the middle of each axis to its end."""

JACOBIAN_MOVES: Moves = {"optimizer": 0.6, "lr": -0.9, "batch": -0.3, "decay": 0.2}
"""The same of log Jacobian: along with log λ₁ by optimizer and lr, against it by batch and decay.

A mediator whose moves were proportional to those of λ₁ along every axis could not be told from it
by any comparison of settings; only the scatter within a configuration could tell.
"""


@dataclass(frozen=True)
class Grid:
    """The settings of a planted study, all combinations, and its effects.

    Attributes:
        axes: Settings by hyperparameter, in the order of their effect.
        tasks: Number of tasks.
        seeds: Runs of each configuration on each task.
        slope: Effect of a mediator that is a cause, percentage points per nat.
        direct: Effect of a setting past the mediator, from the axis' middle to its end, in points.
        error_noise: Standard deviation of the test error over seeds, in points.
        measure_noise: Standard deviation of the two measures over seeds, in nats.
        shared: Standard deviation of a seed's effect, where seeds share their initial weights, in
            units of the two noises.
    """

    axes: Mapping[str, Sequence[Any]] = field(
        default_factory=lambda: {
            "optimizer": ("adam", "momentum", "muon", "sgd"),
            "lr": (0.01, 0.03, 0.1),
            "batch": (16, 64, 256),
            "decay": (0.0, 0.001),
        }
    )
    tasks: int = 2
    seeds: int = 10
    slope: float = 2.0
    direct: float = 2.0
    error_noise: float = 0.7
    measure_noise: float = 0.2
    shared: float = 3.0

    def settings(self) -> dict[str, NDArray[Any]]:
        """Return the setting, task and seed of each run, columns (N,) by name."""
        names = [*self.axes, "task", "seed"]
        values = [*self.axes.values(), range(self.tasks), range(self.seeds)]
        columns = zip(*product(*values), strict=True)
        return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


@dataclass(frozen=True)
class Runs:
    """What a world makes its columns from.

    Attributes:
        grid: Settings and effects.
        settings: Columns (N,) by name.
        rng: Random numbers of this draw.
    """

    grid: Grid
    settings: Table
    rng: np.random.Generator

    def moved(self, moves: Moves) -> Array:
        """Σ over axes of move · code, the code from −1 to 1 along the axis; (N,).

        Each move is varied by up to a fifth from draw to draw.
        """
        total = np.zeros(len(self.settings["seed"]))
        for axis, move in moves.items():
            if axis not in self.grid.axes:
                continue
            values = self.grid.axes[axis]
            code = dict(zip(values, np.linspace(-1, 1, len(values)), strict=True))
            steps = np.array([code[value] for value in self.settings[axis].tolist()])
            total += move * self.rng.uniform(0.8, 1.2) * steps
        return total

    def noise(self, scale: float) -> Array:
        """Independent normal noise of each run, (N,)."""
        return scale * self.rng.normal(size=len(self.settings["seed"]))

    def of_seed(self, scale: float) -> Array:
        """Normal effect of each seed on each task, the same in all configurations, (N,)."""
        columns = [self.settings["task"], self.settings["seed"]]
        label = group_labels(columns, len(columns[0]))
        return scale * self.rng.normal(size=int(label.max()) + 1)[label]

    def table(self, log_sharpness: Array, log_jacobian: Array, effect: Array) -> Table:
        """Add the noise of the error, and a level of each task, to the effect."""
        level = 20 + 10 * self.settings["task"]
        error = level + effect + self.noise(self.grid.error_noise)
        return {
            **self.settings,
            "log_sharpness": log_sharpness,
            "log_jacobian": log_jacobian,
            "test_error": error,
        }

    def measures(self) -> tuple[Array, Array]:
        """Log λ₁ and log Jacobian, each moved by all settings, (N,) both."""
        scale = self.grid.measure_noise
        sharpness = self.moved(SHARPNESS_MOVES) + self.noise(scale)
        return sharpness, self.moved(JACOBIAN_MOVES) + self.noise(scale)


def _cause(runs: Runs) -> Table:
    """Error = slope · log λ₁ + noise."""
    sharpness, jacobian = runs.measures()
    return runs.table(sharpness, jacobian, runs.grid.slope * sharpness)


def _proxy(runs: Runs) -> Table:
    """Error = slope · log Jacobian + noise; λ₁ goes along with it by most settings."""
    sharpness, jacobian = runs.measures()
    return runs.table(sharpness, jacobian, runs.grid.slope * jacobian)


def _unrelated(runs: Runs) -> Table:
    """Error = noise."""
    sharpness, jacobian = runs.measures()
    return runs.table(sharpness, jacobian, np.zeros_like(sharpness))


def _confounded(runs: Runs) -> Table:
    """Error = −direct · (code of lr) + noise: lr moves both, and λ₁ does nothing."""
    sharpness, jacobian = runs.measures()
    return runs.table(sharpness, jacobian, runs.moved({"lr": -runs.grid.direct}))


def _direct_effect(runs: Runs) -> Table:
    """Error = slope · log λ₁ − direct · (code of lr) + noise; only lr and batch move λ₁."""
    moves = {axis: SHARPNESS_MOVES[axis] for axis in ("lr", "batch")}
    sharpness = runs.moved(moves) + runs.noise(runs.grid.measure_noise)
    jacobian = runs.moved(JACOBIAN_MOVES) + runs.noise(runs.grid.measure_noise)
    direct = runs.moved({"lr": -runs.grid.direct})
    return runs.table(sharpness, jacobian, runs.grid.slope * sharpness + direct)


def _pseudo_replicates(runs: Runs) -> Table:
    """Error = effect of the seed + noise, log λ₁ too, the two effects independent.

    Seeds share their initial weights between configurations. So the scatter over seeds is the same
    in all of them, and counts once for each seed, not once for each run.
    """
    grid = runs.grid
    sharpness, jacobian = runs.measures()
    sharpness = sharpness + runs.of_seed(grid.shared * grid.measure_noise)
    return runs.table(sharpness, jacobian, runs.of_seed(grid.shared * grid.error_noise))


WORLDS: Mapping[str, Callable[[Runs], Table]] = {
    "cause": _cause,
    "proxy": _proxy,
    "unrelated": _unrelated,
    "confounded": _confounded,
    "direct_effect": _direct_effect,
    "pseudo_replicates": _pseudo_replicates,
}
"""Worlds by name; the docstring of each gives its equation."""


def plant(world: str, seed: int = 0, grid: Grid | None = None) -> Table:
    """Return a table of runs of a world.

    Args:
        world: A name in `WORLDS`.
        seed: Seed of all random numbers; the same seed gives the same table.
        grid: Settings and effects; by default 4 x 3 x 3 x 2 settings, 2 tasks, 10 seeds.

    Raises:
        ValueError: There is no such world.
    """
    if world not in WORLDS:
        raise ValueError(f"world must be one of {', '.join(WORLDS)}, got {world}")
    grid = grid or Grid()
    # A stream of its own for each world: the order of the worlds is part of the seed.
    rng = np.random.default_rng([seed, list(WORLDS).index(world)])
    return WORLDS[world](Runs(grid, grid.settings(), rng))
