"""The edges of torch's optimizers with an adaptive diagonal preconditioner, and of ASGD."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from optbench.dynamics.dispatch import closed_form, describe, stateful, trainable
from optbench.dynamics.edges import NO_STEP, Edge
from optbench.dynamics.momentum_filters import ema, heavy_ball
from optbench.dynamics.update_rule import Term, combine, unknown

Group = Mapping[str, Any]
State = Mapping[str, Any]


class Decay(TypedDict, total=False):
    """Weight decay as fields of a Term."""

    decay: float
    shift: float


def adaptive(
    optimizer: Optimizer,
    term: Callable[[Group, Tensor, State], Term],
    formula: str,
    reason: str = "",
) -> Edge:
    """The edge of an optimizer whose preconditioner is in its state, one term per parameter.

    Unknown before the first step, since P is read from the state.
    """
    started = [float(s["step"]) for s in optimizer.state.values() if "step" in s]
    if not any(started):
        parameters = [p for _, p in trainable(optimizer)]
        return unknown(NO_STEP, parameters)
    terms = stateful(optimizer, lambda g, p, s: _idle(p) if s["step"] == 0 else term(g, p, s))
    return combine(terms, describe(terms, formula), reason)


def decays(group: Group, decoupled: bool) -> Decay:
    """Weight decay as the fields of a Term: ηλ per step if decoupled, else added to H."""
    wd = float(group["weight_decay"])
    return {"decay": float(group["lr"]) * wd} if decoupled else {"shift": wd}


def second_moment(group: Group, state: State, nu: Tensor) -> Tensor:
    """√(ν/(1−β₂ᵗ)) + ε, times Adam's first-moment bias correction 1−β₁ᵗ."""
    t = float(state["step"])
    beta1, beta2 = map(float, group["betas"])
    scale: Tensor = (nu / (1 - beta2**t)).sqrt().add_(group["eps"])
    return scale.mul_(1 - beta1**t)


def _idle(p: Tensor) -> Term:
    return Term(p, lr=0.0)


@closed_form(
    Adam, understood=("lr", "betas", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay")
)
def _adam(optimizer: Adam) -> Edge:
    # arXiv:1412.6980, algorithm 1: w ← w − η m̂/(√ν̂ + ε), m̂ = m/(1−β₁ᵗ), ν̂ = ν/(1−β₂ᵗ).
    # m filters g by T(−1) = (1−β₁)/(1+β₁); P = (1−β₁ᵗ)(√ν̂ + ε). arXiv:2207.14484.
    def term(group: Group, p: Tensor, state: State) -> Term:
        # arXiv:1904.09237: AMSGrad keeps the largest ν so far in the place of ν
        nu = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        return Term(
            p,
            lr=float(group["lr"]),
            gain=ema(float(group["betas"][0])),
            diagonal=second_moment(group, state, nu),
            **decays(group, group["decoupled_weight_decay"]),
        )

    return adaptive(optimizer, term, "(2+2β₁)/((1−β₁)η)")


@closed_form(
    NAdam,
    understood=("lr", "betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay"),
)
def _nadam(optimizer: NAdam) -> Edge:
    def term(group: Group, p: Tensor, state: State) -> Term:
        # Dozat (2016): w ← w − η [(1−μ_t) g/(1−Πμ) + μ_{t+1} m/(1−Πμ μ_{t+1})]/(√ν̂ + ε)
        beta1, beta2 = map(float, group["betas"])
        t, product = float(state["step"]), float(state["mu_product"])
        mu, mu_next = (
            beta1 * (1 - 0.5 * 0.96 ** (s * group["momentum_decay"])) for s in (t, t + 1)
        )
        # T(−1) of g itself is 1, of m it is (1−β₁)/(1+β₁): the two terms add up
        gain = (1 - mu) / (1 - product) + mu_next / (1 - product * mu_next) * ema(beta1)
        return Term(
            p,
            lr=float(group["lr"]),
            gain=gain,
            diagonal=(state["exp_avg_sq"] / (1 - beta2**t)).sqrt_().add_(group["eps"]),
            **decays(group, group["decoupled_weight_decay"]),
        )

    return adaptive(optimizer, term, "2/(η[(1−μ)/(1−Πμ) + μ'(1−β₁)/((1−Πμμ')(1+β₁))])")


@closed_form(RAdam, understood=("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay"))
def _radam(optimizer: RAdam) -> Edge:
    def term(group: Group, p: Tensor, state: State) -> Term:
        # arXiv:1908.03265, algorithm 2: ρ_∞ = 2/(1−β₂) − 1, ρ_t = ρ_∞ − 2tβ₂ᵗ/(1−β₂ᵗ)
        beta1, beta2 = map(float, group["betas"])
        t = float(state["step"])
        most = 2 / (1 - beta2) - 1
        rho = most - 2 * t * beta2**t / (1 - beta2**t)
        gain, diagonal = ema(beta1) / (1 - beta1**t), None
        if rho > 5:
            # the rectified step η r_t m̂/√ν̂ has P = (1−β₁ᵗ)(√ν + ε)/(√(1−β₂ᵗ) r_t)
            gain = ema(beta1)
            rectifier = (rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho)
            diagonal = state["exp_avg_sq"].sqrt().add_(group["eps"])
            diagonal.mul_((1 - beta1**t) / math.sqrt((1 - beta2**t) * rectifier))
        decay = decays(group, group["decoupled_weight_decay"])
        # without P at first, and then with one that is nearly as new as at the first step
        return Term(p, lr=float(group["lr"]), gain=gain, diagonal=diagonal, learned=True, **decay)

    return adaptive(optimizer, term, "(2+2β₁)/((1−β₁)η)")


@closed_form(Adamax, understood=("lr", "betas", "eps", "weight_decay"))
def _adamax(optimizer: Adamax) -> Edge:
    def term(group: Group, p: Tensor, state: State) -> Term:
        # arXiv:1412.6980, algorithm 2: u ← max(β₂u, |g| + ε), w ← w − η m/((1−β₁ᵗ) u)
        beta1 = float(group["betas"][0])
        diagonal = state["exp_inf"] * (1 - beta1 ** float(state["step"]))
        decay = decays(group, False)
        return Term(p, lr=float(group["lr"]), gain=ema(beta1), diagonal=diagonal, **decay)

    return adaptive(optimizer, term, "(2+2β₁)/((1−β₁)η)")


@closed_form(RMSprop, understood=("lr", "alpha", "eps", "weight_decay", "momentum", "centered"))
def _rmsprop(optimizer: RMSprop) -> Edge:
    def term(group: Group, p: Tensor, state: State) -> Term:
        # w ← w − η b, b ← βb + g/(√ν + ε): P acts before the heavy ball, which P commutes with
        nu = state["square_avg"]
        if group["centered"]:
            # the variance E[g²] − E[g]², which rounding may take below 0
            nu = nu.addcmul(state["grad_avg"], state["grad_avg"], value=-1).clamp_(min=0)
        return Term(
            p,
            lr=float(group["lr"]),
            gain=heavy_ball(float(group["momentum"])),
            diagonal=nu.sqrt().add_(group["eps"]),
            **decays(group, False),
        )

    momentum = optimizer.param_groups[0]["momentum"]
    return adaptive(optimizer, term, "(2+2β)/η" if momentum else "2/η")


@closed_form(
    Adagrad, understood=("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
)
def _adagrad(optimizer: Adagrad) -> Edge:
    def term(group: Group, p: Tensor, state: State) -> Term:
        # Duchi et al. (2011): P = √(Σ g²) + ε, and η_t = η/(1 + (t−1) · lr_decay)
        lr = float(group["lr"]) / (1 + (float(state["step"]) - 1) * group["lr_decay"])
        diagonal = state["sum"].sqrt().add_(group["eps"])
        return Term(p, lr=lr, diagonal=diagonal, **decays(group, False))

    decayed = any(group["lr_decay"] for group in optimizer.param_groups)
    return adaptive(optimizer, term, "2/η_t" if decayed else "2/η")


@closed_form(Adadelta, understood=("lr", "rho", "eps", "weight_decay"))
def _adadelta(optimizer: Adadelta) -> Edge:
    def term(group: Group, p: Tensor, state: State) -> Term:
        # arXiv:1212.5701, algorithm 1: w ← w − η √(E[Δ²] + ε)/√(E[g²] + ε) g
        ratio = (state["square_avg"] + group["eps"]) / (state["acc_delta"] + group["eps"])
        return Term(p, lr=float(group["lr"]), diagonal=ratio.sqrt_(), **decays(group, False))

    return adaptive(optimizer, term, "2/η")


@closed_form(Adafactor, understood=("lr", "beta2_decay", "eps", "d", "weight_decay"))
def _adafactor(optimizer: Adafactor) -> Edge:
    def term(group: Group, p: Tensor, state: State) -> Term:
        eps1, eps2 = group["eps"]
        eps1 = torch.finfo(p.dtype).eps if eps1 is None else eps1
        if "variance" in state:
            nu = state["variance"].clone()
        else:
            # arXiv:1804.04235, algorithm 4: ν ≈ r cᵀ / mean(r), r and c means over the other axis
            row, column = state["row_var"], state["col_var"]
            nu = (row @ column) / row.mean(dim=-2, keepdim=True).clamp(min=eps1)
        # its relative step size: max(ε₂, RMS(w)) · ρ_t with ρ_t = min(η, 1/√t)
        size = max(eps2, float(p.detach().norm()) / math.sqrt(p.numel()))
        return Term(
            p,
            lr=min(float(group["lr"]), float(state["step"]) ** -0.5),
            diagonal=nu.clamp_(min=eps1 * eps1).sqrt_().div_(size),
            **decays(group, True),
        )

    return adaptive(optimizer, term, "2/ρ_t", "update clipping inactive: RMS(P⁻¹g) below d")


@closed_form(ASGD, understood=("lr", "lambd", "alpha", "t0", "weight_decay"))
def _asgd(optimizer: ASGD) -> Edge:
    terms = []
    for group, p in trainable(optimizer):
        state = optimizer.state.get(p)
        # w ← (1 − λη_t) w − η_t g; the average ax of the iterates is not what is differentiated
        lr = float(state["eta"]) if state else float(group["lr"])
        wd = float(group["weight_decay"])
        terms.append(Term(p, lr=lr, decay=lr * group["lambd"], shift=wd))
    return combine(terms, describe(terms, "2/η_t"), "for the iterate w, not its average ax")
