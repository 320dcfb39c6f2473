"""Sharpness-aware minimization over any optimizer."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from optbench.boundary.kinds import NotNegative
from optbench.errors import UserError
from optbench.optimizers.gradient_elsewhere import GradientElsewhere
from optbench.optimizers.wrapper import Factory


class SAM(GradientElsewhere):
    """The base's step with the gradient at w + ρ g/‖g‖, g = ∇L(w), taken from w.

    ‖g‖ is over all parameters together.

    Args:
        params: Parameters of one model.
        base: Makes the optimizer that takes the step.
        rho: Radius ρ of the ascent, not negative.

    References:
        Foret et al. (2021), arXiv:2010.01412, without its per-device batches.
    """

    def ascent(self, held: Sequence[Tensor]) -> list[Tensor]:
        """ρ g/‖g‖, a tensor per parameter; 0 for g = 0."""
        scale = self._over_norm([p.grad for p in held if p.grad is not None])
        return [p.grad * scale for p in held if p.grad is not None]

    def _over_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """ρ/‖g‖, and 0 for g = 0."""
        if not gradients:
            return torch.zeros(())
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(g) for g in gradients])
        )
        return torch.where(norm > 0, self.rho / norm, torch.zeros_like(norm))


class ASAM(SAM):
    """SAM with a radius in proportion to each weight: w + ρ T²g/‖Tg‖, T = |w| + ξ.

    Invariant under the rescaling of adjacent layers of a ReLU network, up to ξ.

    Args:
        params: Parameters of one model.
        base: Makes the optimizer that takes the step.
        rho: Radius ρ, not negative.
        xi: Offset ξ, which keeps a weight of 0 from standing still in the ascent.

    References:
        Kwon et al. (2021), arXiv:2102.11600, equation (6) with element-wise normalization, biases
        too.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        base: Factory,
        rho: NotNegative = 0.5,
        xi: NotNegative = 0.01,
    ) -> None:
        if not xi >= 0:
            raise UserError(f"optimizer.xi must not be negative, got {xi}")
        super().__init__(params, base, rho)
        self.xi = float(xi)

    def ascent(self, held: Sequence[Tensor]) -> list[Tensor]:
        """ρ T²g/‖Tg‖, a tensor per parameter; 0 for g = 0."""
        sizes = [p.abs() + self.xi for p in held]
        scaled = [t * p.grad for t, p in zip(sizes, held, strict=True) if p.grad is not None]
        scale = self._over_norm(scaled)
        return [t * g * scale for t, g in zip(sizes, scaled, strict=True)]
