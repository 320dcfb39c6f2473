"""Models that cast to float32 inside, whatever they are given, in double precision throughout.

Differences of their gradient would be good to four digits. Both sides therefore see float64 where
the model asks for float32; the case "functions/float32 inside" keeps one such cast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from perf.sweep.subject import Call


class CastsInDouble(TorchFunctionMode):
    """While it is entered, what is asked for in float32 comes in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function with float64 in the place of float32."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        kwargs = {name: _doubled(value) for name, value in (kwargs or {}).items()}
        return func(*map(_doubled, args), **kwargs)


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def in_double(call: Call) -> Call:
    """The call with its casts in double precision."""

    def inside(module: nn.Module, x: Tensor) -> Any:
        with CastsInDouble():
            return call(module, x)

    return inside
