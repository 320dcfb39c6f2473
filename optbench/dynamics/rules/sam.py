"""The edge of SAM, whatever it is over: optbench's and pytorch_optimizer's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from optbench.dynamics.dispatch import by_name, closed_form, edge, trainable
from optbench.dynamics.edges import Edge, EigenvalueEdge, GradientEdge, Resolved, UnknownEdge
from optbench.dynamics.update_rule import unknown
from optbench.optimizers.sam import SAM


def sam_edge(base: Edge, rho: float) -> Edge:
    """The edge of SAM, w ← base step with the gradient at w + ρ g/‖g‖, over any l2 base.

    On a quadratic with ‖g‖ held fixed the base sees the curvature H + (ρ/‖g‖)H², so that for a
    base without preconditioner and with threshold τ (2/η for gradient descent)

        λ₁(H) = (‖g‖/2ρ)(√(1 + 4ρτ/‖g‖) − 1);

    with a preconditioner the threshold stays τ, on λ₁(P^-½(H + (ρ/‖g‖)H²)P^-½): `ascent` is set
    and the operator costs two products with H.

    Args:
        base: Edge of the base optimizer.
        rho: Radius ρ of the ascent step, not negative.

    References:
        Long and Bartlett (2023), arXiv:2309.12488.
    """
    match base:
        case UnknownEdge():
            return base
        case EigenvalueEdge():
            return _over(base, rho) if rho else base
        case _ if rho == 0:
            return base
        case _:
            reason = f"no edge is known for SAM over a base whose edge is on {base.quantity}"
            return unknown(reason, base.parameters)


def _over(base: EigenvalueEdge, rho: float) -> GradientEdge:
    root = f"(‖g‖/2ρ)(√(1+4ρτ/‖g‖)−1), τ = {base.formula}"
    formula = root if base.plain else base.formula

    def resolve(gradient: Tensor) -> Resolved:
        norm = float(gradient.norm())
        if base.plain:
            # the root of λ + (ρ/‖g‖) λ² = τ, written without the difference of close numbers
            tau = base.threshold
            value = 2 * tau / (1 + math.sqrt(1 + 4 * rho * tau / norm)) if norm else 0.0
            return replace(base, threshold=value, formula=formula)
        if norm == 0:
            return unknown("the gradient vanishes, so SAM's direction does", base.parameters)
        return replace(base, ascent=rho / norm)

    return GradientEdge(
        resolve, base.quantity, formula, base.parameters, base.source, base.reason, base.learns
    )


@closed_form(SAM, understood=("base", "rho"))
def _sam(optimizer: SAM) -> Edge:
    return sam_edge(edge(optimizer.base), optimizer.rho)


@by_name(
    "pytorch_optimizer.SAM", understood=("base_optimizer", "rho", "adaptive", "use_gc", "kwargs")
)
def _sam_of_pytorch_optimizer(optimizer: Any) -> Edge:
    groups = optimizer.param_groups
    radii = {float(group["rho"]) for group in groups}
    if len(radii) > 1 or any(group["adaptive"] for group in groups) or optimizer.use_gc:
        parameters = [p for _, p in trainable(optimizer)]
        return unknown("SAM with unequal rho, adaptive=True or use_gc: no edge known", parameters)
    return sam_edge(edge(optimizer.base_optimizer), radii.pop())
