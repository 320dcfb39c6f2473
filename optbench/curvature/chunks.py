"""Data that a curvature is measured on, read in chunks of bounded size."""

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
from optbench.ranks import ALONE, Ranks

Pair = tuple[Tensor, Tensor]
"""Inputs and targets of a batch; their first dimension counts examples."""

Weight = Callable[[Tensor, Tensor], float | Tensor]
"""weight(inputs, targets): weight of a batch, or of a part of one, in the mean over all data."""


class Chunks:
    """Re-iterable (inputs, targets) chunks, on the device and in the precision of an operator.

    Read them inside `kept_rng`. Each pass then sees the same data, since all generators are seeded
    equally at its start; and training later reads the batches that it would have read anyway.

    Args:
        batches: One (inputs, targets) pair or a re-iterable of pairs.
        device: Device of the chunks.
        dtype: Precision of floating-point inputs and targets.
        weight: Weight of a batch in the mean over all; None for its number of examples.
        ranks: Processes that share the examples of each batch.

    Attributes:
        limit: Most examples in a chunk; None for whole batches.

    Raises:
        ValueError: If batches can be read only once.
    """

    def __init__(
        self,
        batches: Pair | Iterable[Pair],
        device: torch.device,
        dtype: torch.dtype,
        weight: Weight | None = None,
        ranks: Ranks = ALONE,
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
        self.device, self.dtype, self.weight, self.ranks = device, dtype, weight, ranks
        self.limit: int | None = None
        self._start: list[tuple[torch.Generator, Tensor]] = []

    @contextlib.contextmanager
    def kept_rng(self) -> Iterator[None]:
        """Restore the global generators and those of the DataLoader at the end."""
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
        """The batches as given, not cut into chunks."""
        # Augmentation and shuffling draw the same numbers in each pass.
        seed_globals(self.device, 0)
        self._rewind()
        for batch in with_own_workers(self.batches):
            yield _checked(batch)

    def weighted(self) -> Iterator[tuple[float, Pair]]:
        """Pairs (weight, chunk) in the order of the batches."""
        for batch in self.uncut():
            yield from self.parts(batch, self.limit)

    def shared(self) -> Iterator[tuple[float, Pair]]:
        """Pairs (weight, chunk) of this process's part of each batch; of one process, all."""
        for inputs, targets in self.uncut():
            mine = self.ranks.shard(len(inputs))
            yield from self.parts((inputs[mine], targets[mine]), self.limit)

    def parts(
        self, batch: Pair, limit: int | None, weigh: bool = True
    ) -> Iterator[tuple[float, Pair]]:
        """Parts of a batch, each of at most `limit` examples, with their weights.

        Args:
            batch: Inputs and targets.
            limit: Most examples in a part; None for the whole batch.
            weigh: Whether to compute weights; if not, they are 0. Parts of weight 0 are left out.
        """
        size = limit or len(batch[0])
        for inputs, targets in zip(
            torch.split(batch[0], size), torch.split(batch[1], size), strict=True
        ):
            part = self._moved(inputs), self._moved(targets)
            weight = self.weight_of(part) if weigh else 0.0
            # The loss of a part with weight 0, such as one of ignored targets only, may be NaN.
            if weight or not weigh:
                yield weight, part

    def weight_of(self, batch: Pair) -> float:
        """Weight of a batch in the mean.

        Raises:
            MeasurementError: If the weight is no number, negative or not finite.
        """
        if self.weight is None:
            return float(len(batch[0]))
        try:
            weight = float(self.weight(*batch))
        except (TypeError, ValueError) as why:
            raise MeasurementError(
                f"weight must give a number for (inputs, targets): {why}"
            ) from why
        if not 0 <= weight < math.inf:
            raise MeasurementError(
                f"weight must be finite and not negative, got {weight} for {len(batch[0])} examples"
            )
        return weight

    def _rewind(self) -> None:
        for generator, state in self._start:
            generator.set_state(state)

    def sizes(self) -> list[int]:
        """Number of examples in each batch as given; reads the data once."""
        return [len(inputs) for inputs, _ in self.uncut()]

    def sample(self, count: int) -> Pair:
        """Inputs and targets of the first `count` examples of the first batch, or of all it has."""
        batch = next(self.uncut(), None)
        if batch is None:
            raise ValueError(
                f"batches must hold at least one, got a {type(self.batches).__name__} that is empty"
            )
        return self._moved(batch[0][:count]), self._moved(batch[1][:count])

    def versions(self) -> tuple[int, ...]:
        """Identities and write counters of data held as tensors, by which a change is noticed."""
        if not isinstance(self.batches, list):
            return ()
        tensors = [t for batch in self.batches for t in batch if isinstance(t, Tensor)]
        return tuple(
            number for t in tensors for number in (id(t), 0 if t.is_inference() else t._version)
        )

    def extent(self) -> tuple[object, ...]:
        """Size of the data, as far as it can be known without reading them."""
        if isinstance(self.batches, list):
            return tuple(
                tuple(t.shape) for batch in self.batches for t in batch if isinstance(t, Tensor)
            )
        holders = (self.batches, getattr(self.batches, "dataset", None))
        return tuple(len(x) for x in holders if isinstance(x, Sized))

    def _moved(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else None
        with torch.inference_mode(False):
            # Autograd cannot save a tensor made in inference mode: it gets a normal copy.
            normal = tensor.clone() if tensor.is_inference() else tensor.detach()
            return normal.to(self.device, dtype)

    def _generators(self) -> list[torch.Generator]:
        """Generators of a DataLoader and its samplers, each once."""
        sampler = getattr(self.batches, "sampler", None)
        batch_sampler = getattr(self.batches, "batch_sampler", None)
        inner_sampler = getattr(batch_sampler, "sampler", None)
        generators = {
            id(generator): generator
            for owner in (self.batches, sampler, batch_sampler, inner_sampler)
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator)
        }
        return list(generators.values())


def with_own_workers(batches: Iterable[Any]) -> Iterable[Any]:
    """The same batches; for a DataLoader with persistent workers, a copy with new workers.

    A DataLoader with persistent workers has one iterator. Training may be reading from it, and a
    measurement would reset it. Its workers also go on drawing from where they were, so that each
    pass would see different random numbers.
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
