"""How sharpness changes: progressive sharpening and self-stabilization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.dynamics.edges import split


@dataclass(frozen=True, eq=False)
class Sharpening:
    """The first-order change of sharpness at a point.

    Attributes:
        sharpness: S = uᵀHu, unit loss/parameter².
        rate: α = −∇L·∇S, change of S per unit of gradient-flow time; positive: sharpening.
        stabilization: β = ‖∇S‖².
        gradient: ∇S, flat, shape (P,).
    """

    sharpness: float
    rate: float
    stabilization: float
    gradient: Tensor


def sharpening(loss: Callable[[], Tensor], parameters: Sequence[Tensor], u: Tensor) -> Sharpening:
    """α = −∇L·∇S and β = ‖∇S‖² with ∇S = ∇_w(uᵀH(w)u) at fixed u.

    ∇S is the gradient of λ₁ if u is its unit eigenvector and λ₁ is simple. One forward pass and
    three nested backward passes, 6 to 10 gradients; memory grows alike. `.grad` is not touched.
    Third derivatives of LayerNorm and of batch norm in train mode are wrong in some versions of
    torch: build norms from primitive operations where this is used.

    Args:
        loss: Evaluates the loss at the current parameters, with a graph.
        parameters: Tensors to differentiate by, in the order of u.
        u: Unit vector, flat, shape (P,).

    Raises:
        ValueError: If u is not a unit vector to 1e-3.

    References:
        Damian, Nichani and Lee (2023), arXiv:2209.15594.
    """
    norm = float(u.norm())
    if abs(norm - 1) > 1e-3:
        raise ValueError(f"u must be a unit vector, its norm is {norm:g}: divide by it")
    along = split(u.detach(), parameters)

    def gradient(of: Tensor, create_graph: bool) -> tuple[Tensor, ...]:
        if not of.requires_grad:
            return tuple(torch.zeros_like(p) for p in parameters)
        return torch.autograd.grad(
            of, parameters, create_graph=create_graph, materialize_grads=True
        )

    with torch.enable_grad():
        first = gradient(loss(), True)
        # ∇(uᵀ∇L) = Hu, then uᵀHu, then ∇(uᵀHu): three nested backward passes
        second = gradient(_dot(first, along), True)
        value = _dot(second, along)
        third = gradient(value, False)
    flat = torch.cat([t.detach().reshape(-1) for t in third])
    slope = torch.cat([t.detach().reshape(-1) for t in first])
    return Sharpening(float(value.detach()), -float(slope @ flat), float(flat @ flat), flat)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
