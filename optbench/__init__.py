"""Benchmark optimizers; measure sharpness, edge of stability and generalization gap in training."""

import sys
from importlib import import_module
from typing import Any

from optbench.moved import register

__version__ = "0.1.0"
register()

if sys.argv[:1] == ["-m"]:  # Python is still looking for the module that it has been told to run
    import_module("optbench.startup").begin_command()


def __getattr__(name: str) -> Any:
    # Later than at import, for who reads a run folder needs no torch.
    if name == "watch":
        return import_module("optbench.watching").watch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
