"""Curvature along the actual update, and whether a quadratic explains what it did to the loss."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from optbench import metrics
from optbench.boundary.kinds import Count
from optbench.curvature.selection import trainable
from optbench.probes import State, Value
from optbench.probes.after_update import AfterUpdate, flat, weights_at


@dataclass
class Direction(AfterUpdate):
    """The update d from w, at the step that it led to: a check of the edge without a model of the optimizer.

    `update/sharpness` = dᵀHd/‖d‖²; `update/gradient_sharpness` = gᵀHg/‖g‖²; `update/loss_change` =
    L(w + d) − L(w); `update/predicted_change` = g·d + ½dᵀHd. All with g, H at w over the same
    examples, in train mode; where the loss changes by less than its own rounding (1e-7 of it in
    float32), so does the comparison. Cost: one forward pass, one gradient, two Hessian-vector
    products.

    Args:
        every: See `AfterUpdate`.
        interval: Steps between the updates that are measured.
        examples: How many training examples, always the same, the first ones; None for all.

    References:
        Pan and Li (2023), arXiv:2306.00204, for the directional sharpness.
    """

    examples: Count | None = None

    def measure(self, state: State, before: Sequence[Tensor]) -> dict[str, Value]:
        """Compare the change of the loss with its second-order prediction."""
        parameters = trainable(state.model)
        hessian = state.shared.hessian(state, self.examples)
        update = (flat(parameters) - flat(before)).to(hessian.dtype)
        after = hessian.loss.value()
        with weights_at(parameters, before):
            loss, gradient = hessian.loss.value_and_gradient()
            curved, curved_gradient = hessian @ update, hessian @ gradient
        bend = float(update @ curved)
        found: dict[str, Value] = {
            metrics.LOSS_CHANGE: after - loss,
            metrics.PREDICTED_CHANGE: float(gradient @ update) + bend / 2,
        }
        if squared := float(update @ update):
            found[metrics.UPDATE_SHARPNESS] = bend / squared
        if squared := float(gradient @ gradient):
            found[metrics.GRADIENT_SHARPNESS] = float(gradient @ curved_gradient) / squared
        return found
