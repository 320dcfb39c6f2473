"""Critical sharpness: the multiple of the actual update at which it starts to raise the loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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

    `update/critical_sharpness` = 2/(κη), where all groups have one learning rate η. For gradient
    descent on a quadratic it is gᵀHg/‖g‖². At κ = 1 the update itself just fails to lower the loss.
    Both are absent where no multiple raised the loss; κ is 0 where every one does. Recorded at the
    step that d led to. L is the training loss, in train mode. Cost: 5 to 8 forward passes.

    Args:
        every: Steps between the updates that are measured, or `never`.
        examples: Number of training examples of L, always the first ones; None for all.

    References:
        Kalra et al. (2026), arXiv:2601.16979.
    """

    products: ClassVar[float] = 2.0
    examples: Count | None = None

    def measure(self, state: State, before: Sequence[Tensor]) -> dict[str, Value]:
        """Search for κ along the update."""
        parameters = trainable(state.model)
        after = [p.detach().clone() for p in parameters]
        hessian = state.shared.hessian(state, self.examples)

        def loss_along(s: float) -> float:
            with weights_at(
                parameters, [torch.lerp(w, v, s) for w, v in zip(before, after, strict=True)]
            ):
                return hessian.loss.value()

        critical = critical_step(loss_along)
        if math.isinf(critical.step):
            return {}
        result: dict[str, Value] = {
            metrics.CRITICAL_STEP: critical.step,
            metrics.CRITICAL_FORWARDS: critical.forwards,
        }
        rates = {float(group.get("lr", math.nan)) for group in state.optimizer.param_groups}
        if len(rates) == 1 and critical.step > 0 and (lr := rates.pop()) > 0:
            result[metrics.CRITICAL_SHARPNESS] = critical.sharpness(lr)
        return result
