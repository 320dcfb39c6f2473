"""All cases of the sweep, by package and name."""

from __future__ import annotations

import warnings

import torch

from perf.sweep import (
    derivatives,
    functions,
    layers,
    losses,
    programs,
    sequences,
    shapes,
    timm_models,
    torchvision_models,
    transformers_models,
)
from perf.sweep.compare import Result, compare
from perf.sweep.subject import Recipe

PACKAGES: dict[str, dict[str, Recipe]] = {
    "layers": layers.CASES,
    "shapes": shapes.CASES,
    "sequences": sequences.CASES,
    "losses": losses.CASES,
    "functions": functions.CASES,
    "derivatives": derivatives.CASES,
    "programs": programs.CASES,
    "torchvision": torchvision_models.CASES,
    "timm": timm_models.CASES,
    "transformers": transformers_models.CASES,
}
CASES: dict[str, Recipe] = {
    f"{package}/{name}": recipe
    for package, table in PACKAGES.items()
    for name, recipe in table.items()
}


def judge(name: str) -> Result:
    """Run one case by its name, as a worker does."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return compare(CASES[name])
