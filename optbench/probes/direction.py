"""Curvature along the actual update, and a quadratic prediction of its change of the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from optbench import metrics
from optbench.boundary.kinds import Count
from optbench.curvature.selection import trainable
from optbench.probes import State, Value
from optbench.probes.after_update import AfterUpdate, flat, weights_at


@dataclass
class Direction(AfterUpdate):
    """Curvature along the update d from w, which tests the edge without a model of the optimizer.

    - `update/sharpness` = dᵀHd/‖d‖²;
    - `update/gradient_sharpness` = gᵀHg/‖g‖²;
    - `update/slope` = g·d;
    - `update/loss_change` = L(w + d) − L(w);
    - `update/predicted_change` = g·d + ½dᵀHd.

    g and H are at w, over the same examples, in train mode. Recorded at the step that d led to.
    Changes smaller than the rounding of the loss (1e-7 of it in float32) cannot be compared. Cost:
    one forward pass, one gradient, two Hessian-vector products.

    Args:
        every: Steps between the updates that are measured, or `never`.
        examples: Number of training examples, always the first ones; None for all.

    References:
        Pan and Li (2023), arXiv:2306.00204, for the directional sharpness.
    """

    products: ClassVar[float] = 4.0
    examples: Count | None = None

    def measure(self, state: State, before: Sequence[Tensor]) -> dict[str, Value]:
        """Compare the change of the loss with its second-order prediction."""
        parameters = trainable(state.model)
        hessian = state.shared.hessian(state, self.examples)
        update = (flat(parameters) - flat(before)).to(hessian.dtype)
        after = hessian.loss.value()
        with weights_at(parameters, before):
            loss, gradient = hessian.loss.value_and_gradient()
            H_update, H_gradient = hessian @ update, hessian @ gradient
        curvature = float(update @ H_update)  # dᵀHd
        slope = float(gradient @ update)
        values: dict[str, Value] = {
            metrics.UPDATE_SLOPE: slope,
            metrics.LOSS_CHANGE: after - loss,
            metrics.PREDICTED_CHANGE: slope + curvature / 2,
        }
        if squared := float(update @ update):
            values[metrics.UPDATE_SHARPNESS] = curvature / squared
        if squared := float(gradient @ gradient):
            values[metrics.GRADIENT_SHARPNESS] = float(gradient @ H_gradient) / squared
        return values
