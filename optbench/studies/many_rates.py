"""One optimizer at many learning rates at once, from the same weights on the same batches.

The update of an elementwise optimizer without weight decay is η·u(g₁, …, g_t): u does not know η.
So one optimizer of rate 1 steps a stack of zeros, with the stacked gradients, and each copy moves
by its own η times what came out. This is what each copy would do alone, but for rounding.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import SGD, Adam, Optimizer

from optbench.errors import UserError, nearest
from optbench.optimizers.sign import Signum
from optbench.task import Loss

Rule = Callable[[list[nn.Parameter]], Optimizer]

RULES: Mapping[str, Rule] = {
    "sgd": lambda stack: SGD(stack, lr=1.0),
    "momentum": lambda stack: SGD(stack, lr=1.0, momentum=0.9),
    "adam": lambda stack: Adam(stack, lr=1.0, foreach=True),
    "adam_without_momentum": lambda stack: Adam(stack, lr=1.0, betas=(0.0, 0.999), foreach=True),
    "signum": lambda stack: Signum(stack, lr=1.0, momentum=0.9),
    "sign": lambda stack: Signum(stack, lr=1.0, momentum=0.0),
}
"""Elementwise optimizers whose step is proportional to the rate."""


class ManyRates:
    """Copies of a model, R of them, each trained at its own learning rate.

    Args:
        model: Model with the weights that all copies begin with; without buffers.
        rule: Name of an entry of `RULES`.
        rates: Learning rates (R,).
        loss: (outputs, targets) → mean over the examples.

    Raises:
        UserError: If there is no such rule.
    """

    def __init__(self, model: nn.Module, rule: str, rates: Sequence[float], loss: Loss) -> None:
        if rule not in RULES:
            known = ", ".join(RULES)
            raise UserError(f"there is no rule {rule}.{nearest(rule, RULES)} Known: {known}")
        self.model, self.loss = model, loss
        self.rates = torch.tensor(rates, dtype=next(model.parameters()).dtype)
        self.weights = {
            name: p.detach().expand(len(rates), *p.shape).clone().requires_grad_()
            for name, p in model.named_parameters()
        }
        self._moved = [nn.Parameter(torch.zeros_like(w)) for w in self.weights.values()]
        self._optimizer = RULES[rule](self._moved)

    def outputs(self, inputs: Tensor) -> Tensor:
        """Outputs (R, N, …) of all copies at the same inputs (N, …)."""

        def one(weights: dict[str, Tensor]) -> Tensor:
            out: Tensor = functional_call(self.model, weights, (inputs,))
            return out

        return vmap(one)(self.weights)

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Take one step of each copy on the loss of a batch; return the outputs before it."""
        outputs = self.outputs(inputs)
        losses = vmap(self.loss, in_dims=(0, None))(outputs, targets)
        weights = list(self.weights.values())
        for moved, gradient in zip(
            self._moved, torch.autograd.grad(losses.sum(), weights), strict=True
        ):
            moved.grad = gradient
        self._optimizer.step()
        with torch.no_grad():
            for weight, moved in zip(weights, self._moved, strict=True):
                weight += self.rates.reshape(-1, *[1] * (moved.ndim - 1)) * moved
                moved.zero_()
        return outputs.detach()
