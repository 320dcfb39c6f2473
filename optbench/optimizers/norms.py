"""The max-norm and the spectral norm of tensors: norm, dual norm and steepest direction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Geometry = Literal["l2", "linf", "spectral"]


def lmo(g: Tensor, geometry: Geometry) -> Tensor:
    """The direction s with ‖s‖ = 1 that maximizes ⟨g, s⟩, of the shape of g.

    "l2": g/‖g‖; "linf": sign g; "spectral": UVᵀ for g = UΣVᵀ, with a tensor of more than two
    dimensions as the matrix (first, rest) and a vector as a column. Zero gives zero.
    Costs an SVD per matrix in "spectral".
    """
    if geometry == "linf":
        return g.sign()
    if geometry == "l2" or g.dim() < 2:
        unit: Tensor = g / g.norm().clamp(min=torch.finfo(g.dtype).tiny)
        return unit
    u, sigma, vt = torch.linalg.svd(g.flatten(1), full_matrices=False)
    kept = (sigma > sigma[0] * torch.finfo(g.dtype).eps * max(g.shape)).to(g.dtype)
    direction: Tensor = ((u * kept) @ vt).reshape(g.shape)
    return direction


def dual_norm(g: Tensor, geometry: Geometry) -> float:
    """‖g‖_* = max ⟨g, s⟩ over ‖s‖ ≤ 1: ℓ₂ norm, ℓ₁ norm, or sum of singular values."""
    if geometry == "linf":
        return float(g.abs().sum())
    if geometry == "l2" or g.dim() < 2:
        return float(g.norm())
    return float(torch.linalg.svdvals(g.flatten(1)).sum())
