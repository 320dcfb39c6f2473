"""Shared parts of the layers: links in the graph without numbers, and refused derivatives."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import wraps
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from optbench.fast_layers.errors import ThirdDerivativeError

Gradients = tuple[Tensor | None, ...]
"""Result of a backward pass: one gradient for each argument of the forward pass."""


def transformed() -> bool:
    """Whether the call is inside of one of torch's transforms (vmap, jvp, torch.func.grad)."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


class _Calls(threading.local):
    """Number of `calling` contexts of each kind that this thread is in."""

    def __init__(self) -> None:
        self.depth = {"model": 0, "layer": 0}


_calls = _Calls()


@contextlib.contextmanager
def calling(what: Literal["model", "layer"]) -> Iterator[None]:
    """Context in which model and loss are called, or inside of them a layer that differentiates."""
    _calls.depth[what] += 1
    try:
        yield
    finally:
        _calls.depth[what] -= 1


def refuse_derivative_of(func: Any) -> None:
    """Raise a ThirdDerivativeError if `func` differentiates and the model or the loss calls it."""
    if func in DIFFERENTIATE and _calls.depth["model"] and not _calls.depth["layer"]:
        raise ThirdDerivativeError("the model differentiates by itself")


DIFFERENTIATE = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


def seen_inside(
    function: Any, mode: Callable[[], AbstractContextManager[object]]
) -> Callable[..., Any]:
    """A torch Python function that shows the mode what it calls.

    By default a function mode sees such a function alone. The copy believes that no argument
    overrides it, so it runs its body, in which the mode sees every call.
    """
    blind = {name: lambda _: False for name in ("has_torch_function", "has_torch_function_unary")}
    copy = FunctionType(
        function.__code__,
        function.__globals__ | blind,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__

    def call(*args: Any, **kwargs: Any) -> Any:
        with mode():
            return copy(*args, **kwargs)

    return call


def second(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Backward pass of a gradient that refuses to be differentiated: it uses saved numbers."""

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
    """A node through which derivatives reach x, for layers that do not need x's numbers."""
    node: Tensor = _Link.apply(x)  # type: ignore[no-untyped-call]
    return node
