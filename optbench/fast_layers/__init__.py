"""Layers with a cheap second derivative, which replace torch's while a graph is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from optbench.fast_layers.activation import sigmoid, smooth, tanh
from optbench.fast_layers.attention import attention
from optbench.fast_layers.channel_norm import batch_norm, group_norm
from optbench.fast_layers.convolution import convolution
from optbench.fast_layers.errors import ThirdDerivativeError
from optbench.fast_layers.graph import refuse_derivative_of, seen_inside, transformed
from optbench.fast_layers.layer_norm import layer_norm

__all__ = ["CheapSecondDerivatives", "ThirdDerivativeError"]


def _entered(function: Any) -> Any:
    return seen_inside(function, lambda: CheapSecondDerivatives())


REPLACED: dict[Any, Callable[..., Any]] = {
    F.conv1d: convolution(1, F.conv1d),
    F.conv2d: convolution(2, F.conv2d),
    F.conv3d: convolution(3, F.conv3d),
    F.layer_norm: layer_norm(F.layer_norm),
    F.group_norm: group_norm(F.group_norm),
    F.batch_norm: batch_norm(F.batch_norm),
    F.gelu: smooth(F.gelu),
    F.silu: smooth(F.silu),
    F.mish: smooth(F.mish),
    F.softplus: smooth(F.softplus),
    torch.tanh: tanh(torch.tanh),
    torch.Tensor.tanh: tanh(torch.tanh),
    torch.sigmoid: sigmoid(torch.sigmoid),
    torch.Tensor.sigmoid: sigmoid(torch.sigmoid),
    F.scaled_dot_product_attention: attention(F.scaled_dot_product_attention),
}
INSTEAD: dict[Any, Callable[..., Any]] = REPLACED | {
    F.multi_head_attention_forward: _entered(F.multi_head_attention_forward),
    # A checkpointed layer runs again inside of it.
    torch.autograd.grad: _entered(torch.autograd.grad),
}


class CheapSecondDerivatives(TorchFunctionMode):
    """Function mode: replaces torch's layers by ones that are cheap to differentiate twice.

    Values, first and second derivatives are those of torch's up to rounding. A third derivative
    raises `ThirdDerivativeError`. torch's functions stay where no gradient is taken, in precisions
    other than float32 and float64, and inside of torch's transforms (a model that calls vmap or
    jvp).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, or its replacement."""
        options = kwargs or {}
        refuse_derivative_of(func)
        if func in REPLACED and not _is_replaceable(*args, *options.values()):
            return func(*args, **options)
        return INSTEAD.get(func, func)(*args, **options)


def _is_replaceable(first: Any = None, *_: Any) -> bool:
    """Whether a call with this first argument is one that the replacements are made for."""
    real = isinstance(first, torch.Tensor) and first.dtype in (torch.float32, torch.float64)
    return real and torch.is_grad_enabled() and not transformed()
