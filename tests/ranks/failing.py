"""An optimizer and a probe that fail in one process of a run."""

import os
import signal
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from optbench.errors import UserError
from optbench.probes import State, Value


class UnreadableError(Exception):
    """An error that fails to say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def _here(rank: int) -> bool:
    return int(os.environ.get("RANK", 0)) == rank


def _fail(how: str) -> None:
    match how:
        case "UserError":
            raise UserError("lr=7 is too much: say lr=1")
        case "ValueError":
            raise ValueError("no such step")
        case "StopIteration":
            raise StopIteration
        case "Unreadable":
            raise UnreadableError
        case "SystemExit":
            sys.exit(3)


class Failing(torch.optim.SGD):
    """SGD whose third step fails in one process; or which cannot be made there."""

    def __init__(
        self, params: Iterable[nn.Parameter], how: str, rank: int, at: int = 3, lr: float = 0.1
    ) -> None:
        super().__init__(params, lr)
        self.how, self.rank, self.left = how, rank, at
        self._count()

    def step(self, closure: Any = None) -> Any:
        """Take a step, or fail."""
        self._count()
        return super().step(closure)

    def _count(self) -> None:
        if self.left == 0 and _here(self.rank):
            _fail(self.how)
        self.left -= 1


class Once(torch.optim.SGD):
    """SGD whose process 1 fails in its hundredth step, where torchrun has not started it again."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        """Take a step, or fail."""
        self.steps += 1
        if self.steps == 100 and _here(1) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            raise ValueError("once")
        return super().step(closure)


class Stopped(torch.optim.SGD):
    """SGD in whose hundredth step process 0 is told to stop."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        self.steps += 1
        if self.steps == 100 and _here(0):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(closure)


class Probe:
    """A probe that fails in one process, the second time."""

    def __init__(self, how: str, rank: int, every: int = 2) -> None:
        self.how, self.rank, self.every, self.called = how, rank, every, 0

    def __call__(self, state: State) -> dict[str, Value]:
        """Measure, or fail."""
        self.called += 1
        if self.called == 2 and _here(self.rank):
            if self.how == "tensor":
                return {"my/x": torch.tensor(1.0)}  # type: ignore[dict-item]
            _fail(self.how)
        return {"my/x": 1.0}
