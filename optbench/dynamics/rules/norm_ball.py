"""Edges that depend on the gradient: SAM, and steps normalized in max or spectral norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon, Optimizer

from optbench.dynamics.dispatch import by_name, closed_form, edge, trainable
from optbench.dynamics.edges import Edge, split
from optbench.dynamics.optimizer_options import arguments
from optbench.dynamics.update_rule import unknown
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
        return Edge(math.inf, "closed form", "nothing moves", parameters)
    radii = tuple(s.lr * s.radius / first for s in steps)
    momentum = any(s.direction is not None for s in steps)
    norm = {"linf": "‖g‖₁", "spectral": "Σ‖G‖_*", "l2": "‖g‖"}[geometry]

    def resolve(gradient: Tensor) -> Edge:
        total = 0.0
        for step, radius, g in zip(steps, radii, split(gradient, parameters), strict=True):
            if step.direction is None:
                aligned = dual_norm(g, geometry)
            else:
                aligned = float((g * lmo(step.direction(g), geometry)).sum())
            total += (2 - step.decay) * radius * aligned / first
        return replace(result, threshold=total, resolve=None)

    result = Edge(
        math.nan,
        "conjecture" if momentum else "closed form",
        formula or ("2⟨g, s⟩/η" if momentum else f"2{norm}/η"),
        parameters,
        geometry,
        radii=radii,
        reason="; ".join(filter(None, [MOMENTUM if momentum else "", reason])),
        resolve=resolve,
    )
    return result


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
    if base.source == "unknown" or rho == 0:
        return base
    if base.geometry != "l2" or base.needs_gradient:
        return unknown(f"no edge is known for SAM over a base in {base.geometry}", base.parameters)
    formula = f"(‖g‖/2ρ)(√(1+4ρτ/‖g‖)−1), τ = {base.formula}"

    def resolve(gradient: Tensor) -> Edge:
        norm = float(gradient.norm())
        if base.plain:
            tau = base.threshold
            # the same root, written without the difference of close numbers
            value = 2 * tau / (1 + math.sqrt(1 + 4 * rho * tau / norm)) if norm else 0.0
            return replace(base, threshold=value, formula=formula)
        if norm == 0:
            return unknown("the gradient vanishes, so SAM's direction does", base.parameters)
        return replace(base, ascent=rho / norm)

    return replace(base, threshold=math.nan, formula=formula, resolve=resolve)


@closed_form(Muon, understood=("lr", "weight_decay", "momentum", "nesterov", "adjust_lr_fn"))
def _muon(optimizer: Muon) -> Edge:
    steps = []
    for group, p in trainable(optimizer):
        rows, columns = p.shape[:2]
        radius = math.sqrt(max(1.0, rows / columns))
        if group["adjust_lr_fn"] == "match_rms_adamw":
            radius = 0.2 * math.sqrt(max(rows, columns))
        buffer = optimizer.state.get(p, {}).get("momentum_buffer", torch.zeros_like(p))
        beta, lr = group["momentum"], float(group["lr"])
        direction = _averaged(buffer, beta, beta * beta if group["nesterov"] else beta)
        steps.append(NormStep(p, lr, radius, lr * group["weight_decay"], direction))
    reason = "Newton–Schulz taken as exact: its singular values lie within about 0.7 to 1.2, not 1"
    return norm_edge(steps, "spectral", reason=reason)


def _averaged(buffer: Tensor, beta: float, weight: float) -> Callable[[Tensor], Tensor] | None:
    """G ↦ (1 − weight) g + weight · buffer; None without momentum, when the step is s(g)."""
    return (lambda g: g.lerp(buffer.to(g.dtype), weight)) if beta else None


@by_name(
    "pytorch_optimizer.SignSGD", understood=("lr", "momentum", "weight_decay", "weight_decouple")
)
def signum_edge(optimizer: Optimizer) -> Edge:
    """The norm edge of a sign of momentum, in pytorch_optimizer's layout of groups and state."""
    steps = []
    for group, p in trainable(optimizer):
        beta = group["momentum"]
        buffer = optimizer.state.get(p, {}).get("momentum_buffer", torch.zeros_like(p))
        steps.append(_sign_step(group, p, _averaged(buffer, beta, beta), _decay(optimizer, group)))
    return norm_edge(steps, "linf", reason=_coupled(optimizer))


@by_name(
    "pytorch_optimizer.Lion",
    understood=("lr", "betas", "weight_decay", "weight_decouple", "fixed_decay"),
)
@by_name(
    "lion_pytorch.Lion",
    understood=("lr", "betas", "weight_decay", "decoupled_weight_decay"),
    off={"cautious_factor": 1.0, "cautious_wd": False},
)
def lion_edge(optimizer: Optimizer) -> Edge:
    """The norm edge of Lion, in pytorch_optimizer's layout of groups and state, or lion_pytorch's."""
    steps = []
    for group, p in trainable(optimizer):
        beta1 = group["betas"][0]
        buffer = optimizer.state.get(p, {}).get("exp_avg", torch.zeros_like(p))
        steps.append(
            _sign_step(group, p, _averaged(buffer, beta1, beta1), _decay(optimizer, group))
        )
    return norm_edge(steps, "linf", reason=_coupled(optimizer))


def _sign_step(
    group: dict[str, Any], p: Tensor, direction: Callable[[Tensor], Tensor] | None, decay: float
) -> NormStep:
    return NormStep(p, float(group["lr"]), decay=decay, direction=direction)


def _decay(optimizer: Any, group: dict[str, Any]) -> float:
    """Decoupled decay per step: ηλ, λ if that is fixed, or λη/η₀ with the first rate of lion_pytorch's option."""
    lr, wd = float(group["lr"]), float(group["weight_decay"])
    if not group.get("weight_decouple", True):
        return 0.0
    if "decoupled_weight_decay" in arguments(type(optimizer)) and optimizer.decoupled_wd:
        return wd * lr / float(optimizer._init_lr)
    return wd if group.get("fixed_decay") else lr * wd


def _coupled(optimizer: Optimizer) -> str:
    coupled = any(
        g["weight_decay"] and not g.get("weight_decouple", True) for g in optimizer.param_groups
    )
    return "coupled weight decay is part of the loss: add it to H and g" if coupled else ""


@by_name(
    "pytorch_optimizer.SAM", understood=("base_optimizer", "rho", "adaptive", "use_gc", "kwargs")
)
def _sam(optimizer: Any) -> Edge:
    groups = optimizer.param_groups
    radii = {float(group["rho"]) for group in groups}
    if len(radii) > 1 or any(group["adaptive"] for group in groups) or optimizer.use_gc:
        parameters = [p for _, p in trainable(optimizer)]
        return unknown("SAM with unequal rho, adaptive=True or use_gc: no edge known", parameters)
    return sam_edge(edge(optimizer.base_optimizer), radii.pop())
