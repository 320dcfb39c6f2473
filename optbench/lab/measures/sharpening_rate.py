"""How fast sharpness rises as the loss falls."""

import copy
import math

import torch
from torch import Tensor

from optbench.curvature import Loss
from optbench.curvature.errors import MeasurementError
from optbench.curvature.selection import trainable
from optbench.lab.measures import measure
from optbench.lab.point import Point

DISPLACEMENT = 1e-4
"""Length of the difference over ‖w‖, in float64: the error is of its square."""


@measure(
    meaning="Rise of log sharpness as log loss falls, along gradient flow",
    equation="d log λ₁ / d log(1/L) = −(∇L·∇λ₁/λ₁) · L/‖∇L‖²",
    unit="1",
    invariant="no",
    source="progressive sharpening, arXiv:2103.00065, section 3.1; 2402.17457",
    cost="the leading eigenpair, and 2 Hessian products in float64",
)
def progressive_sharpening(point: Point) -> float:
    """The elasticity: 1 if sharpness doubles while the loss halves. Time does not come into it.

    ∇λ₁·d = d/dε uᵀH(w + εd)u, u held (Hellmann–Feynman), by a central difference in float64: the
    third derivatives of `optbench.dynamics.progressive_sharpening` are wrong through torch's norms.

    Raises:
        MeasurementError: If loss, gradient or λ₁ is not positive.
    """
    value, gradient = point.value_and_gradient
    g, u = gradient.double(), point.top.vectors[:, 0].double()
    sharpness = float(point.top.values[0])
    squared = float(g @ g)
    if not (value > 0 and squared > 0 and sharpness > 0):
        raise MeasurementError("loss, gradient and sharpness must be positive")
    step = DISPLACEMENT * float(point.weights.double().norm()) / math.sqrt(squared)
    ahead, behind = (_quadratic(point, sign * step * g, u) for sign in (1, -1))
    rise = (ahead - behind) / (2 * step)
    return -rise / sharpness * value / squared


def _quadratic(point: Point, shift: Tensor, u: Tensor) -> float:
    """uᵀH(w + shift)u of a float64 copy."""
    model = copy.deepcopy(point.model).double()
    with torch.no_grad():
        start = 0
        for parameter in trainable(model):
            end = start + parameter.numel()
            parameter.add_(shift[start:end].view_as(parameter))
            start = end
    data = tuple(
        x.double() if x.is_floating_point() else x
        for x in (point.train.inputs, point.train.targets)
    )
    loss = Loss(model, point.task.loss, (data[0], data[1]), weight=point.task.weight)
    return float(u @ (loss.hessian() @ u))
