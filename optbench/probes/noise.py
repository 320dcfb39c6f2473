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

    Σ is the covariance of per-example gradients over the N training examples, and g their mean.
    With batches of b examples drawn without replacement,

        tr Σ = b(N−1)/(N−b) · E‖g_B − g‖².

    `noise/scale_low` and `noise/scale_high` are the ends of the 95 % t interval. Gradients are
    taken in train mode, without augmentation. With batch norm the result depends on b, since the
    statistics do. Cost: one full gradient, and one gradient per batch.

    Args:
        every: Cadence: steps between measurements, `epoch`, `log`, `never`, or the name of a probe
            whose cadence is taken.
        size: Examples per batch, b, below N.
        batches: Number of batches, at least 2.

    References:
        McCandlish et al. (2018), arXiv:1812.06162.
    """

    every: int | str = "log"
    size: Count = 16
    batches: Several = 32

    def __post_init__(self) -> None:
        check_fields(self, "noise.")

    def __call__(self, state: State) -> dict[str, Value]:
        """Draw batches and compare their gradients with the full gradient."""
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
        # E‖g_B − g‖²/‖g‖², with its interval, is the interaction E[xᵀAx]/‖g‖² for the deviations
        # x = g_B − g and A the identity.
        whole = state.shared.hessian(state, None)
        deviations = (g - gradient for g, _ in draw(state, whole, self.size, self.batches, "noise"))
        ratio = interaction(deviations, lambda v: v, gradient, self.batches)
        per_example = self.size * (N - 1) / (N - self.size)
        return {
            metrics.NOISE_SCALE: per_example * ratio.value,
            metrics.NOISE_SCALE + metrics.LOW: per_example * ratio.low,
            metrics.NOISE_SCALE + metrics.HIGH: per_example * ratio.high,
        }
