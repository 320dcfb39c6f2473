"""Grokfast: any optimizer on gradients whose slow part is amplified."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from optbench.boundary.kinds import BelowOne, NotNegative
from optbench.errors import UserError
from optbench.optimizers import evaluate
from optbench.optimizers.wrapper import Closure, Factory, Wrapper


class GrokFast(Wrapper):
    """The base's step with g + λm, m ← αm + (1 − α)g, m = g at first (Grokfast-EMA).

    Args:
        params: Parameters of one model.
        base: Makes the optimizer that takes the step.
        alpha: Decay α of the mean gradient m, in [0, 1).
        lamb: Weight λ of m, not negative.

    References:
        Lee et al. (2024), arXiv:2405.20233, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        base: Factory,
        alpha: BelowOne = 0.98,
        lamb: NotNegative = 2.0,
    ) -> None:
        if not 0 <= alpha < 1:
            raise UserError(f"optimizer.alpha must be in [0, 1), got {alpha}")
        if not lamb >= 0:
            raise UserError(f"optimizer.lamb must not be negative, got {lamb}")
        super().__init__(params, base)
        self.alpha, self.lamb = float(alpha), float(lamb)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Amplify what every evaluation of the closure leaves in `.grad`, and step the base."""
        if closure is None:
            self._amplify()
            self.base.step()
            return None

        def amplified() -> Tensor:
            loss = evaluate(closure)
            assert loss is not None
            self._amplify()
            return loss

        return self.base.step(amplified)  # type: ignore[arg-type, return-value]

    @torch.no_grad()
    def _amplify(self) -> None:
        for p in self.held():
            assert p.grad is not None
            state = self.state[p]
            if "slow" not in state:
                state["slow"] = p.grad.clone()
            slow: Tensor = state["slow"]
            slow.lerp_(p.grad, 1 - self.alpha)
            p.grad.add_(slow, alpha=self.lamb)
