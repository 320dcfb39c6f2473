"""Find by bisection the curvature at which a torch optimizer really diverges, P held fixed.

The optimizer's own `step` runs on ½ (w−w*)ᵀ sH (w−w*). Before every step its state is rewound so
that the step repeats the last update's preconditioner, bias corrections and schedule; momentum
buffers run freely. Gradients are tiny, so g² leaves the second moments alone and the map is
linear; it is rescaled now and then, which a linear map allows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTA = {"exp_avg", "momentum_buffer", "ax", "mu", "exp_avg_slow"}
SMALL = 1e-9

Make = Callable[[list[dict[str, Any]]], Optimizer]


def spd(size: int, seed: int) -> Tensor:
    """A dense positive definite matrix with eigenvalues from 0.3 to 1."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.float64))
    matrix: Tensor = q @ torch.diag(torch.linspace(0.3, 1.0, size, dtype=torch.float64)) @ q.T
    return matrix


def warmed(
    make: Make, shapes: list[tuple[int, ...]], overrides: list[dict[str, Any]], steps: int = 12
) -> tuple[Optimizer, list[Tensor]]:
    """An optimizer after some steps with random gradients; one group per shape.

    The last parameter misses every third gradient, so its step count and bias correction differ.
    """
    g = torch.Generator().manual_seed(1)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    params = [draw(s).requires_grad_() for s in shapes]
    groups = [
        {"params": [p], **o}
        for p, o in zip(params, overrides + [{}] * (len(params) - len(overrides)), strict=True)
    ]
    optimizer = make(groups)
    for t in range(steps):
        for i, p in enumerate(params):
            p.grad = None if (i and i == len(params) - 1 and t % 3 == 1) else draw(p.shape)
        optimizer.step()
    return optimizer, params


def _before(key: str, value: Any, group: dict[str, Any], state: dict[str, Any]) -> Any:
    """The value that the next update turns into `value` when the gradient vanishes."""
    if key == "step":
        return value - 1
    if key in {"exp_avg_sq", "exp_inf"}:
        return value / float(group["beta2"] if "beta2" in group else group["betas"][1])
    if key in {"square_avg", "grad_avg"}:
        return value / group.get("alpha", group.get("rho"))
    if key in {"variance", "row_var", "col_var"}:
        weight = float(state["step"]) ** group["beta2_decay"]
        return value / (1 - weight)
    if key == "mu_product":
        t, beta = float(state["step"]), group["betas"][0]
        return value / (beta * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])))
    return value


class Frozen:
    """An optimizer whose every step repeats the preconditioner of its last update."""

    def __init__(self, optimizer: Optimizer, params: list[Tensor], target: float = 0.0):
        self.optimizer, self.params = optimizer, params
        self.groups = [g for g in optimizer.param_groups for _ in g["params"]]
        self.group_steps = [g.get("step") for g in optimizer.param_groups]
        self.before = []
        for p, group in zip(params, self.groups, strict=True):
            state = copy.deepcopy(dict(optimizer.state.get(p, {})))
            rewound = {k: _before(k, v, group, state) for k, v in state.items()}
            self.before.append({k: v for k, v in rewound.items() if k not in MOMENTA})
        self.target = [target * torch.ones_like(p).detach() for p in params]

    def rewind(self) -> None:
        """Set the state so that the next step repeats the last one's coefficients."""
        for group, step in zip(self.optimizer.param_groups, self.group_steps, strict=True):
            if step is not None:
                group["step"] = step - 1
        for p, before in zip(self.params, self.before, strict=True):
            state = self.optimizer.state[p]
            for key, value in before.items():
                state[key] = value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)

    def _scale(self, factor: float) -> None:
        for p, target in zip(self.params, self.target, strict=True):
            p.data = target + factor * (p.data - target)
            for key, value in self.optimizer.state.get(p, {}).items():
                if key in MOMENTA and isinstance(value, Tensor):
                    value.mul_(factor)

    def deviation(self) -> Tensor:
        """W − w*, flat."""
        pairs = zip(self.params, self.target, strict=True)
        return torch.cat([(p.detach() - t).reshape(-1) for p, t in pairs])

    def growth(self, hessian: Tensor, steps: int = 260) -> float:
        """Log of the growth of the alternating part over the second half of a run."""
        g = torch.Generator().manual_seed(0)
        for p, target in zip(self.params, self.target, strict=True):
            noise = torch.randn(p.shape, generator=g, dtype=p.dtype)
            p.data = target + SMALL * noise
            for key, value in self.optimizer.state.get(p, {}).items():
                if key in MOMENTA and isinstance(value, Tensor):
                    value.zero_()
        log, middle, size = 0.0, 0.0, 0.0
        previous = self.deviation()
        for t in range(steps):
            self.rewind()
            gradient = hessian @ previous
            pieces = torch.split(gradient, [p.numel() for p in self.params])
            for p, piece in zip(self.params, pieces, strict=True):
                p.grad = piece.reshape(p.shape).clone()
            self.optimizer.step()
            now = self.deviation()
            size = float((now - previous).norm())
            if not 0.1 * SMALL < size < 10 * SMALL:
                factor = SMALL / max(size, 1e-300)
                self._scale(factor)
                log -= math.log(factor)
                size *= factor
                now = self.deviation()
            if t == steps // 2:
                middle = log + math.log(size)
            previous = now
        return log + math.log(size) - middle

    def critical(self, hessian: Tensor, guess: float, steps: int = 260) -> float:
        """The scale s at which s·H turns unstable, to 0.03 %, within [guess/3, 4·guess]."""
        low, high = guess / 3, guess * 4
        if not (self.growth(low * hessian, steps) < 0 < self.growth(high * hessian, steps)):
            raise AssertionError(f"no change of stability between {low:g} and {high:g}")
        while high / low > 1.0006:
            middle = math.sqrt(low * high)
            if self.growth(middle * hessian, steps) > 0:
                high = middle
            else:
                low = middle
        return math.sqrt(low * high)
