"""Steps of one size for every weight, in the direction of a sign: Signum and Lion."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench.boundary.kinds import BelowOne, NotNegative
from optbench.errors import UserError
from optbench.optimizers import evaluate


class Signum(Optimizer):
    """w ← (1 − ηλ)w − η sign(m), m ← βm + (1 − β)g; signSGD for β = 0.

    Args:
        params: Parameters.
        lr: Learning rate η, the size of a step.
        momentum: Decay β of the mean gradient m, in [0, 1).
        weight_decay: Weight decay λ, decoupled.

    References:
        Bernstein et al. (2018), arXiv:1802.04434.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: BelowOne = 0.9,
        weight_decay: NotNegative = 0.0,
    ) -> None:
        _check(momentum=momentum)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step, after one evaluation of the closure if there is one."""
        loss = evaluate(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                direction = p.grad
                if group["momentum"]:
                    direction = _kept(self.state[p], "momentum_buffer", p)
                    direction.lerp_(p.grad, 1 - group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                    direction.sign(), alpha=-group["lr"]
                )
        return loss


class Lion(Optimizer):
    """w ← (1 − ηλ)w − η sign(β₁m + (1 − β₁)g), then m ← β₂m + (1 − β₂)g.

    Args:
        params: Parameters.
        lr: Learning rate η, the size of a step.
        betas: Share β₁ of m in a step, and decay β₂ of m; both in [0, 1).
        weight_decay: Weight decay λ, decoupled.

    References:
        Chen et al. (2023), arXiv:2302.06675.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.99),
        weight_decay: NotNegative = 0.0,
    ) -> None:
        _check(beta1=betas[0], beta2=betas[1])
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step, after one evaluation of the closure if there is one."""
        loss = evaluate(closure)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = _kept(self.state[p], "exp_avg", p)
                direction = p.grad.lerp(m, beta1).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                m.lerp_(p.grad, 1 - beta2)
        return loss


def _kept(state: dict[str, Any], name: str, like: Tensor) -> Tensor:
    """What a parameter's state holds by this name; zeros at first, and allocated only then."""
    if name not in state:
        state[name] = torch.zeros_like(like)
    kept: Tensor = state[name]
    return kept


def _check(**averages: float) -> None:
    for name, value in averages.items():
        if not 0 <= value < 1:
            raise UserError(f"optimizer {name} must be in [0, 1), got {value}")
