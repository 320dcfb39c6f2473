"""Base of probes of the actual update: weights are kept before it and compared after it."""

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
    """Keeps the weights at every n-th step and measures the update one step later.

    The update is the difference of the weights, for any optimizer: no copy of the optimizer takes a
    step. A measurement is recorded at the step that the update led to. Memory: one copy of the
    weights.

    Args:
        every: Steps n between the updates that are measured, or `never`.
    """

    every: Count | Literal["never"] = 10
    next_step: int = field(default=0, init=False)
    paces_itself: ClassVar[bool] = True  # it is called at the step after the n-th as well
    products: ClassVar[float] = 1.0  # Hessian-vector products that a measurement costs, about
    _before: tuple[int, list[Tensor]] | None = field(default=None, init=False)  # step and weights
    _of: str | None = field(default=None, init=False)  # signature of the parameters

    def __post_init__(self) -> None:
        check_fields(self, f"{type(self).__name__.lower()}.")

    def __call__(self, state: State) -> dict[str, Value]:
        """Measure the last update if weights were kept before it; keep weights if it is time."""
        measured: dict[str, Value] = {}
        signature = state.shared.signature(state)
        if (
            self._before is not None
            and self._before[0] == state.step - 1
            and self._of in (None, signature)
        ):
            measured = self.measure(state, self._before[1])
        self._before = None
        if self.every == "never":
            return measured
        if state.step % self.every == 0 and state.step < state.steps:
            self._of = signature
            self._before = state.step, [p.detach().clone() for p in trainable(state.model)]
            self.next_step = state.step + 1
        else:
            self.next_step = (state.step // self.every + 1) * self.every
        return measured

    def measure(self, state: State, before: Sequence[Tensor]) -> dict[str, Value]:
        """Measure the update from the weights `before` to the present ones."""
        raise NotImplementedError

    def later_products(self, state: State) -> float | None:
        """See `optbench.probes.cost.Foretelling`: every other call only keeps the weights."""
        return self.products if self.every == 1 else self.products / 2

    def state_dict(self) -> dict[str, Any]:
        """Return the kept weights and the next step."""
        return {"before": self._before, "next_step": self.next_step, "of": self._of}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the kept weights and the next step."""
        self._before, self.next_step, self._of = (
            state["before"],
            state["next_step"],
            state.get("of"),
        )


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries as one vector, detached; half precision becomes single."""
    whole = torch.cat([t.detach().reshape(-1) for t in tensors])
    return whole.float() if whole.dtype in (torch.float16, torch.bfloat16) else whole


@contextmanager
def weights_at(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Context with the parameters at these values; restores them bit for bit."""
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
