"""Progressive sharpening and self-stabilization."""

from dataclasses import dataclass

from optbench import metrics
from optbench.boundary.kinds import Count
from optbench.dynamics.progressive_sharpening import sharpening
from optbench.probes import State, Value


@dataclass
class Sharpening:
    """`sharpening/rate` α = −∇L·∇λ₁ and `sharpening/stabilization` ‖∇λ₁‖², ∇λ₁ = ∇(uᵀHu).

    u is the eigenvector that the sharpness probe found at the same step; absent where it found
    none. α is the change of λ₁ per unit of gradient-flow time. Layer norm and batch norm are
    computed from primitive operations, since torch's third derivatives of them are wrong. Cost: 6
    to 10 gradients, and as much memory.

    Args:
        every: Cadence: steps between measurements, `epoch`, `log`, `never`, or the name of a probe
            whose cadence is taken.
        examples: Number of training examples; must be the sharpness probe's.

    References:
        Damian, Nichani and Lee (2023), arXiv:2209.15594.
    """

    every: int | str = "sharpness"
    examples: Count | None = None

    def __call__(self, state: State) -> dict[str, Value]:
        """Differentiate the curvature along the top eigenvector."""
        known = state.shared.top_vector
        if known is None:
            state.say(
                "sharpening/rate is absent where sharpness has no new eigenvector: none was due, "
                "or one was held"
            )
            return {}
        if known[1] != self.examples:
            state.say(
                f"sharpening/rate is absent: sharpness is over {known[1]} examples, this over "
                f"{self.examples}"
            )
            return {}
        with state.shared.hessian(state, self.examples).loss.differentiable() as (loss, leaves):
            measured = sharpening(loss, leaves, known[0])
        return {
            metrics.SHARPENING_RATE: measured.rate,
            metrics.STABILIZATION: measured.stabilization,
        }
