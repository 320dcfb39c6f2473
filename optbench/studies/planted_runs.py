"""Planted worlds in the columns of the studies of generalization."""

import numpy as np

from optbench.studies.frame import Table
from optbench.studies.planted import Grid, plant

GRID = Grid(
    axes={
        "optimizer": ("adam", "momentum", "muon", "sam", "sgd", "signum"),
        "lr": ("x0.5", "x1.5", "x4.5"),
        "batch": ("10", "50"),
    },
    tasks=3,
    seeds=10,
)
"""Settings of the size small."""


def planted_runs(world: str, seed: int) -> Table:
    """Return a simulated table, all of whose runs came to the matched loss."""
    table = plant(world, seed, GRID)
    return {
        "task": np.char.add("task ", table["task"].astype(str)),
        "optimizer": table["optimizer"],
        "lr": table["lr"],
        "batch": table["batch"],
        "seed": table["seed"].astype(np.float64),
        "reached": np.ones(len(table["seed"])),
        "sharpness": np.exp(table["log_sharpness"]),
        "input_jacobian_test": np.exp(table["log_jacobian"]),
        "error": table["test_error"],
    }
