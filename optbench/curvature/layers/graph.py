"""What the layers share: a place in the graph without numbers, and where differentiation ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Gradients = tuple[Tensor | None, ...]
"""What a backward pass returns: one for each argument of the forward pass."""


class ThirdDerivativeError(RuntimeError):
    """A layer in this form was differentiated a third time: the model or the loss differentiates by itself."""


def second(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward pass of a gradient, which cannot be differentiated: it rests on numbers that were taken before."""

    @wraps(backward)
    def guarded(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise ThirdDerivativeError("a layer of cheap second derivative has no third")
        return backward(ctx, *gradients)

    return guarded


class _Link(Function):
    """The identity as far as derivatives go; its value is one zero, expanded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Tensor | None:
        return g


def link(x: Tensor) -> Tensor:
    """What a layer keeps of its input so that derivatives reach it, where it has no use for the input's numbers."""
    found: Tensor = _Link.apply(x)  # type: ignore[no-untyped-call]
    return found
