"""Norm sharpness: the largest curvature over a norm ball, bounded from below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.dynamics.edges import MatVec, join, split
from optbench.optimizers.norms import Geometry, lmo


@dataclass(frozen=True, eq=False)
class NormSharpness:
    """A lower bound of max dᵀHd over a norm ball, and the direction that attains it.

    Attributes:
        value: dᵀHd, unit of the loss for a ball in units of the parameters.
        direction: d, flat; start the next measurement from it.
        hvps: Hessian-vector products spent.
        optima: Starts that ended in a fixed point of the ascent.
    """

    value: float
    direction: Tensor
    hvps: int
    optima: int


def norm_sharpness(
    hvp: MatVec,
    parameters: Sequence[Tensor],
    geometry: Geometry,
    radii: Sequence[float] | None = None,
    starts: Sequence[Tensor] = (),
    generator: torch.Generator | None = None,
    max_hvps: int = 60,
    dtype: torch.dtype | None = None,
) -> NormSharpness:
    """S = max dᵀHd over ‖d_l‖ ≤ r_l for every tensor l: a lower bound by repeated ascent.

    Each ascent is d ← argmax ⟨(H + c)d, x⟩ over the ball, which cannot lower dᵀHd for c ≥ −λ_min;
    c is raised when it does, and moves no maximum since ‖d‖₂ is the same at all corners. The
    exact value is NP-hard in max-norm; starts other than the given are random. Costs at most
    `max_hvps` products, and an SVD per matrix and product in "spectral".

    Args:
        hvp: v ↦ Hv on flat vectors, shape (P,).
        parameters: Tensors that give the shapes, in the order of the flat vector.
        geometry: "linf", "spectral", or "l2" per tensor (with one tensor: λ₁).
        radii: Radius per tensor, `Edge.radii`; ones if absent.
        starts: Directions to start from, such as the last maximizer, the gradient, the update.
        generator: Source of random starts; a new one with seed 0 if absent.
        max_hvps: Most products to spend.
        dtype: Precision of vectors; None for the parameters' own.

    Raises:
        ValueError: If max_hvps is below 1 or nothing can move.

    References:
        Islamov et al. (2026), arXiv:2603.05002.
    """
    radii = [1.0] * len(parameters) if radii is None else list(radii)
    if max_hvps < 1 or not any(radii):
        raise ValueError(f"needs max_hvps ≥ 1 and a positive radius, got {max_hvps} and {radii}")
    like = torch.cat([p.detach().reshape(-1) for p in parameters]).to(dtype)
    if generator is None:
        generator = torch.Generator(device=like.device).manual_seed(0)

    def corner(v: Tensor, at: Tensor) -> Tensor:
        pieces = zip(split(v, parameters), radii, strict=True)
        d = join([r * lmo(piece, geometry) for piece, r in pieces], v)
        return torch.where(v == 0, at, d) if geometry == "linf" else d

    best, best_value, spent, optima = like, -float("inf"), 0, 0
    queue = [s for s in starts if bool(s.any())]
    while spent < max_hvps:
        noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
        start = queue.pop(0) if queue else noise
        end = _ascend(hvp, corner, corner(start, start), max_hvps - spent)
        spent, optima = spent + end.hvps, optima + end.optima
        if end.value > best_value:
            best, best_value = end.direction, end.value
    return NormSharpness(best_value, best, spent, optima)


def _ascend(
    hvp: MatVec, corner: Callable[[Tensor, Tensor], Tensor], d: Tensor, budget: int
) -> NormSharpness:
    """Climb from a corner of the ball until it maps to itself or the budget is spent."""
    product = hvp(d)
    value, spent, shift = float(d @ product), 1, 0.0
    while spent < budget:
        # argmax ⟨(H + c)d, x⟩ over the ball: for H + c ≥ 0, f(x) ≥ f(d) + 2⟨(H + c)d, x − d⟩ ≥ f(d)
        new = corner(product + shift * d, d)
        if torch.equal(new, d):
            return NormSharpness(value, d, spent, 1)
        trial = hvp(new)
        spent += 1
        at_new = float(new @ trial)
        slack = 1e-7 * abs(value)
        if at_new < value - slack:
            # H has an eigenvalue below −c: raise c, at least to the curvature that was seen
            shift = max(2 * shift, abs(at_new) / float(new @ new), abs(value) / float(d @ d))
            continue
        settled = at_new <= value + slack
        d, product, value = new, trial, at_new
        if settled:
            return NormSharpness(value, d, spent, 1)
    return NormSharpness(value, d, spent, 0)
