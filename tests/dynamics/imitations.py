"""Optimizers that imitate how packages keep state and options, for where those are not installed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Base(Optimizer):
    """Steps every tensor with a gradient by `change`."""

    def change(self, group: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        result: Tensor = group["lr"] * g
        return result

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        for group in self.param_groups:
            self.begin(group)
            for p in (p for p in group["params"] if p.grad is not None):
                p -= self.change(group, p, p.grad)

    def begin(self, group: dict[str, Any]) -> None:
        pass


class AddsKeys(Base):
    """Adam as torch-optimi keeps it: `setup` turns true at the first step, which alone adds `step`."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-6
    ) -> None:
        defaults = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "setup": False}
        super().__init__(params, defaults)

    def begin(self, group: dict[str, Any]) -> None:
        if not group["setup"]:
            group["setup"] = True
            group["step"] = torch.tensor(0, dtype=torch.int32)
        group["step"].add_(1)

    def change(self, group: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        m, v = (
            self.state[p].setdefault(key, torch.zeros_like(p)) for key in ("exp_avg", "exp_avg_sq")
        )
        m.lerp_(g, 1 - group["beta1"])
        v.lerp_(g * g, 1 - group["beta2"])
        t = int(group["step"])
        unbiased = (v / (1 - group["beta2"] ** t)).sqrt() + group["eps"]
        result: Tensor = group["lr"] * m / (1 - group["beta1"] ** t) / unbiased
        return result


class CountsOnItself(AddsKeys):
    """The same with its counter on the optimizer, made at the first step."""

    def begin(self, group: dict[str, Any]) -> None:
        self.rounds = getattr(self, "rounds", 0) + 1
        group["step"] = self.rounds


class KeepsBuffersOnItself(Base):
    """Heavy ball whose buffers are a dictionary on the optimizer, by parameter."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.buffers: dict[Tensor, Tensor] = {}

    def change(self, group: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        m = self.buffers.setdefault(p, torch.zeros_like(p))
        m.mul_(0.9).add_(g)
        result: Tensor = group["lr"] * m
        return result


class OtherName(Base):
    """Twice the gradient with a flag that is kept under another name."""

    def __init__(self, params: Any, lr: float, doubled: bool = False) -> None:
        super().__init__(params, {"lr": lr})
        self.factor = 2.0 if doubled else 1.0

    def change(self, group: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        result: Tensor = group["lr"] * self.factor * g
        return result


class InAFunction(Base):
    """The flag chooses a method; only the choice is kept."""

    def __init__(self, params: Any, lr: float, doubled: bool = False) -> None:
        super().__init__(params, {"lr": lr})
        self.update = self._twice if doubled else self._once

    def _once(self, g: Tensor) -> Tensor:
        return g

    def _twice(self, g: Tensor) -> Tensor:
        return 2 * g

    def change(self, group: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        result: Tensor = group["lr"] * self.update(g)
        return result


class InAClosure(Base):
    """The flag is in a function made in the constructor, which also reads the optimizer."""

    def __init__(self, params: Any, lr: float, doubled: bool = False) -> None:
        super().__init__(params, {"lr": lr})
        factor = 2.0 if doubled else 1.0
        self.update: Callable[[Tensor], Tensor] = lambda g: factor * self.param_groups[0]["lr"] * g

    def change(self, group: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        return self.update(g)


class WarmsUp(Base):
    """SGD whose rate rises for 130 of its own steps, which it counts in its groups."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "taken": 0})

    def begin(self, group: dict[str, Any]) -> None:
        group["taken"] += 1

    def change(self, group: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        self.state[p]["seen"] = True
        result: Tensor = min(1.0, group["taken"] / 130) * group["lr"] * g
        return result


class Lion(Base):
    """lion_pytorch.Lion 0.2.5: decay λη/η₀ where decoupled, the flag kept as `decoupled_wd`, η₀ as `_init_lr`."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        use_triton: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        self._init_lr = lr
        self.decoupled_wd = decoupled_weight_decay
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def change(self, group: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        wd = group["weight_decay"] / (self._init_lr if self.decoupled_wd else 1.0)
        m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
        result: Tensor = group["lr"] * (wd * p + m.lerp(g, 1 - group["betas"][0]).sign())
        m.lerp_(g, 1 - group["betas"][1])
        return result


class CautiousLion(Lion):
    """A later version: another option in the groups, which does nothing at 1, not at its default."""

    def __init__(
        self, params: Any, lr: float = 1e-4, weight_decay: float = 0.0, cautious_factor: float = 0.0
    ) -> None:
        super().__init__(params, lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group["cautious_factor"] = cautious_factor
        self.defaults["cautious_factor"] = cautious_factor


class RenamedLion(Base):
    """A version that keeps the flag where no rule looks."""

    def __init__(self, params: Any, lr: float = 1e-4, decoupled_weight_decay: bool = False) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.1})
        self.mode = "decoupled" if decoupled_weight_decay else "usual"

    def change(self, group: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        result: Tensor = group["lr"] * g.sign()
        return result


def stepped(optimizer: Optimizer, steps: int = 60) -> Optimizer:
    """The optimizer after steps with random gradients, so that all that it keeps is there."""
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.randn(p.shape, generator=g).to(p)
        optimizer.step()
    return optimizer


def weights() -> list[Tensor]:
    """A matrix and a vector."""
    g = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=g).requires_grad_() for shape in [(3, 2), (4,)]]


def grows(make: Callable[[list[Tensor]], Optimizer], a: float, steps: int = 4000) -> bool:
    """Whether the optimizer diverges on ½aw² from w = 1."""
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = make([w])
    for _ in range(steps):
        w.grad = a * w.detach()
        optimizer.step()
        if not abs(w.item()) < 1e6:
            return True
    return False


def clipped(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of anyone's, which looks like what it wraps."""

    @functools.wraps(step)
    def halved(self: Any, *args: Any) -> Any:
        for p in (p for group in self.param_groups for p in group["params"]):
            p.grad = copy.deepcopy(p.grad) / 2
        return step(self, *args)

    return halved
