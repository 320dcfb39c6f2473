"""What the layers share: a place in the graph without numbers, and where differentiation ends."""

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
"""What a backward pass returns: one for each argument of the forward pass."""


def transformed() -> bool:
    """Whether torch's transforms (vmap, jvp, torch.func.grad) are at work."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


class _Calls(threading.local):
    """How often each is entered in this thread."""

    def __init__(self) -> None:
        self.of = {"model": 0, "layer": 0}


_calls = _Calls()


@contextlib.contextmanager
def calling(what: Literal["model", "layer"]) -> Iterator[None]:
    """While it is entered, model and loss are called; or, inside of them, a layer in this form that differentiates."""
    _calls.of[what] += 1
    try:
        yield
    finally:
        _calls.of[what] -= 1


def refuse_derivative_of(func: Any) -> None:
    """Raise a ThirdDerivativeError if a function differentiates, and it is the model or the loss that calls it."""
    if func in DIFFERENTIATE and _calls.of["model"] and not _calls.of["layer"]:
        raise ThirdDerivativeError("the model differentiates by itself")


DIFFERENTIATE = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


def seen_inside(
    function: Any, mode: Callable[[], AbstractContextManager[object]]
) -> Callable[..., Any]:
    """One of torch's Python functions, with what it calls seen by the mode, which else sees the function alone."""
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
