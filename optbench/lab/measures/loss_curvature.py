"""Curvature of the training loss: plain, adaptive, at one logit scale, per learning rate."""

import math

import torch
from torch import nn

from optbench.curvature import Eigenpairs, Operator, Preconditioned, Scaled, top_eigenpairs
from optbench.curvature import trace as hutchinson
from optbench.curvature.errors import MeasurementError
from optbench.curvature.selection import named_trainable
from optbench.lab.measures import Noted, measure
from optbench.lab.point import ACCURACY, Point

SAMPLES = 30
"""Products of each trace."""


@measure(
    meaning="Largest eigenvalue of the Hessian of the training loss",
    equation="λ₁(∇²L(w))",
    unit="loss per parameter²",
    invariant="no",
    source="arXiv:2103.00065",
    cost="10 to 30 Hessian products",
)
def sharpness(point: Point) -> Noted:
    """λ₁ of ∇²L; where learning rates differ by layer, a note says that it is not the edge's."""
    found = _largest(point.top)
    if _rates_differ(point):
        return Noted(
            found.value,
            "learning rates differ by layer: lr_preconditioned_sharpness is what an edge of "
            "stability is about",
        )
    return found


@measure(
    meaning="Trace of the Hessian of the training loss",
    equation="tr ∇²L(w), by Hutchinson's estimator with the largest eigenpair deflated",
    unit="loss per parameter²",
    invariant="no",
    source="arXiv:2010.09649",
    cost="30 Hessian products",
)
def trace(point: Point) -> Noted:
    """The estimate from `SAMPLES` products."""
    return _trace(point.hessian, point.top, point.seed)


@measure(
    meaning="Adaptive sharpness: λ₁ with each direction in units of its own weight",
    equation="λ₁(|W| ∇²L |W|), |W| = diag |w|",
    unit="loss",
    invariant="yes",
    source="arXiv:2102.11600, sections 3 and 4, for ρ → 0",
    cost="10 to 30 Hessian products",
)
def adaptive_sharpness(point: Point) -> Noted:
    """λ₁ of D∇²L D with D = diag |w|; a weight of 0 is a row of zeros."""
    return _largest(point.adaptive_top)


@measure(
    meaning="Trace of the adaptive Hessian",
    equation="tr(|W| ∇²L |W|) = Σ w_i² h_ii, with the largest eigenpair deflated",
    unit="loss",
    invariant="yes",
    source="arXiv:2102.11600",
    cost="30 Hessian products",
)
def adaptive_trace(point: Point) -> Noted:
    """The estimate from `SAMPLES` products."""
    return _trace(point.adaptive, point.adaptive_top, point.seed)


@measure(
    meaning="Sharpness of the loss of the outputs divided by their root mean square",
    equation="λ₁(∇² mean ℓ(f/s, y)), s = rms of f over the training outputs, held constant",
    unit="loss per parameter²",
    invariant="no",
    source="arXiv:2302.07011, section 3",
    cost="10 to 30 Hessian products",
)
def logit_normalized_sharpness(point: Point) -> Noted:
    """λ₁ at one scale of the outputs: a factor on them, outside of the weights, leaves it.

    The paper's repository centres the outputs of each example and divides them by their own norm,
    and differentiates through that norm, which is another matrix.
    """
    return _largest(point.logit_normalized_top)


@measure(
    meaning="Adaptive sharpness of the loss of the outputs divided by their root mean square",
    equation="λ₁(|W| ∇² mean ℓ(f/s, y) |W|)",
    unit="loss",
    invariant="yes",
    source="arXiv:2302.07011, section 3",
    cost="10 to 30 Hessian products",
)
def logit_normalized_adaptive_sharpness(point: Point) -> Noted:
    """Both normalizations together."""
    return _solved(Scaled(point.logit_normalized, point.weights.abs()), point)


@measure(
    meaning="Trace of the Hessian of the loss of the outputs divided by their root mean square",
    equation="tr ∇² mean ℓ(f/s, y)",
    unit="loss per parameter²",
    invariant="no",
    source="arXiv:2302.07011, section 3",
    cost="30 Hessian products",
)
def logit_normalized_trace(point: Point) -> Noted:
    """The estimate from `SAMPLES` products, with the largest eigenpair deflated."""
    return _trace(point.logit_normalized, point.logit_normalized_top, point.seed)


@measure(
    meaning="Sharpness in units of each parameter's share of the learning rate",
    equation="λ₁(F^½ ∇²L F^½), F = diag(the model's lr_factors), or of lr / largest lr",
    unit="loss per parameter²",
    invariant="no",
    source="arXiv:2402.17457 (μP); equal to λ₁ where all rates are equal",
    cost="10 to 30 Hessian products",
)
def lr_preconditioned_sharpness(point: Point) -> Noted:
    """What an edge of stability is about where layers have learning rates of their own.

    The edge of gradient descent is at 2/lr, with the lr that a factor of 1 stands for.
    """
    factors = lr_factors(point)
    if len(set(factors)) == 1 and factors[0] == 1:
        return _largest(point.top)
    diagonal = torch.cat(
        [
            torch.full((p.numel(),), 1 / f, dtype=torch.float64, device=p.device)
            for p, f in zip(point.parameters, factors, strict=True)
        ]
    )
    return _solved(Preconditioned(point.hessian, diagonal), point)


def lr_factors(point: Point) -> list[float]:
    """Share of the learning rate that each trained parameter has.

    1. The model's own `lr_factors`, such as those of μP, where the optimizer's rates are in their
       proportion, or there is no optimizer. They are relative to one base rate, whatever the width.
    2. Else the optimizer's rates over the largest one.
    3. Else 1 for all.

    Raises:
        MeasurementError: If the optimizer has no rate of a parameter, or one of 0.
    """
    asked = _factors_of(point.model)
    rates = _rates(point)
    if rates is None:
        return asked or [1.0] * len(point.parameters)
    if not all(rate > 0 for rate in rates):
        raise MeasurementError("a learning rate is 0: the edge is that of the other parameters")
    if asked is not None and _in_proportion(rates, asked):
        return asked
    largest = max(rates)
    return [rate / largest for rate in rates]


def _rates(point: Point) -> list[float] | None:
    if point.optimizer is None:
        return None
    rates = {
        id(p): float(group["lr"])
        for group in point.optimizer.param_groups
        if "lr" in group
        for p in group["params"]
    }
    if not all(id(p) in rates for p in point.parameters):
        raise MeasurementError("the optimizer has no lr of every parameter")
    return [rates[id(p)] for p in point.parameters]


def _factors_of(model: nn.Module) -> list[float] | None:
    factors = getattr(model, "lr_factors", None)
    if factors is None:
        return None
    return [float(factors[name]) for name in named_trainable(model)]


def _in_proportion(rates: list[float], factors: list[float]) -> bool:
    quotients = [rate / factor for rate, factor in zip(rates, factors, strict=True)]
    return max(quotients) <= (1 + 1e-6) * min(quotients)


def _rates_differ(point: Point) -> bool:
    try:
        return len(set(lr_factors(point))) > 1
    except MeasurementError:  # without rates there is nothing to say of them
        return False


def _solved(operator: Operator, point: Point) -> Noted:
    return _largest(top_eigenpairs(operator, 1, accuracy=ACCURACY, seed=point.seed))


def _largest(pairs: Eigenpairs) -> Noted:
    value = float(pairs.values[0])
    if not math.isfinite(value):
        raise MeasurementError("the largest eigenvalue is not finite")
    if pairs.converged:
        return Noted(value, None)
    return Noted(value, f"not converged: it may be {float(pairs.bounds[0]):.2g} larger")


def _trace(operator: Operator, top: Eigenpairs, seed: int) -> Noted:
    estimate = hutchinson(operator, SAMPLES, deflate=top, seed=seed)
    return Noted(estimate.value, f"standard error {estimate.stderr:.2g}")
