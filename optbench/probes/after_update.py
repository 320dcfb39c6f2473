"""What probes of the actual update share: the weights before it are kept, the measurement is after it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from optbench.boundary.kinds import Count
from optbench.boundary.signature import check_fields
from optbench.curvature.selection import trainable
from optbench.probes import State, Value


@dataclass
class AfterUpdate:
    """Keeps the weights at every n-th step, and measures the update from there one step later.

    Whatever the optimizer is, the update is the difference of the weights: no copy of the optimizer
    takes a step. A measurement stands at the step that the update led to. Memory: one copy of the
    weights.

    Args:
        every: Steps n between the updates that are measured, `never`, or `adaptive`: `interval`.
        interval: Steps between the updates that are measured, where `every` is `adaptive`.
    """

    every: Count | Literal["adaptive", "never"] = "adaptive"
    interval: Count = 10
    next_step: int = field(default=0, init=False)
    paces_itself: ClassVar[bool] = True  # it is called at the step after the n-th as well
    _before: tuple[int, list[Tensor]] | None = field(default=None, init=False)  # step and weights
    _of: str | None = field(default=None, init=False)  # which parameters they are of

    def __post_init__(self) -> None:
        check_fields(self, f"{type(self).__name__.lower()}.")

    def __call__(self, state: State) -> dict[str, Value]:
        """Measure the update since the step before, if that one's weights were kept; keep these if it is time."""
        found: dict[str, Value] = {}
        of = state.shared.signature(state)
        if (
            self._before is not None
            and self._before[0] == state.step - 1
            and self._of in (None, of)
        ):
            found = self.measure(state, self._before[1])
        self._before = None
        spacing = self.every if isinstance(self.every, int) else self.interval
        if state.step % spacing == 0 and state.step < state.steps:
            self._of = of
            self._before = state.step, [p.detach().clone() for p in trainable(state.model)]
            self.next_step = state.step + 1
        else:
            self.next_step = (state.step // spacing + 1) * spacing
        return found

    def measure(self, state: State, before: Sequence[Tensor]) -> dict[str, Value]:
        """Measure the update from the weights `before` to the present ones."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the weights kept and the next step."""
        return {"before": self._before, "next_step": self.next_step, "of": self._of}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._before, self.next_step, self._of = (
            state["before"],
            state["next_step"],
            state.get("of"),
        )


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of all entries, detached; in single precision at least."""
    whole = torch.cat([t.detach().reshape(-1) for t in tensors])
    return whole.float() if whole.dtype in (torch.float16, torch.bfloat16) else whole


@contextmanager
def weights_at(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Put the parameters at these values, and bit for bit back afterwards."""
    now = [p.detach().clone() for p in parameters]
    try:
        _copy(parameters, values)
        yield
    finally:
        _copy(parameters, now)


@torch.no_grad()
def _copy(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)
