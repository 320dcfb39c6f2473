"""Benchmark optimizers, and measure while they train: sharpness, edge of stability, generalization gap."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Later than at import, for who reads a run folder needs no torch.
    if name == "watch":
        return import_module("optbench.watching").watch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
