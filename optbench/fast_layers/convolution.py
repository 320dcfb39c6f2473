"""Convolution with a second derivative made of the kernels of its first.

torch takes the gradient of a weight's gradient as a convolution whose kernel is as large as the
image, which takes two to three times as long as what training uses for the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from optbench.fast_layers.graph import Gradients, second

Settings = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation, groups."""


def convolution(dimensions: int, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """F.conv1d, conv2d or conv3d with a cheap second derivative.

    Padding that differs between sides, and inputs without a batch, go to the original.
    """

    def convolve(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        if not all(isinstance(x, (int, str, Sequence)) for x in (stride, padding, dilation)):
            return original(input, weight, bias, stride, padding, dilation, groups)
        strides, spacing = _spread(stride, dimensions), _spread(dilation, dimensions)
        pad = _padding_per_side(padding, weight, strides, spacing)
        if pad is None or input.ndim != dimensions + 2:
            return original(input, weight, bias, stride, padding, dilation, groups)
        settings = strides, pad, spacing, groups
        convolved: Tensor = _Convolution.apply(input, weight, bias, settings)  # type: ignore[no-untyped-call]
        return convolved

    return convolve


class _Convolution(Function):
    """y = w * x + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.settings = settings
        return _convolve(x, w, b, settings)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        take: Callable[..., Gradients] = _Gradient.apply if torch.is_grad_enabled() else _gradients
        return (*take(g, *ctx.saved_tensors, ctx.needs_input_grad[:3], ctx.settings), None)


class _Gradient(Function):
    """The gradients in x, w and b, which are linear in each of g, x and w."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, w: Tensor, needed: Sequence[bool], settings: Settings
    ) -> Gradients:
        ctx.save_for_backward(g, x, w)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return _gradients(g, x, w, needed, settings)

    @staticmethod
    @second
    def backward(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None) -> Gradients:
        g, x, w = ctx.saved_tensors
        along_g = None
        if dw is not None:
            along_g = _convolve(x, dw, db, ctx.settings)
        elif db is not None:
            along_g = db.view(-1, *[1] * (g.ndim - 2)).expand_as(g)
        if dx is not None:
            pushed = _convolve(dx, w, None, ctx.settings)
            along_g = pushed if along_g is None else pushed.add_(along_g)
        needed = (
            ctx.needs_input_grad[1] and dw is not None,
            ctx.needs_input_grad[2] and dx is not None,
            False,
        )
        along_x, along_w, _ = _gradients(
            g, x if dx is None else dx, w if dw is None else dw, needed, ctx.settings
        )
        return along_g, along_x, along_w, None, None


def _convolve(x: Tensor, w: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
    stride, padding, dilation, groups = settings
    return torch.convolution(x, w, b, stride, padding, dilation, False, [0] * len(stride), groups)


def _gradients(
    g: Tensor, x: Tensor, w: Tensor, needed: Sequence[bool], settings: Settings
) -> Gradients:
    if not any(needed):
        return None, None, None
    stride, padding, dilation, groups = settings
    none = [0] * len(stride)
    bias = [w.shape[0]] if needed[2] else None
    gradients: Gradients = torch.ops.aten.convolution_backward(
        g, x, w, bias, stride, padding, dilation, False, none, groups, list(needed)
    )
    return gradients


def _spread(value: int | Sequence[int], dimensions: int) -> list[int]:
    return (
        [value] * dimensions if isinstance(value, int) else list(value) * (dimensions // len(value))
    )


def _padding_per_side(
    padding: int | Sequence[int] | str, weight: Tensor, stride: list[int], dilation: list[int]
) -> list[int] | None:
    """Padding on each side of each dimension; None if the sides differ or torch refuses."""
    if not isinstance(padding, str):
        return _spread(padding, len(stride))
    # Total padding of both sides: d (k − 1) keeps the size at stride 1.
    both = [
        d * (k - 1) if padding == "same" else 0
        for d, k in zip(dilation, weight.shape[2:], strict=True)
    ]
    refused = padding not in ("same", "valid") or (padding == "same" and set(stride) != {1})
    return None if refused or any(b % 2 for b in both) else [b // 2 for b in both]
