"""Activations whose first and second derivatives are computed once, when the graph is built.

A product with the Hessian then takes three multiplications in them. torch computes both derivatives
anew for every product; for gelu that is some twenty elementwise steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, grad
from torch.autograd.graph import saved_tensors_hooks

from optbench.fast_layers.errors import ThirdDerivativeError
from optbench.fast_layers.graph import calling, link, second, transformed

LEAST = 2**16
"""Elements below which torch's tanh and sigmoid are used: calls would cost more than they save."""

Bend = Callable[[Tensor], Tensor]
"""Function from what the curve keeps to f''(x), a new tensor; called once."""
Pull = Callable[[Tensor, Tensor], Tensor]
"""Function from g and what the curve keeps to f'(x) g."""
Curve = Callable[[Tensor], tuple[Tensor, Tensor, Bend]]
"""Function from x to the value f(x), a tensor to keep, and the second derivative."""


def smooth(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An elementwise function with a cheap second derivative; its derivatives are torch's."""

    def activate(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("inplace") or any(x is True for x in args):
            return original(input, *args, **kwargs)

        def curve(x: Tensor) -> tuple[Tensor, Tensor, Bend]:
            # Hooks of its own, since a checkpoint's would run the layer again.
            with calling("layer"), torch.enable_grad(), saved_tensors_hooks(_same, _same):
                at = x.detach().requires_grad_()
                y = original(at, *args, **kwargs)
                (slope,) = grad(y.sum(), at, create_graph=True)
                (bend,) = grad(slope.sum(), at)
            held = [bend]  # released when taken, since the gradient is multiplied into it

            def once(_: Tensor) -> Tensor:
                if not held:
                    raise ThirdDerivativeError("the gradient of a layer was taken twice")
                return held.pop()

            return y.detach(), slope.detach(), once

        return _activate(input, curve, torch.mul)

    return activate


def _same(tensor: Tensor) -> Tensor:
    return tensor


def tanh(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tanh with a cheap second derivative, by f' = 1 − f²: it keeps no more than torch's."""
    return _saturating(
        original, torch.ops.aten.tanh_backward, lambda y: (y * y).sub_(1).mul_(y).mul_(2)
    )


def sigmoid(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.sigmoid with a cheap second derivative, by f' = f (1 − f)."""
    return _saturating(
        original, torch.ops.aten.sigmoid_backward, lambda y: (y - y * y).mul_(1 - 2 * y)
    )


def _saturating(original: Callable[..., Tensor], pull: Pull, bend: Bend) -> Callable[..., Tensor]:
    def curve(x: Tensor) -> tuple[Tensor, Tensor, Bend]:
        y = original(x)
        return y, y, bend

    def activate(input: Tensor, **kwargs: Any) -> Tensor:
        return (
            original(input, **kwargs)
            if kwargs or input.numel() < LEAST
            else _activate(input, curve, pull)
        )

    return activate


def _activate(x: Tensor, curve: Curve, pull: Pull) -> Tensor:
    y: Tensor = _Activation.apply(x, link(x), curve, pull)  # type: ignore[no-untyped-call]
    return y


class _Activation(Function):
    """y = f(x), elementwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, curve: Curve, pull: Pull) -> Tensor:
        y, kept, ctx.bend = curve(x)
        ctx.pull = pull
        ctx.save_for_backward(place, kept)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        place, kept = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return ctx.pull(g, kept), None, None, None
        if transformed():
            raise ThirdDerivativeError("gradients of a layer were taken in a batch")
        kept = kept.detach()
        dx: Tensor = _Gradient.apply(g, place, kept, ctx.bend(kept), ctx.pull)  # type: ignore[no-untyped-call]
        return dx, None, None, None


class _Gradient(Function):
    """f'(x) g."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, place: Tensor, kept: Tensor, bend: Tensor, pull: Pull
    ) -> Tensor:
        ctx.pull = pull
        ctx.save_for_backward(kept, bend.mul_(g))
        dx: Tensor = pull(g, kept)
        return dx

    @staticmethod
    @second
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        kept, bent = ctx.saved_tensors
        return ctx.pull(dx, kept), dx * bent, None, None, None
