"""Activations whose first and second derivatives are taken once, when the graph is built.

A product with the Hessian then takes three multiplications in them. torch works both derivatives
out anew for every product: of gelu in a score of elementwise steps.
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
"""Elements below which calls cost more than the passes they save, where torch needs few as well."""

Bend = Callable[[Tensor], Tensor]
"""f''(x), a new tensor, from what the curve keeps; called once."""
Pull = Callable[[Tensor, Tensor], Tensor]
"""f'(x) g, from g and what the curve keeps."""
Curve = Callable[[Tensor], tuple[Tensor, Tensor, Bend]]
"""f: of x the value f(x), what it keeps, and the second derivative."""


def smooth(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An elementwise function in this form; its derivatives are torch's."""

    def activate(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("inplace") or any(x is True for x in args):
            return original(input, *args, **kwargs)

        def curve(x: Tensor) -> tuple[Tensor, Tensor, Bend]:
            with (
                calling("layer"),
                torch.enable_grad(),
                saved_tensors_hooks(_same, _same),
            ):  # a checkpoint's own would run all of it again
                at = x.detach().requires_grad_()
                y = original(at, *args, **kwargs)
                (slope,) = grad(y.sum(), at, create_graph=True)
                (bend,) = grad(slope.sum(), at)
            held = [bend]  # let go when it is asked for, since the gradient is multiplied in

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
    """torch.tanh in this form, by f' = 1 − f², so that it keeps no more than torch."""
    return _saturating(
        original, torch.ops.aten.tanh_backward, lambda y: (y * y).sub_(1).mul_(y).mul_(2)
    )


def sigmoid(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.sigmoid in this form, by f' = f (1 − f)."""
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
        found: Tensor = pull(g, kept)
        return found

    @staticmethod
    @second
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        kept, bent = ctx.saved_tensors
        return ctx.pull(dx, kept), dx * bent, None, None, None
