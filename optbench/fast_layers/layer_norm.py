"""Layer norm with a second derivative in a few passes; torch's takes a score.

With x̂ = ρ (x − mean x), ρ = (var x + ε)^-½, y = w x̂ + b, and the derivative of x̂, which is
symmetric, J a = ρ (a − mean a − x̂ mean(a x̂)), the gradients of y·g are

    dx = J(w g),   dw = Σ g x̂,   db = Σ g,

and those of dx·a + dw·α + db·β in turn, with u = J a,

    in g:  w u + α x̂ + β,
    in w:  Σ g u,
    in x:  J(α g) − ρ [mean(a x̂) dx + mean(w g x̂) u + mean(w g u) x̂].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from optbench.fast_layers.graph import Gradients, link, second


def layer_norm(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """F.layer_norm with a cheap second derivative."""

    def normalize(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        shape = torch.Size(normalized_shape)
        count = shape.numel()
        affine = [p for p in (weight, bias) if p is not None]
        fits = input.numel() and shape and input.shape[-len(shape) :] == shape
        if not fits or any(p.shape != shape or p.dtype != input.dtype for p in affine):
            return original(input, normalized_shape, weight, bias, eps)
        # torch's kernels assume that gradients and x̂ are contiguous.
        rows = input.reshape(-1, count).contiguous()
        w = input.new_ones(count) if weight is None else weight.reshape(-1)
        b = input.new_zeros(count) if bias is None else bias.reshape(-1)
        normalized: Tensor = _Normalized.apply(rows, link(rows), w, b, eps)  # type: ignore[no-untyped-call]
        return normalized.view(input.shape)

    return normalize


class _Normalized(Function):
    """Each row of x, shape (R, N), normalized; w and b have shape (N,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
        unit, _, rho = torch.native_layer_norm(x, w.shape, None, None, eps)
        ctx.save_for_backward(place, unit, rho, w)
        return torch.addcmul(b, unit, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        place, unit, rho, w = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx, dw, db = _Gradient.apply(g, place, unit, rho, w)  # type: ignore[no-untyped-call]
        else:
            dx, dw, db = _gradients(g, unit, rho, w)
        return dx, None, dw, db, None


class _Gradient(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, place: Tensor, unit: Tensor, rho: Tensor, w: Tensor
    ) -> Gradients:
        along = ((g * unit) @ w).unsqueeze(1) / len(w)
        ctx.save_for_backward(g, unit, rho, w, along)
        return _gradients(g, unit, rho, w)

    @staticmethod
    @second
    def backward(ctx: Any, a: Tensor, dw: Tensor, db: Tensor) -> Gradients:
        g, unit, rho, w, along = ctx.saved_tensors
        # The module's equations: a = the change of dx, u = J a, h = w g.
        u = _project(a, unit)[0].mul_(rho)
        along_g = torch.addcmul(db, unit, dw).addcmul_(u, w)
        g_u = g * u
        a_unit, h_u = (a * unit).mean(1, keepdim=True), (g_u @ w).unsqueeze(1) / len(w)
        along_x = _project(torch.addmm(dw, rho * a_unit, w.unsqueeze(0), alpha=-1).mul_(g), unit)[0]
        along_x.addcmul_(u, along, value=-1).addcmul_(unit, h_u, value=-1).mul_(rho)
        return along_g, along_x, None, None, g_u.sum(0)


def _gradients(g: Tensor, unit: Tensor, rho: Tensor, w: Tensor) -> Gradients:
    dx, dw, db = _project(g, unit, w, sums=True)
    return dx.mul_(rho), dw, db


def _project(
    g: Tensor, unit: Tensor, w: Tensor | None = None, sums: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """J(w g) / ρ, and with `sums` also Σ g x̂ and Σ g.

    torch's kernel is called on x̂, which is its own normalization: mean 0 and ρ = 1.
    """
    mean, rho = unit.new_zeros(len(unit), 1), unit.new_ones(len(unit), 1)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        g.contiguous(), unit, unit.shape[1:], mean, rho, w, w, [True, sums, sums]
    )
    return gradients
