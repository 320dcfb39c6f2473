"""Norm-ball edges: Muon in spectral norm; Signum and Lion in max norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon, Optimizer

from optbench.dynamics.dispatch import by_name, closed_form, trainable
from optbench.dynamics.edges import Edge
from optbench.dynamics.norm_step import NormStep, norm_edge
from optbench.dynamics.optimizer_options import arguments
from optbench.optimizers.sign import Lion, Signum


@closed_form(Muon, understood=("lr", "weight_decay", "momentum", "nesterov", "adjust_lr_fn"))
def _muon(optimizer: Muon) -> Edge:
    steps = []
    for group, p in trainable(optimizer):
        rows, columns = p.shape[:2]
        # Jordan et al. (2024): w ← (1 − ηλ)w − η √max(1, rows/columns) U Vᵀ, G = U Σ Vᵀ
        radius = math.sqrt(max(1.0, rows / columns))
        if group["adjust_lr_fn"] == "match_rms_adamw":
            # arXiv:2502.16982: the size of an update of AdamW
            radius = 0.2 * math.sqrt(max(rows, columns))
        buffer = optimizer.state.get(p, {}).get("momentum_buffer", torch.zeros_like(p))
        # m ← βm + (1−β)g; Nesterov's look-ahead (1−β)g + βm weighs the old m by β²
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
    """The norm edge of Lion, in the layout of pytorch_optimizer or of lion_pytorch."""
    steps = []
    for group, p in trainable(optimizer):
        # arXiv:2302.06675, algorithm 2: sign(β₁m + (1−β₁)g)
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
    """Decoupled decay per step: ηλ; λ if fixed; λη/η₀ with lion_pytorch's option."""
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


closed_form(Signum, understood=("lr", "momentum", "weight_decay"))(signum_edge)
closed_form(Lion, understood=("lr", "betas", "weight_decay"))(lion_edge)
