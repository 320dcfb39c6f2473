"""Edges of pytorch_optimizer's AdEMAMix, Shampoo and SOAP, recognized without importing it.

With its matrix P frozen such an optimizer is a linear filter like Adam, so the formula is exact.
That training settles there has not been published for Shampoo or SOAP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optbench.dynamics.dispatch import by_name, describe, stateful, trainable
from optbench.dynamics.edges import NO_STEP, Edge, MatVec
from optbench.dynamics.momentum_filters import ema
from optbench.dynamics.update_rule import Term, combine, unknown

Group = Mapping[str, Any]
State = Mapping[str, Any]
UNPUBLISHED = "stability with P frozen; that training settles there is not established"


@by_name(
    "pytorch_optimizer.AdEMAMix",
    understood=(
        "lr",
        "betas",
        "weight_decay",
        "weight_decouple",
        "fixed_decay",
        "alpha",
        "t_alpha_beta3",
        "eps",
    ),
)
def _ademamix(optimizer: Any) -> Edge:
    def term(group: Group, p: Tensor, state: State) -> Term:
        # arXiv:2409.03137: w ← w − η (m̂₁ + α m₂)/(√ν̂ + ε), m₂ without correction
        (beta1, beta2, beta3), t = group["betas"], group["step"]
        alpha = optimizer.schedule_alpha(group["t_alpha_beta3"], t, group["alpha"])
        beta3 = optimizer.schedule_beta3(group["t_alpha_beta3"], t, beta1, beta3)
        diagonal = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt_().add_(group["eps"])
        # both averages see the same g, so that T(−1) is the sum of theirs
        gain = ema(beta1) / (1 - beta1**t) + alpha * ema(beta3)
        return _decayed(group, Term(p, float(group["lr"]), gain, diagonal=diagonal))

    formula = "2/(η[(1−β₁)/((1+β₁)(1−β₁ᵗ)) + α(1−β₃)/(1+β₃)])"
    return _matrix(optimizer, term, formula, "")


@by_name(
    "pytorch_optimizer.SOAP",
    understood=(
        *(
            "lr",
            "betas",
            "shampoo_beta",
            "weight_decay",
            "eps",
            "correct_bias",
            "normalize_gradient",
        ),
        *(
            "precondition_frequency",
            "max_precondition_dim",
            "merge_dims",
            "precondition_1d",
            "data_format",
        ),
    ),
)
def _soap(optimizer: Any) -> Edge:
    def term(group: Group, p: Tensor, state: State) -> Term:
        # arXiv:2409.11321: Adam in the eigenbasis Q of Shampoo's factors, so that
        # P = Q (√ν + ε) Qᵀ, with Adam's bias corrections as one number
        (beta1, beta2), t = group["betas"], group["step"] - 1
        lr = float(group["lr"])
        scale = 1.0
        if group["correct_bias"]:
            scale = (1 - beta1**t) / math.sqrt(1 - beta2**t)
        denominator = state["exp_avg_sq"].sqrt() + group["eps"]
        shrink = 1 - lr * group["weight_decay"]  # the decay comes after the step and scales it too
        root = _rotated(p.shape, state["Q"], denominator)
        diagonal = torch.full_like(p, scale)
        return Term(p, lr, ema(beta1) * shrink, 1 - shrink, diagonal=diagonal, root=root)

    unusual = optimizer.data_format != "channels_first" or any(
        group.get("step", 0) < 2 or group["merge_dims"] or group["normalize_gradient"]
        for group in optimizer.param_groups
        if optimizer.state
    )
    if unusual:
        parameters = [p for _, p in trainable(optimizer)]
        return unknown(
            "SOAP before its second step, or with merge_dims, normalize_gradient or channels_last",
            parameters,
        )
    return _matrix(optimizer, term, "(2+2β₁)/((1−β₁)η)", UNPUBLISHED)


@by_name(
    "pytorch_optimizer.Shampoo",
    understood=(
        *("lr", "momentum", "weight_decay", "weight_decouple", "fixed_decay"),
        *("preconditioning_compute_steps", "matrix_eps"),
    ),
)
def _shampoo(optimizer: Any) -> Edge:
    if any(group["momentum"] for group in optimizer.param_groups):
        parameters = [p for _, p in trainable(optimizer)]
        reason = "this Shampoo feeds the preconditioned step back as momentum: P is not a factor"
        return unknown(reason, parameters)

    def term(group: Group, p: Tensor, state: State) -> Term:
        # arXiv:1802.09568, algorithm 2: w ← w − η (⊗ᵢ Lᵢ^(−1/2k)) g for an order-k tensor, P⁻¹ kept
        factors = [state[f"inv_pre_cond_{i}"] for i in range(p.dim())]
        return _decayed(group, Term(p, float(group["lr"]), root=_kronecker(p.shape, factors)))

    return _matrix(optimizer, term, "2/η", UNPUBLISHED)


def _matrix(
    optimizer: Optimizer,
    term: Callable[[Group, Tensor, State], Term],
    formula: str,
    reason: str,
) -> Edge:
    if not optimizer.state:
        parameters = [p for _, p in trainable(optimizer)]
        return unknown(NO_STEP, parameters)
    terms = stateful(optimizer, term)
    return combine(terms, describe(terms, formula), reason)


def _decayed(group: Group, term: Term) -> Term:
    wd = float(group["weight_decay"])
    if not group["weight_decouple"]:
        return Term(**vars(term) | {"shift": wd})
    return Term(**vars(term) | {"decay": wd if group["fixed_decay"] else term.lr * wd})


def _along(v: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """The product of a matrix with one axis of a tensor."""
    product: Tensor = torch.tensordot(matrix.to(v.dtype), v, dims=([1], [axis]))
    return product.movedim(0, axis)


def _rotated(shape: torch.Size, bases: list[Any], denominator: Tensor) -> MatVec:
    """V ↦ Q D^-½ Qᵀ v with an orthogonal basis per axis; an empty one is the identity."""
    scale = denominator.rsqrt()

    def root(v: Tensor) -> Tensor:
        # into the basis along every axis, scaled there, and back
        axes = [(i, q) for i, q in enumerate(bases) if len(q) > 0]
        for i, q in axes:
            v = _along(v, q.T, i)
        v = v * scale.to(v.dtype).reshape(scale.shape + (1,) * (v.dim() - len(shape)))
        for i, q in axes:
            v = _along(v, q, i)
        return v

    return root


def _kronecker(shape: torch.Size, factors: list[Tensor]) -> MatVec:
    """V ↦ (⊗ A_i)^½ v for positive semidefinite A_i along the axes."""
    roots = []
    for a in factors:
        values, vectors = torch.linalg.eigh((a + a.T) / 2)
        roots.append((vectors * values.clamp(min=0).sqrt()) @ vectors.T)

    def root(v: Tensor) -> Tensor:
        for i, a in enumerate(roots):
            v = _along(v, a, i)
        return v

    return root
