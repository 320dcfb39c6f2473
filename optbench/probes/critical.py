"""Critical sharpness: how long the actual update could have been before it raised the loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench import metrics
from optbench.boundary.kinds import Count
from optbench.curvature.selection import trainable
from optbench.dynamics.critical_step import critical_step
from optbench.probes import State, Value
from optbench.probes.after_update import AfterUpdate, weights_at


@dataclass
class Critical(AfterUpdate):
    """`update/critical_step` κ: the least multiple of the update d with L(w + κd) > L(w).

    `update/critical_sharpness` = 2/(κη), where all groups have one learning rate η: gᵀHg/‖g‖² for
    gradient descent on a quadratic. κ = 1 means that the step itself was on the verge. Both are
    absent where the loss was never raised, 0 where every step along it raises it. At the step that
    d led to; the training loss, in train mode. Cost: 5 to 8 forward passes.

    Args:
        every: See `AfterUpdate`.
        interval: Steps between the updates that are measured.
        examples: How many training examples, always the same, the first ones; None for all.

    References:
        Kalra et al. (2026), arXiv:2601.16979.
    """

    examples: Count | None = None

    def measure(self, state: State, before: Sequence[Tensor]) -> dict[str, Value]:
        """Search along the update."""
        parameters = trainable(state.model)
        after = [p.detach().clone() for p in parameters]
        hessian = state.shared.hessian(state, self.examples)

        def loss_along(s: float) -> float:
            with weights_at(
                parameters, [torch.lerp(w, v, s) for w, v in zip(before, after, strict=True)]
            ):
                return hessian.loss.value()

        found = critical_step(loss_along)
        if math.isinf(found.step):
            return {}
        result: dict[str, Value] = {
            metrics.CRITICAL_STEP: found.step,
            metrics.CRITICAL_FORWARDS: found.forwards,
        }
        rates = {float(group.get("lr", math.nan)) for group in state.optimizer.param_groups}
        if len(rates) == 1 and found.step > 0 and (lr := rates.pop()) > 0:
            result[metrics.CRITICAL_SHARPNESS] = found.sharpness(lr)
        return result
