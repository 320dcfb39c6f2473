"""Edges of optimizers that take a step of fixed size in a norm, whatever the gradient's length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from optbench.dynamics.edges import Edge, EigenvalueEdge, GradientEdge, NormBallEdge, Source, split
from optbench.optimizers.norms import Geometry, dual_norm, lmo

MOMENTUM = (
    "no threshold is established with momentum: 2⟨g, s⟩/η, s the normalized momentum, is exact on "
    "a parabola on time average only, and may be negative at a step"
)


@dataclass(frozen=True, eq=False)
class NormStep:
    """How one tensor is updated: w ← (1 − decay) w − lr · radius · lmo(direction(g)).

    Attributes:
        parameter: The tensor w.
        lr: Step size; 0 if it does not move.
        radius: Further factor of the step, such as Muon's for the shape.
        decay: Decoupled decay per step, ηλ.
        direction: g ↦ what is normalized, such as the momentum; None for g itself.
    """

    parameter: Tensor
    lr: float
    radius: float = 1.0
    decay: float = 0.0
    direction: Callable[[Tensor], Tensor] | None = None


def norm_edge(
    steps: Sequence[NormStep], geometry: Geometry, formula: str = "", reason: str = ""
) -> Edge:
    """The edge of an optimizer that takes a step of fixed size in a norm, on every tensor.

    With step sizes ρ_l = η_l radius_l / η_0 and s_l = lmo(direction(g_l)), the loss along the
    step −η_0 ρ s is stationary on average where

        S = max over ‖d_l‖ ≤ ρ_l of dᵀHd = Σ_l (2 − η_lλ_l) ρ_l ⟨g_l, s_l⟩ / η_0,

    that is 2 Σ_l ‖g_l‖_*/η for one learning rate without momentum: a closed form, where training
    alternates along the maximizer. With a `direction` the source is "conjecture": S ≥ sᵀHs, whose
    time average is the right side's on a quadratic, so compare averages over many steps. The
    factor (1+β)/(1−β) of linear methods does not apply, since lmo forgets the size of momentum.
    The step η‖g‖_* s of steepest descent has S = 2/η instead.

    Args:
        steps: One per trainable tensor, in the optimizer's order.
        geometry: "linf" (sign methods) or "spectral" (Muon).
        formula: The threshold for a reader.
        reason: Idealization made, if any.

    References:
        Islamov et al. (2026), arXiv:2603.05002, for the norm sharpness and the unnormalized step.
    """
    parameters = tuple(s.parameter for s in steps)
    first = next((s.lr for s in steps if s.lr > 0), 0.0)
    if not first:
        return EigenvalueEdge(math.inf, "nothing moves", parameters)
    radii = tuple(s.lr * s.radius / first for s in steps)
    momentum = any(s.direction is not None for s in steps)
    source: Source = "conjecture" if momentum else "closed form"
    dual = {"linf": "‖g‖₁", "spectral": "Σ‖G‖_*", "l2": "‖g‖"}[geometry]
    formula = formula or ("2⟨g, s⟩/η" if momentum else f"2{dual}/η")
    reason = "; ".join(filter(None, [MOMENTUM if momentum else "", reason]))

    def resolve(gradient: Tensor) -> NormBallEdge:
        # Σ_l (2 − η_lλ_l) ρ_l ⟨g_l, s_l⟩ / η_0, where ⟨g, lmo(g)⟩ = ‖g‖_* without momentum
        threshold = 0.0
        for step, radius, g in zip(steps, radii, split(gradient, parameters), strict=True):
            if step.direction is None:
                aligned = dual_norm(g, geometry)
            else:
                aligned = float((g * lmo(step.direction(g), geometry)).sum())
            threshold += (2 - step.decay) * radius * aligned / first
        return NormBallEdge(threshold, geometry, radii, formula, parameters, source, reason)

    learns = (False,) * len(parameters)
    quantity = f"{geometry} sharpness"
    return GradientEdge(
        resolve, quantity, formula, parameters, source, reason, learns, on_a_norm_ball=True
    )
