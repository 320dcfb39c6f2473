"""Group norm and batch norm with a second derivative in a few passes; torch's takes some thirty.

The equations are those of `layer_norm`. Entries that are normalized together are the channels of a
group at all positions, or one channel in all examples (batch norm in train mode). w and b are the
same at all positions. All derivatives are then combinations of a, g and x̂ with one coefficient for
each example and channel, and need only the sums of a, a x̂ and a g over positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from optbench.fast_layers.graph import Gradients, link, second


def group_norm(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """F.group_norm with a cheap second derivative."""

    def normalize(
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        fits = input.ndim > 1 and input.numel() and input.shape[1] % num_groups == 0
        if not fits or _misfit(input, weight, bias):
            return original(input, num_groups, weight, bias, eps)
        return _normalize(input, weight, bias, num_groups, eps)

    return normalize


def batch_norm(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """F.batch_norm with a cheap second derivative in train mode; in eval mode the original."""

    def normalize(
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if (
            not training
            or input.ndim < 2
            or input.numel() <= input.shape[1]
            or _misfit(input, weight, bias)
        ):
            return original(input, running_mean, running_var, weight, bias, training, momentum, eps)
        # The running statistics are the measurement's copies. They are updated because the forward
        # pass may read them.
        if running_mean is not None:
            with torch.no_grad():
                original(input, running_mean, running_var, None, None, True, momentum, eps)
        return _normalize(input, weight, bias, None, eps)

    return normalize


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int | None, eps: float
) -> Tensor:
    # torch's kernels assume that gradients and x̂ are contiguous.
    places = x.reshape(*x.shape[:2], -1).contiguous()
    w = x.new_ones(x.shape[1]) if weight is None else weight
    b = x.new_zeros(x.shape[1]) if bias is None else bias
    flat: Tensor = _Normalized.apply(
        places, link(places), w.view(-1, 1), b.view(-1, 1), groups, eps
    )  # type: ignore[no-untyped-call]
    normalized = flat.view(x.shape)
    for kind, ndim in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if x.ndim == ndim and x.is_contiguous(memory_format=kind):
            return normalized.contiguous(memory_format=kind)
    return normalized


def _misfit(x: Tensor, *affine: Tensor | None) -> bool:
    """Whether torch would refuse or convert the gain or the shift."""
    return any(p is not None and (p.shape != x.shape[1:2] or p.dtype != x.dtype) for p in affine)


class _Normalized(Function):
    """x, shape (B, C, S), normalized over groups of channels; over the batch if groups is None.

    w and b have shape (C, 1).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, place: Tensor, w: Tensor, b: Tensor, groups: int | None, eps: float
    ) -> Tensor:
        center = x - _mean(_sum(x), groups, x.shape[2])
        rho = (_mean(_sum(center * center), groups, x.shape[2]) + eps).rsqrt()
        unit = center.mul_(rho)
        ctx.save_for_backward(place, unit, rho, w)
        ctx.groups = groups
        return (unit * w).add_(b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        place, unit, rho, w = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx, dw, db = _Gradient.apply(g, place, unit, rho, w, ctx.groups)  # type: ignore[no-untyped-call]
        else:
            dx, dw, db = _gradients(g, unit, rho, w, ctx.groups)
        return dx, None, dw, db, None, None


class _Gradient(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, place: Tensor, unit: Tensor, rho: Tensor, w: Tensor, groups: int | None
    ) -> Gradients:
        g_sum, g_unit = _sum(g), _sum(g * unit)
        h_mean, along = (_mean(w * sums, groups, g.shape[2]) for sums in (g_sum, g_unit))
        ctx.save_for_backward(g, unit, rho, w, g_sum, g_unit, h_mean, along)
        ctx.groups = groups
        return _gradients(g, unit, rho, w, groups)

    @staticmethod
    @second
    def backward(ctx: Any, a: Tensor, dw: Tensor, db: Tensor) -> Gradients:
        g, unit, rho, w, g_sum, g_unit, h_mean, along = ctx.saved_tensors

        def mean(sums: Tensor) -> Tensor:
            return _mean(sums, ctx.groups, a.shape[2])

        a_mean, a_unit, a_g = mean(_sum(a)), mean(_sum(a * unit)), _sum(a * g)
        gain = w * rho
        slant = dw - gain * a_unit
        along_g = (a * gain).addcmul_(unit, slant).add_(db - gain * a_mean)
        along_w = (rho * (a_g - a_mean * g_sum - a_unit * g_unit)).sum(0)
        h_u = mean(w * a_g) - a_mean * h_mean - a_unit * along  # mean(w g u) / ρ
        tilt = rho * (2 * a_unit * along - h_u) - mean(dw * g_unit)
        along_x = (a * (-rho * along)).addcmul_(g, slant).addcmul_(unit, tilt)
        along_x.add_(rho * (a_unit * h_mean + along * a_mean) - mean(dw * g_sum)).mul_(rho)
        return along_g, along_x, None, None, along_w, None


def _gradients(g: Tensor, unit: Tensor, rho: Tensor, w: Tensor, groups: int | None) -> Gradients:
    """dx, dw and db by torch's kernels: x̂ is its own normalization, of mean 0 and ρ = 1."""
    B, C, S = unit.shape
    flat, every = w.reshape(-1).contiguous(), [True, True, True]
    zero, one = (
        unit.new_full((C,) if groups is None else (B, groups), value) for value in (0.0, 1.0)
    )
    if groups is None:
        gradients = torch.ops.aten.native_batch_norm_backward(
            g.contiguous(), unit, flat, None, None, zero, one, True, 0.0, every
        )
    else:
        gradients = torch.ops.aten.native_group_norm_backward(
            g.contiguous(), unit, zero, one, flat, B, C, S, groups, every
        )
    dx, dw, db = gradients
    return dx.mul_(rho), dw.view(-1, 1), db.view(-1, 1)


def _sum(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


def _mean(sums: Tensor, groups: int | None, places: int) -> Tensor:
    """Means over entries that are normalized together, from sums over positions.

    Shape (B, C, 1), or (1, C, 1) over the batch.
    """
    if groups is None:
        return sums.mean(0, keepdim=True) / places
    grouped = sums.view(len(sums), groups, -1)
    return (grouped.mean(-1, keepdim=True) / places).expand_as(grouped).reshape(sums.shape)
