"""Optimizers inside of optimizers."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch.optim import Optimizer


def nested(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yield an optimizer, then those that it holds, such as SAM's base, each once."""
    return _nested(optimizer, set())


def _nested(optimizer: Optimizer, seen: set[int]) -> Iterator[Optimizer]:
    if id(optimizer) in seen:
        return
    seen.add(id(optimizer))
    yield optimizer
    for value in vars(optimizer).values():
        inner: Iterable[Any] = [value]
        if isinstance(value, dict):
            inner = value.values()
        elif isinstance(value, (list, tuple)):
            inner = value
        for part in inner:
            if isinstance(part, Optimizer):
                yield from _nested(part, seen)
