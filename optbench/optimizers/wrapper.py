"""What optimizers over another optimizer have in common."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Factory = Callable[[Iterable[nn.Parameter]], Optimizer]
Closure = Callable[[], Tensor]


class Wrapper(Optimizer):
    """An optimizer over a base, with the base's groups: a schedule acts on what takes the step.

    State of its own lies in `self.state` and is saved beside the base's. Modes are passed on where
    the base has them.

    Args:
        params: Parameters or groups of one model.
        base: Makes the optimizer that takes the step.
    """

    def __init__(self, params: Iterable[nn.Parameter], base: Factory) -> None:
        every = list(params)
        super().__init__(every, {})
        self.base = base(every)
        self.param_groups = self.base.param_groups
        for mode in ("train", "eval"):
            if callable(switch := getattr(self.base, mode, None)):
                setattr(self, mode, switch)

    def held(self) -> list[Tensor]:
        """The parameters that have a gradient, in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state and, by number of parameter, its own."""
        return {"base": self.base.state_dict(), "own": super().state_dict()["state"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups
        held = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        for number, own in state_dict["own"].items():
            p = held[number]
            self.state[p] = {key: value.to(p, copy=True) for key, value in own.items()}


@torch.no_grad()
def copy_all(into: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Give every tensor the value that stands at its place."""
    for p, value in zip(into, values, strict=True):
        p.copy_(value)
