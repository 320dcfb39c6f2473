"""Lookahead: k steps of any optimizer forward, one step back."""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from optbench.boundary.kinds import Count
from optbench.errors import UserError
from optbench.optimizers.wrapper import Closure, Factory, Wrapper


class Lookahead(Wrapper):
    """After every k-th step of the base: φ ← φ + α(w − φ), then w ← φ; φ starts at w.

    Between these steps the weights are the fast ones, w, which is where gradients and measurements
    are.

    Args:
        params: Parameters of one model.
        base: Makes the optimizer of the fast weights.
        k: Steps of the base between two of the slow weights.
        alpha: Share α of the way that the slow weights go, in (0, 1].

    References:
        Zhang et al. (2019), arXiv:1907.08610, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        base: Factory,
        k: Count = 5,
        alpha: Annotated[float, Field(gt=0, le=1)] = 0.5,
    ) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UserError(f"optimizer.k must be a positive whole number, got {k}")
        if not 0 < alpha <= 1:
            raise UserError(f"optimizer.alpha must be above 0 and at most 1, got {alpha}")
        super().__init__(params, base)
        self.k, self.alpha = k, float(alpha)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {
                    "slow": p.detach().clone(),
                    "steps": torch.zeros((), dtype=p.dtype, device=p.device),
                }

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Step the base; at every k-th step pull the weights back."""
        loss: Tensor | None = self.base.step(closure)  # type: ignore[arg-type]
        for p, own in self.state.items():
            own["steps"] = (own["steps"] + 1) % self.k
            if own["steps"] == 0:
                p.copy_(own["slow"].lerp_(p, self.alpha))
        return loss
