"""The gradient noise scale."""

import math
from dataclasses import dataclass

from optbench import metrics
from optbench.boundary.kinds import Count, Several
from optbench.boundary.signature import check_fields
from optbench.dynamics.minibatch_curvature import interaction
from optbench.probes import State, Value
from optbench.probes.batch_sharpness import draw


@dataclass
class Noise:
    """`noise/scale` = tr Σ/‖g‖², in examples: the batch size at which noise and gradient are equal.

    Σ is the covariance of per-example gradients over the N training examples, g their mean. From
    `batches` batches of b examples drawn without replacement, tr Σ = b(N−1)/(N−b) · E‖g_B − g‖²,
    with a 95 % t interval, `noise/scale_low` to `noise/scale_high`. In train mode, without
    augmentation; with batch norm this is the noise of batches of b, which is what `size` then
    changes. Cost: one full gradient, one of a batch each.

    Args:
        every: Cadence.
        size: Examples a batch, b, below N.
        batches: How many, at least 2.

    References:
        McCandlish et al. (2018), arXiv:1812.06162.
    """

    every: int | str = "log"
    size: Count = 16
    batches: Several = 32

    def __post_init__(self) -> None:
        check_fields(self, "noise.")

    def __call__(self, state: State) -> dict[str, Value]:
        """Draw batches and compare their gradients with the whole one."""
        N = len(state.task.train)
        if self.size >= N:
            state.say(
                f"noise/scale is absent: probes.noise.size={self.size} is not below the {N} "
                "training examples"
            )
            return {}
        gradient = state.shared.loss_and_gradient(state, None)[1]
        if not math.isfinite(float(gradient @ gradient)) or not bool(gradient.any()):
            return {}
        # The interaction E[xᵀAx]/‖g‖² with A the identity and x the deviations is the ratio, with
        # its interval.
        whole = state.shared.hessian(state, None)
        deviations = (g - gradient for g, _ in draw(state, whole, self.size, self.batches, "noise"))
        found = interaction(deviations, lambda v: v, gradient, self.batches)
        per_example = self.size * (N - 1) / (N - self.size)
        return {
            metrics.NOISE_SCALE: per_example * found.value,
            metrics.NOISE_SCALE + metrics.LOW: per_example * found.low,
            metrics.NOISE_SCALE + metrics.HIGH: per_example * found.high,
        }
