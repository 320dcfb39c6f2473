"""Curvature of the training loss: plain, adaptive, at one logit scale, per learning rate."""

import math

import torch
from torch import Tensor, nn

from optbench.curvature import Hessian, Loss, Operator, Preconditioned, Scaled, top_eigenpairs
from optbench.curvature import trace as hutchinson
from optbench.curvature.errors import MeasurementError
from optbench.curvature.selection import named_trainable
from optbench.lab.measures import measure
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
def sharpness(point: Point) -> float:
    """λ₁ of ∇²L; under layer-wise learning rates see `lr_preconditioned_sharpness`."""
    return float(point.top.values[0])


@measure(
    meaning="Trace of the Hessian of the training loss",
    equation="tr ∇²L(w), by Hutchinson's estimator with the largest eigenpair deflated",
    unit="loss per parameter²",
    invariant="no",
    source="arXiv:2010.09649",
    cost="30 Hessian products",
)
def trace(point: Point) -> float:
    """The estimate from `SAMPLES` products; of a trace far above λ₁ it is good to some percent."""
    return hutchinson(point.hessian, SAMPLES, deflate=point.top, seed=point.seed).value


def _adaptive(operator: Operator, point: Point) -> Scaled:
    return Scaled(operator, point.weights.abs())


@measure(
    meaning="Adaptive sharpness: λ₁ with each direction in units of its own weight",
    equation="λ₁(|W| ∇²L |W|), |W| = diag |w|",
    unit="loss",
    invariant="yes",
    source="arXiv:2102.11600, sections 3 and 4, for ρ → 0",
    cost="10 to 30 Hessian products",
)
def adaptive_sharpness(point: Point) -> float:
    """λ₁ of D∇²L D with D = diag |w|."""
    return _largest(_adaptive(point.hessian, point), point)


@measure(
    meaning="Trace of the adaptive Hessian",
    equation="tr(|W| ∇²L |W|) = Σ w_i² h_ii",
    unit="loss",
    invariant="yes",
    source="arXiv:2102.11600",
    cost="30 Hessian products",
)
def adaptive_trace(point: Point) -> float:
    """The estimate from `SAMPLES` products."""
    return hutchinson(_adaptive(point.hessian, point), SAMPLES, seed=point.seed).value


def _at_logit_scale(point: Point) -> Hessian:
    scale = point.logit_scale
    if not scale > 0:
        raise MeasurementError("all outputs are 0: they have no scale")

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return point.task.loss(outputs / scale, targets)  # the scale is a constant: detached

    data = (point.train.inputs, point.train.targets)
    return Loss(point.model, criterion, data, weight=point.task.weight).hessian()


@measure(
    meaning="Sharpness of the loss of the outputs divided by their root mean square",
    equation="λ₁(∇² mean ℓ(f/s, y)), s = rms of f over the training outputs, held constant",
    unit="loss per parameter²",
    invariant="no",
    source="arXiv:2302.07011, section 3 (there the norm of each example's centred logits)",
    cost="10 to 30 Hessian products",
)
def logit_normalized_sharpness(point: Point) -> float:
    """λ₁ at one scale of the logits; f → cf leaves it where weights are rescaled with it."""
    return _largest(_at_logit_scale(point), point)


@measure(
    meaning="Adaptive sharpness of the loss of the outputs divided by their root mean square",
    equation="λ₁(|W| ∇² mean ℓ(f/s, y) |W|)",
    unit="loss",
    invariant="yes",
    source="arXiv:2302.07011, section 3",
    cost="10 to 30 Hessian products",
)
def logit_normalized_adaptive_sharpness(point: Point) -> float:
    """Both normalizations together."""
    return _largest(_adaptive(_at_logit_scale(point), point), point)


@measure(
    meaning="Trace of the Hessian of the loss of the outputs divided by their root mean square",
    equation="tr ∇² mean ℓ(f/s, y)",
    unit="loss per parameter²",
    invariant="no",
    source="arXiv:2302.07011, section 3",
    cost="30 Hessian products",
)
def logit_normalized_trace(point: Point) -> float:
    """The estimate from `SAMPLES` products."""
    return hutchinson(_at_logit_scale(point), SAMPLES, seed=point.seed).value


@measure(
    meaning="Sharpness in units of each parameter's share of the learning rate",
    equation="λ₁(F^½ ∇²L F^½), F = diag(lr of the parameter / largest lr)",
    unit="loss per parameter²",
    invariant="no",
    source="arXiv:2402.17457 (μP); equal to λ₁ where all rates are equal",
    cost="10 to 30 Hessian products",
)
def lr_preconditioned_sharpness(point: Point) -> float:
    """What an edge of stability is about where layers have learning rates of their own."""
    factors = lr_factors(point)
    diagonal = torch.cat(
        [
            torch.full((p.numel(),), 1 / f, dtype=torch.float64, device=p.device)
            for p, f in zip(point.parameters, factors, strict=True)
        ]
    )
    return _largest(Preconditioned(point.hessian, diagonal), point)


def lr_factors(point: Point) -> list[float]:
    """Learning rate of each trained parameter over the largest one.

    Raises:
        MeasurementError: If neither an optimizer nor the model says them.
    """
    if point.optimizer is not None:
        rates = {
            id(p): float(group["lr"])
            for group in point.optimizer.param_groups
            if "lr" in group
            for p in group["params"]
        }
        if all(id(p) in rates for p in point.parameters):
            found = [rates[id(p)] for p in point.parameters]
        else:
            raise MeasurementError("the optimizer has no lr of every parameter")
    else:
        found = _factors_of(point.model)
    largest = max(found)
    if not largest > 0 or not all(rate > 0 for rate in found):
        raise MeasurementError("a learning rate is 0: the edge is that of the other parameters")
    return [rate / largest for rate in found]


def _factors_of(model: nn.Module) -> list[float]:
    factors = getattr(model, "lr_factors", None)
    names = named_trainable(model)
    return [1.0 if factors is None else float(factors[name]) for name in names]


def _largest(operator: Operator, point: Point) -> float:
    value = float(top_eigenpairs(operator, 1, accuracy=ACCURACY, seed=point.seed).values[0])
    if not math.isfinite(value):
        raise MeasurementError("the largest eigenvalue is not finite")
    return value
