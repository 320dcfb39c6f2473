"""Progressive sharpening and self-stabilization."""

from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.dynamics.sharpening import sharpening
from optbench.probes import State, Value


@dataclass
class Sharpening:
    """`sharpening/rate` α = −∇L·∇λ₁ and `sharpening/stabilization` ‖∇λ₁‖², ∇λ₁ = ∇(uᵀHu).

    Where u is the eigenvector that the sharpness probe found at the same step; absent where it measured none.
    α is the change of λ₁ per unit of gradient-flow time. Third derivatives: models with LayerNorm or train-mode
    batch norm are left out, since torch gets theirs wrong. Cost: 6 to 10 gradients, and as much memory.

    Args:
        every: Cadence.
        examples: How many training examples; as the sharpness probe's.

    References:
        Damian, Nichani and Lee (2023), arXiv:2209.15594.
    """

    every: int | str = "sharpness"
    examples: int | None = None

    def __call__(self, state: State) -> dict[str, Value]:
        """Differentiate the curvature along the top eigenvector."""
        known = state.shared.top_vector
        if known is None:
            state.say("sharpening/rate is absent where sharpness has no new eigenvector: none was due, or one was held")
            return {}
        if known[1] != self.examples:
            state.say(f"sharpening/rate is absent: sharpness is over {known[1]} examples, this over {self.examples}")
            return {}
        wrong = (torch.nn.LayerNorm, torch.nn.modules.batchnorm._BatchNorm)
        if any(isinstance(module, wrong) for module in state.model.modules()):
            state.say("sharpening/rate is absent: torch's third derivatives of LayerNorm and batch norm are wrong")
            return {}
        hessian = state.shared.hessian(state, self.examples)
        leaves = hessian.objective.leaves()

        def loss() -> Tensor:
            pieces = [(len(x), hessian.objective.value(leaves, (x, y))) for x, y in hessian.chunks]
            return torch.stack([n * value for n, value in pieces]).sum() / sum(n for n, _ in pieces)

        with hessian.chunks.kept_rng(), hessian.objective.measured():
            found = sharpening(loss, leaves, known[0])
        return {"sharpening/rate": found.rate, "sharpening/stabilization": found.stabilization}
