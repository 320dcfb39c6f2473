"""Copies of an optimizer, and what they answer to gradients that are handed to them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optbench.dynamics.optimizer_options import plain, torch_attributes

TOLERANCE = 1e-3
"""Relative agreement asked of two numbers that a linear, time-invariant optimizer makes equal."""


class UnclearError(Exception):
    """The optimizer does something that a threshold λ₁ = 2/(ηT(−1)) does not describe."""


def small_response(optimizer: Optimizer, params: list[Tensor], base: list[Tensor]) -> list[Tensor]:
    """The response to a change of gradient small enough to be answered in proportion."""
    g = torch.Generator().manual_seed(0)
    signs = [torch.randint(0, 2, p.shape, generator=g).to(p) * 2 - 1 for p in params]

    def answer(change: list[Tensor]) -> list[Tensor]:
        changed = [b + c for b, c in zip(base, change, strict=True)]
        return difference(optimizer, params, base, changed)

    size = 1e-2
    while size > 1e-11:
        one, two = ([d / size for d in answer([size * k * s for s in signs])] for k in (1.0, 2.0))
        if all(
            torch.allclose(b, 2 * a, rtol=TOLERANCE, atol=0) for a, b in zip(one, two, strict=True)
        ):
            break
        size /= 10
    else:
        raise UnclearError("the update is not proportional to a small gradient")
    plus = answer([torch.full_like(p, size) for p in params])
    answers = [s * a for s, a in zip(signs, one, strict=True)]
    for p, a, b in zip(params, answers, plus, strict=True):
        if not torch.allclose(a, b / size, rtol=10 * TOLERANCE, atol=0):
            raise UnclearError(
                f"couples the entries of a tensor of shape {tuple(p.shape)}: matrix P"
            )
        if not bool((a > 0).all()):
            raise UnclearError("an entry does not move against its gradient")
    return answers


def difference(
    optimizer: Optimizer, params: list[Tensor], base: list[Tensor], other: list[Tensor]
) -> list[Tensor]:
    """Updates under the gradients `other` minus `base`, negated, from the same state."""
    restore = remember(optimizer, params)
    ends = []
    for gradients in (base, other):
        feed(optimizer, params, gradients)
        ends.append([p.detach().clone() for p in params])
        restore()
    return [a - b for a, b in zip(*ends, strict=True)]


def feed(optimizer: Optimizer, params: list[Tensor], gradients: list[Tensor]) -> None:
    """One step with the given gradients, offered both in `.grad` and through a closure."""

    def closure() -> Tensor:
        for p, g in zip(params, gradients, strict=True):
            p.grad = g.clone()
        return torch.zeros(())

    closure()
    optimizer.step(closure)  # type: ignore[arg-type]


def remember(optimizer: Optimizer, params: list[Tensor]) -> Callable[[], None]:
    """A function that sets an optimizer and its parameters back to what they are now.

    State that a class keeps in attributes of its own, such as a counter, comes back as well.
    """
    state = copy.deepcopy(optimizer.state_dict())
    start = [p.detach().clone() for p in params]
    same = {id(p): p for p in params} | {id(optimizer): optimizer}
    attributes = {
        k: v for k, v in vars(optimizer).items() if k not in torch_attributes() and _of_numbers(v)
    }
    kept = copy.deepcopy(attributes, dict(same))

    def restore() -> None:
        optimizer.load_state_dict(copy.deepcopy(state))
        vars(optimizer).update(copy.deepcopy(kept, dict(same)))
        for p, s in zip(params, start, strict=True):
            p.data.copy_(s)

    return restore


def _of_numbers(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_of_numbers(v) for pair in value.items() for v in pair)
    if isinstance(value, list | tuple):
        return all(_of_numbers(v) for v in value)
    return isinstance(value, Tensor) or plain(value)
