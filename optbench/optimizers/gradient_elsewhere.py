"""The step that takes its gradient a radius away from the weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from optbench.boundary.kinds import NotNegative
from optbench.errors import UserError
from optbench.optimizers.wrapper import Closure, Factory, Wrapper, copy_all


class GradientElsewhere(Wrapper, ABC):
    """The base's step with the gradient at w + a, taken from w; each optimizer says its a.

    The closure is called twice an update, the second time at w + a; on one batch both times.
    Learning-rate schedules see the base's groups.

    Args:
        params: Parameters of one model.
        base: Makes the optimizer that takes the step.
        rho: Radius ρ of a, not negative.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], base: Factory, rho: NotNegative = 0.05
    ) -> None:
        if not rho >= 0:
            raise UserError(f"optimizer.rho must not be negative, got {rho}")
        super().__init__(params, base)
        self.rho = float(rho)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Move away, take the gradient there, come back, let the base step; return the loss at w.

        Raises:
            UserError: Without a closure.
        """
        if closure is None:
            raise UserError(
                f"{type(self).__name__} takes two gradients a step, so it needs a closure: "
                "optimizer.step(closure)"
            )
        with torch.enable_grad():
            loss = closure()
        held = self.held()
        before = [p.clone() for p in held]
        for p, away in zip(held, self.ascent(held), strict=True):
            p.add_(away)
        with torch.enable_grad():
            closure()
        copy_all(held, before)
        self.base.step()
        return loss

    @abstractmethod
    def ascent(self, held: Sequence[Tensor]) -> list[Tensor]:
        """The displacement a, a tensor per parameter, from what `closure` left in the gradients."""
