"""The control of SAM: the gradient is taken as far away, in a direction that knows no gradient."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from optbench.boundary.kinds import NotNegative
from optbench.errors import UserError
from optbench.optimizers.wrapper import Closure, Factory, Wrapper, copy_all


class RandomAscent(Wrapper):
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
        if not rho >= 0:
            raise UserError(f"optimizer.rho must not be negative, got {rho}")
        super().__init__(params, base)
        self.rho = float(rho)
        first = self.param_groups[0]["params"][0]
        # how many directions have been drawn: a run that is resumed draws the next
        self.state[first] = {"drawn": torch.zeros((), dtype=first.dtype, device=first.device)}

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Move away, take the gradient there, come back, let the base step; return the loss at w.

        Raises:
            UserError: Without a closure.
        """
        if closure is None:
            raise UserError(
                "RandomAscent takes its gradient elsewhere, so it needs a closure: "
                "optimizer.step(closure)"
            )
        with torch.enable_grad():
            loss = closure()
        held = self.held()
        before = [p.clone() for p in held]
        for p, away in zip(held, self._drawn(held), strict=True):
            p.add_(away)
        with torch.enable_grad():
            closure()
        copy_all(held, before)
        self.base.step()
        return loss

    def _drawn(self, held: list[Tensor]) -> list[Tensor]:
        """ρ z/‖z‖, a tensor per parameter."""
        (count,) = (own["drawn"] for own in self.state.values() if "drawn" in own)
        rng = torch.Generator().manual_seed(int(count))
        count += 1
        z = [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in held]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x) for x in z]))
        return [(self.rho / norm * x).to(p) for x, p in zip(z, held, strict=True)]
