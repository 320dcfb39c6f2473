"""The data a curvature is measured on, in chunks of bounded size."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from optbench.curvature.errors import MeasurementError
from optbench.curvature.isolation import kept_rng, seed_globals

Pair = tuple[Tensor, Tensor]
"""Inputs and targets of a batch; their first dimension counts examples."""

Weight = Callable[[Tensor, Tensor], float | Tensor]
"""weight(inputs, targets): what a batch, or a part of one, weighs in the mean over all."""


class Chunks:
    """Re-iterable (inputs, targets) chunks, on the device and in the precision of an operator.

    Read them inside `kept_rng`. Each pass then sees the same data, since all generators are set
    alike at its start, and training later reads the batches it would have read.

    Args:
        batches: One (inputs, targets) pair or a re-iterable of them.
        device: Where the chunks go.
        dtype: Precision of floating-point inputs and targets.
        weight: What a batch weighs in the mean over all; None for its number of examples.

    Raises:
        ValueError: If batches can be read only once.
    """

    def __init__(
        self,
        batches: Pair | Iterable[Pair],
        device: torch.device,
        dtype: torch.dtype,
        weight: Weight | None = None,
    ) -> None:
        if not isinstance(batches, Iterable):
            raise ValueError(
                "batches must be one (inputs, targets) pair or an iterable of them, got "
                f"{batches!r}"
            )
        self.batches: Iterable[Any] = [batches] if _is_pair(batches) else batches
        if isinstance(self.batches, Iterator):
            raise ValueError(
                f"batches must be re-iterable, got a {type(batches).__name__}, which can be read "
                "once: pass a list or a DataLoader"
            )
        self.device, self.dtype, self.weight = device, dtype, weight
        self.limit: int | None = None
        self._start: list[tuple[torch.Generator, Tensor]] = []

    @contextlib.contextmanager
    def kept_rng(self) -> Iterator[None]:
        """Keep the global generators and the DataLoader's own as they are."""
        self._start = [(generator, generator.get_state()) for generator in self._generators()]
        try:
            with kept_rng(self.device):
                yield
        finally:
            self._rewind()

    def __iter__(self) -> Iterator[Pair]:
        """Chunks of at most `limit` examples, in the order of the batches."""
        for batch in self.uncut():
            for _, part in self.parts(batch, self.limit, weigh=False):
                yield part

    def uncut(self) -> Iterator[Pair]:
        """The batches as they were given."""
        seed_globals(self.device, 0)
        self._rewind()
        for batch in with_own_workers(self.batches):
            yield _checked(batch)

    def weighted(self) -> Iterator[tuple[float, Pair]]:
        """The chunks, each with its weight."""
        for batch in self.uncut():
            yield from self.parts(batch, self.limit)

    def parts(
        self, batch: Pair, limit: int | None, weigh: bool = True
    ) -> Iterator[tuple[float, Pair]]:
        """A batch in parts of at most `limit` examples, with their weights; 0 if they are not asked for."""
        size = limit or len(batch[0])
        for inputs, targets in zip(
            torch.split(batch[0], size), torch.split(batch[1], size), strict=True
        ):
            part = self._moved(inputs), self._moved(targets)
            weight = self.weight_of(part) if weigh else 0.0
            if (
                weight or not weigh
            ):  # of a part that weighs nothing, such as one of ignored targets, the loss may be NaN
                yield weight, part

    def weight_of(self, batch: Pair) -> float:
        """What a batch weighs in the mean.

        Raises:
            ValueError: If that is negative or not finite.
        """
        if self.weight is None:
            return float(len(batch[0]))
        try:
            found = float(self.weight(*batch))
        except (TypeError, ValueError) as why:
            raise MeasurementError(
                f"weight must give a number for (inputs, targets): {why}"
            ) from why
        if not 0 <= found < math.inf:
            raise MeasurementError(
                f"weight must be finite and not negative, got {found} for {len(batch[0])} examples"
            )
        return found

    def _rewind(self) -> None:
        for generator, state in self._start:
            generator.set_state(state)

    def sizes(self) -> list[int]:
        """Examples in each batch as it was given; reads the data once."""
        return [len(inputs) for inputs, _ in self.uncut()]

    def sample(self, count: int) -> Pair:
        """The first examples of the first batch, at most `count`."""
        batch = next(self.uncut(), None)
        if batch is None:
            raise ValueError(
                f"batches must hold at least one, got a {type(self.batches).__name__} that is empty"
            )
        return self._moved(batch[0][:count]), self._moved(batch[1][:count])

    def versions(self) -> tuple[int, ...]:
        """Addresses and write counters of data held as tensors, so that a change is noticed."""
        if not isinstance(self.batches, list):
            return ()
        tensors = [t for batch in self.batches for t in batch if isinstance(t, Tensor)]
        return tuple(
            number for t in tensors for number in (id(t), 0 if t.is_inference() else t._version)
        )

    def extent(self) -> tuple[object, ...]:
        """How much data there is, as far as it can be seen without reading it."""
        if isinstance(self.batches, list):
            return tuple(
                tuple(t.shape) for batch in self.batches for t in batch if isinstance(t, Tensor)
            )
        holders = (self.batches, getattr(self.batches, "dataset", None))
        return tuple(len(x) for x in holders if isinstance(x, Sized))

    def _moved(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else None
        with torch.inference_mode(False):
            own = tensor.clone() if tensor.is_inference() else tensor.detach()
            return own.to(self.device, dtype)

    def _generators(self) -> list[torch.Generator]:
        batch_sampler = getattr(self.batches, "batch_sampler", None)
        own, inner = getattr(self.batches, "sampler", None), getattr(batch_sampler, "sampler", None)
        owners = (self.batches, own, batch_sampler, inner)
        found = {
            id(g): g
            for o in owners
            if isinstance(g := getattr(o, "generator", None), torch.Generator)
        }
        return list(found.values())


def with_own_workers(batches: Iterable[Any]) -> Iterable[Any]:
    """The same batches; of a DataLoader with persistent workers, a copy that has not started its own.

    Its one iterator may be the one that training reads from, and would be set back; and its workers
    draw on where they were, so that each pass would see other random numbers.
    """
    if not (isinstance(batches, DataLoader) and batches.persistent_workers):
        return batches
    fresh = copy.copy(batches)
    fresh._iterator = None
    return fresh


def _is_pair(batches: object) -> bool:
    return (
        isinstance(batches, (tuple, list)) and len(batches) == 2 and isinstance(batches[0], Tensor)
    )


def _checked(batch: Any) -> Pair:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise ValueError(f"each batch must be a pair (inputs, targets), got {type(batch).__name__}")
    for name, tensor in zip(("inputs", "targets"), batch, strict=True):
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{name} must be a tensor, got {type(tensor).__name__}: wrap the model so that one "
                "tensor goes in"
            )
        if tensor.layout != torch.strided:
            raise MeasurementError(f"{name} must be dense, got {tensor.layout}: pass .to_dense()")
        if tensor.is_meta:
            raise MeasurementError(f"{name} must have data, got a tensor on device meta")
    inputs, targets = batch
    if not inputs.ndim or not targets.ndim:
        raise ValueError(
            "each batch must hold several examples, got a single one: put the data set in a "
            "DataLoader"
        )
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"inputs and targets must have as many examples, at least one, got {len(inputs)} and "
            f"{len(targets)}"
        )
    return inputs, targets
