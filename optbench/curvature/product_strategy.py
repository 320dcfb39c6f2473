"""Choice of how products are computed: whether graphs are kept, and how the data are cut."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from optbench.boundary.counting import counted
from optbench.curvature.chunk_loss import Objective
from optbench.curvature.chunks import Chunks, Pair
from optbench.curvature.errors import MeasurementError, WeightingWarning
from optbench.curvature.products import Builder, build
from optbench.curvature.weighting import batches_are_parts, splits_into_parts

Strategy = Literal["auto", "cached", "recomputed"]

SAMPLE = 32  # examples whose graph is measured; graphs grow linearly with the number of examples
# Parts that a chunk is taken in, one after the other. The memory that a second derivative needs
# beside the graph is then a quarter.
PARTS = 4
# Bytes of a kept graph below which a further part saves too little to be worth it. A part costs
# some .5 ms a product in calls, and each new point a check that the parts have the loss of the
# whole: for an MLP 64-64-64-10 on 1,000 examples (5 MB) two parts took 3.5 ms a product where one
# takes 2.9, and 15 ms for the first at new weights where one takes 7. Beyond 40 MB parts gain.
GRAIN = 16 << 20


@dataclass(frozen=True)
class Plan:
    """How the data are cut and products computed.

    Attributes:
        strategy: "cached" or "recomputed".
        total: Sum of the chunks' weights; N, the number of examples, unless weights were given.
        chunks: Number of chunks.
        graph_bytes: Estimated bytes of the graph over all examples.
    """

    strategy: Strategy
    total: float
    chunks: int
    graph_bytes: int


def check_strategy(strategy: Strategy) -> Strategy:
    """Return the strategy; raise a ValueError if there is none of that name."""
    if strategy not in get_args(Strategy):
        raise ValueError(
            f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}"
        )
    return strategy


def make_plan(
    objective: Objective,
    chunks: Chunks,
    builder: Builder,
    strategy: Strategy,
    chunk: int | None,
    memory: int,
) -> Plan:
    """Measure a sample's graph, cut the data so that one chunk fits in memory, choose the strategy.

    1. If the user gave a chunk size, cut batches to it. It is an error if the loss of a batch is
       not the weighted mean of its parts'.
    2. Otherwise cut batches whose graph does not fit in memory, where their loss is that mean; take
       other batches whole.
    3. Take each chunk in `PARTS` parts, where its loss is their mean and no dropout mask is drawn,
       which would differ between parts. The reason: a graph that is differentiated twice takes two
       to three times the memory of a training step, and as much again while it is differentiated.
       So a chunk size that trains also measures.
    4. Take fewer parts where the kept graph is small, measured in `GRAIN` and in vectors of P
       numbers: each part writes and adds one such vector.

    Of processes that share the examples, each cuts its own part of a batch in this way.

    Args:
        objective: The loss.
        chunks: The data; its `limit` is set.
        builder: Builder of products.
        strategy: Strategy asked for; "auto" keeps graphs if they fit in memory.
        chunk: Chunk size asked for, in examples; None for one that fits in memory.
        memory: Bytes that graphs may take.

    Raises:
        MeasurementError: If a chunk size was asked for and parts have another loss; if processes
            cannot share the examples.
    """
    sample, size = _weighed_sample(objective, chunks, builder)
    per_example = size / len(sample[0])
    given = chunks.sizes()
    shards = chunks.ranks.size
    total = int(per_example * sum(given) / shards)  # bytes of this process's graphs
    if strategy == "auto":
        strategy = "recomputed" if total > memory else "cached"
    needed = chunk
    if chunk is None and not objective.mixes_examples():
        needed = max(1, int(memory / max(per_example, 1)))
    longest = math.ceil(max(given) / shards)
    largest = min(longest, needed or longest)
    part = math.ceil(largest / _parts(objective, strategy, total))
    draws = objective.never_mixes() and objective.draws(sample[0])
    if not objective.never_mixes() or draws:
        part = largest
    chunks.limit = _verified(objective, chunks, [part, largest], max(given), memory, per_example)
    if shards > 1:
        _check_shared(objective, chunks, min(given), draws)
    if chunks.limit is None and chunk is not None and largest < max(given):
        raise MeasurementError(ANOTHER_LOSS.format(chunk=chunk))
    weights = _weights(objective, chunks, memory, len(given))
    return Plan(strategy, math.fsum(weights), len(weights), total)


def _check_shared(objective: Objective, chunks: Chunks, smallest: int, draws: bool) -> None:
    """Raise a MeasurementError unless the processes' parts of a batch have its loss together."""
    processes = counted(chunks.ranks.size, "process")
    if objective.mixes_examples():
        raise MeasurementError(
            f"a batch norm in train mode takes statistics of a batch, of which {processes} have a "
            "part each: measure in one process, or with mode='eval'"
        )
    if draws:
        raise MeasurementError(
            f"the model draws random numbers, such as a dropout mask, which {processes} would draw "
            "otherwise than one: measure in one process, or without dropout"
        )
    if smallest < chunks.ranks.size:
        raise MeasurementError(
            f"a batch of {counted(smallest, 'example')} is too small for {processes}: give more "
            "examples, or measure in one process"
        )
    if chunks.limit is None:
        raise MeasurementError(
            f"the loss is not the mean over examples, so {processes} cannot share them (class "
            "weights, ignored targets, a contrastive loss): measure in one process"
        )


def _weighed_sample(objective: Objective, chunks: Chunks, builder: Builder) -> tuple[Pair, int]:
    """A few examples, and the bytes of their graph; the whole batch where a few do not run."""
    sample = chunks.sample(SAMPLE)
    try:
        return sample, graph_bytes(objective, builder, sample)
    # Some batches cannot be cut, such as the nodes of one graph.
    except (RuntimeError, ValueError, IndexError):
        sample = chunks.sample(sys.maxsize)
        return sample, graph_bytes(objective, builder, sample)


def _weights(objective: Objective, chunks: Chunks, memory: int, batches: int) -> list[float]:
    """Weights of the chunks; warns if the loss is not the mean over examples of several batches."""
    unweighted = batches > 1 and chunks.weight is None
    if unweighted and not batches_are_parts(objective, chunks, memory):
        warnings.warn(UNEQUAL, WeightingWarning, stacklevel=3)
    weights = [weight for weight, _ in chunks.weighted()]
    if not math.fsum(weights) > 0:
        raise MeasurementError(f"weight must be positive for some batch, got 0 for all {batches}")
    return weights


ANOTHER_LOSS = (
    "chunk={chunk} cuts a loss that is not the mean over examples: its parts are another loss "
    "(class weights, ignored targets, a contrastive loss, statistics over a batch); leave chunk "
    "out, or pass weight=(inputs, targets) -> what a part weighs in the mean, such as its number "
    "of targets that are not ignored"
)
UNEQUAL = (
    "the loss over all batches together is not the mean of the batches' losses by their numbers of "
    "examples (class weights, ignored targets, padding, a contrastive loss): what is measured is "
    "that mean; pass weight=(inputs, targets) -> what a batch weighs, such as its number of "
    "targets that are not ignored, or one pair of all"
)


def _verified(
    objective: Objective,
    chunks: Chunks,
    limits: list[int],
    largest: int,
    memory: int,
    per_example: float,
) -> int | None:
    """First of the limits at which parts have the loss of the whole; None if batches stay whole."""
    for limit in dict.fromkeys(limits):
        if limit < largest and splits_into_parts(objective, chunks, limit, memory, per_example):
            return limit
    return None


def _parts(objective: Objective, strategy: Strategy, total: int) -> int:
    """Number of parts that a chunk is taken in."""
    if strategy == "recomputed":
        return PARTS
    vector = sum(objective.sizes) * objective.dtype.itemsize
    return min(PARTS, max(1, math.ceil(total / max(GRAIN, 2 * vector))))


def graph_bytes(objective: Objective, builder: Builder, chunk: Pair) -> int:
    """Bytes of the tensors that a product's graph saves, weights and data not counted.

    0 where torch does not let them be measured: in a model that calls torch.func.
    """
    leaves = objective.leaves()
    weights_and_data = (*leaves, *chunk, *objective.model.parameters())
    uncounted = {t.untyped_storage().data_ptr() for t in weights_and_data}
    held: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            # Tensors inside of torch's transforms have no storage.
            with contextlib.suppress(RuntimeError):
                storage = tensor.untyped_storage()
                # By address: views of one storage count once.
                held[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with saved_tensors_hooks(weigh, lambda tensor: tensor):
            build(builder, objective, leaves, chunk)
    except RuntimeError as why:
        if "saved tensor hooks" not in str(why):
            raise
        # torch.func does not allow these hooks. With size 0 the data are not cut to save memory.
        build(builder, objective, leaves, chunk)
        return 0
    return sum(size for pointer, size in held.items() if pointer not in uncounted)
