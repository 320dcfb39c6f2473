"""The control of SAM: the gradient is taken as far away, in a direction that knows no gradient."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from optbench.boundary.kinds import NotNegative
from optbench.optimizers.gradient_elsewhere import GradientElsewhere
from optbench.optimizers.wrapper import Factory


class RandomAscent(GradientElsewhere):
    """The base's step with the gradient at w + ρ z/‖z‖, z normal and drawn anew at each update.

    ‖z‖ is over all parameters together, as ‖g‖ is in SAM. A control, and no optimizer to prefer:
    what it does as SAM does is not owed to the direction of the gradient.

    Args:
        params: Parameters of one model.
        base: Makes the optimizer that takes the step.
        rho: Radius ρ, not negative.

    References:
        Foret et al. (2021), arXiv:2010.01412, for SAM.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], base: Factory, rho: NotNegative = 0.05
    ) -> None:
        super().__init__(params, base, rho)
        first = self.param_groups[0]["params"][0]
        # how many directions have been drawn: a run that is resumed draws the next
        self.state[first] = {"drawn": torch.zeros((), dtype=first.dtype, device=first.device)}

    def ascent(self, held: Sequence[Tensor]) -> list[Tensor]:
        """ρ z/‖z‖, a tensor per parameter."""
        (count,) = (own["drawn"] for own in self.state.values() if "drawn" in own)
        rng = torch.Generator().manual_seed(int(count))
        count += 1
        z = [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in held]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x) for x in z]))
        return [(self.rho / norm * x).to(p) for x, p in zip(z, held, strict=True)]
