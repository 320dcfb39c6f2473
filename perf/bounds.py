"""Whether bounds on λ₁ hold along training, and what looser searches would save and break.

    python -m perf.bounds                    six seeds at four learning rates, seven minutes
    python -m perf.bounds seeds=1 every=40   one seed, and fewer measurements of each run

Full-batch gradient descent of the default run, to and along its edge of stability. At every
measurement each search goes on from its own last one as the sharpness probe does, which holds the
last vectors where that is enough, and is held against float64, to a bound of 1e-7. A bound is
broken where λ₁ is larger than the value found by more than the bound, and by more than rounding.

All searches stop at the same bound, accuracy=0.005; the looser ones leave out what looks redundant
beside it: the tolerance of the wanted residual, `tol`, or of the guards'. It is not.
"""

import warnings
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from unittest.mock import patch

import torch
from optbench.tasks.digits import digits
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from optbench.boundary.command_line import Command, Key
from optbench.boundary.kinds import Count
from optbench.curvature import Eigenpairs, Hessian, top_eigenpairs
from optbench.curvature.chunks import Pair
from optbench.curvature.eigen import solver
from optbench.models.mlp import mlp
from optbench.probes import tracking
from perf.cases import descend, half_mse

RATES = (0.05, 0.1, 0.2, 0.4)
STEPS = 1600
SEARCHES: dict[str, tuple[float, float]] = {
    "default": (3e-3, solver.GUARD),
    "residual 0.1": (0.1, solver.GUARD),
    "guards 0.2": (3e-3, 0.2),
    "residual 0.1, guards 0.2": (0.1, 0.2),
    "residual 0.1, guards 0.3": (0.1, 0.3),
}
"""Tolerances of the wanted residual and of the guards', relative to λ₁."""
ROUNDING = 3e-6  # of λ₁ in float32, relative


def in_double(model: nn.Module, data: Pair, start: Eigenpairs | None) -> Eigenpairs:
    """The four largest eigenpairs in float64."""
    twice = deepcopy(model).double()
    hessian = Hessian(twice, half_mse, (data[0].double(), data[1].double()))
    return top_eigenpairs(hessian, 4, accuracy=1e-7, tol=1e-5, start=start, seed=1)


class Search:
    """One search along one trajectory after the other, and what came of it."""

    def __init__(self, tol: float, guard: float) -> None:
        self.tol, self.guard = tol, guard
        self.begin()
        self.products = self.broken = 0
        self.worst = self.beyond = 0.0  # error, and what of it is beyond the bound

    def begin(self) -> None:
        """Begin a new trajectory."""
        self.tracker = tracking.Tracker("sharpness")

    def look(self, hessian: Hessian, seed: int, truth: float) -> None:
        """Go on from the last measurement, and hold the value against the truth."""
        looser = partial(top_eigenpairs, tol=self.tol)
        with (
            patch.object(tracking, "top_eigenpairs", looser),
            patch.object(solver, "GUARD", self.guard),
        ):
            pairs = self.tracker.solve(hessian, "", seed, lambda _: None)
        self.products += pairs.hvps
        error = truth - float(pairs.values[0])
        beyond = error - float(pairs.bounds[0])
        self.worst = max(self.worst, error / truth)
        if beyond > ROUNDING * truth:
            self.broken += 1
            self.beyond = max(self.beyond, beyond / truth)


@dataclass(frozen=True)
class Settings:
    """Count broken bounds on λ₁ along training, of the default search and of looser ones."""

    seeds: Annotated[Count, Key("seeds, at each of four learning rates")] = 6
    every: Annotated[Count, Key("steps between measurements")] = 25


COMMAND = Command("perf.bounds", Settings, examples=("seeds=1 every=40",))


def main() -> None:
    """Do what the command line says."""
    COMMAND.run(count_broken)


def count_broken(settings: Settings) -> int:
    """Follow the trajectories and print the table; return the exit code."""
    seeds, every = settings.seeds, settings.every
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console, count = Console(), 0
    searches = {name: Search(*tolerances) for name, tolerances in SEARCHES.items()}
    runs = [(seed, lr) for seed in range(seeds) for lr in RATES]
    for seed, lr in track(runs, "trajectories", console=console):
        torch.manual_seed(seed)
        split = digits(seed).train
        data, true = (split.inputs, split.targets), None
        model = mlp(tuple(data[0].shape[1:]), data[1].shape[1])
        hessian = Hessian(model, half_mse, data)
        for search in searches.values():
            search.begin()
        for step in descend(model, data, lr, STEPS):
            if step % every:
                continue
            true, count = in_double(model, data, true), count + 1
            for search in searches.values():
                search.look(hessian, step, float(true.values[0]))
    table = Table("search, tolerances", "products", "worst error", "bounds broken", "by")
    for name, s in searches.items():
        products = f"{s.products / count:.2f}"
        beyond = f"{s.beyond:.1e}" if s.broken else ""
        table.add_row(name, products, f"{s.worst:.1e}", f"{s.broken} of {count}", beyond)
    console.print(table)
    return 0


if __name__ == "__main__":
    main()
