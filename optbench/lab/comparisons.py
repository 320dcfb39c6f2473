"""What two points, or a point and a step, have to do with each other."""

from dataclasses import dataclass

from torch import Tensor

from optbench.curvature.errors import MeasurementError
from optbench.lab import per_example
from optbench.lab.point import Point


def function_displacement(point: Point, other: Point) -> float:
    """Root mean square of Δ softmax f over held-out inputs, whose labels are not used.

        √(E_x ‖softmax f(x) − softmax f'(x)‖²/C)

    It is what interventions are matched in: how far the function has moved, not the weights.
    """
    inputs = point.held_out().inputs
    shares = []
    for each in (point, other):
        with each.reading() as model:
            shares.append(per_example.outputs(model, inputs).double().softmax(-1))
    return float((shares[0] - shares[1]).square().mean().sqrt())


@dataclass(frozen=True)
class AlongStep:
    """A step d from a point, in the second-order picture ΔL ≈ g·d + ½dᵀHd.

    Attributes:
        alignment: −gᵀd/(‖g‖‖d‖).
        curvature: dᵀHd/‖d‖², the step's normalized directional sharpness.
        best_gain: (gᵀd)²/(2 dᵀHd): the gain of the step of best length along d; infinite where
            the curvature is not positive.
    """

    alignment: float
    curvature: float
    best_gain: float


def along(point: Point, step: Tensor) -> AlongStep:
    """Measure a step d, (P,), from a point.

    log best_gain = 2 log cos − log curvature + log ‖g‖² − log 2, an identity.

    References:
        arXiv:2606.04662.

    Raises:
        MeasurementError: If the step or the gradient is 0.
    """
    gradient = point.value_and_gradient[1].double()
    d = step.to(point.hessian.device).double()
    if not (float(d.norm()) > 0 and float(gradient.norm()) > 0):
        raise MeasurementError("a step of 0, or a gradient of 0, has no direction")
    image = (point.hessian @ d.to(point.hessian.dtype)).double()
    slope, bend = float(gradient @ d), float(d @ image)
    return AlongStep(
        alignment=-slope / float(gradient.norm() * d.norm()),
        curvature=bend / float(d @ d),
        best_gain=slope**2 / (2 * bend) if bend > 0 else float("inf"),
    )
