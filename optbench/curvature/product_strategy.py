"""Choosing how products are done: whether graphs are kept, and how the data are cut."""

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

from optbench.curvature.data import Chunks, Pair
from optbench.curvature.errors import MeasurementError, WeightingWarning
from optbench.curvature.loss_function import Objective
from optbench.curvature.products import Builder, build
from optbench.curvature.weighting import batches_are_parts, splits_into_parts

Strategy = Literal["auto", "cached", "recomputed"]

SAMPLE = 32  # examples whose graph is weighed; graphs grow linearly with the examples
# of a chunk, one after the other: what a second derivative needs beside the graph is then a quarter
PARTS = 4
# bytes of a kept graph below which a part would cost more time than its memory is worth
GRAIN = 2 << 20


@dataclass(frozen=True)
class Plan:
    """How the data is cut and products are done.

    Attributes:
        strategy: "cached" or "recomputed".
        total: What all chunks weigh; N, the number of examples, unless weights were given.
        chunks: Number of chunks.
        graph_bytes: Estimated bytes of the graph over all examples.
    """

    strategy: Strategy
    total: float
    chunks: int
    graph_bytes: int


def check_strategy(strategy: Strategy) -> Strategy:
    """The strategy, if it is one; else ValueError."""
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
    """Weigh a sample's graph, cut the data so that one chunk fits in memory, choose the strategy.

    1. A chunk that was asked for is cut, if the loss of every batch is the weighted mean of its
       parts'; else it is an error.
    2. Otherwise a batch whose graph does not fit in memory is cut, on the same condition; else it
       is taken whole.
    3. A graph that is differentiated twice takes two to three times the memory of a training step
       on its chunk, and while it is, as much again. A chunk is therefore taken in `PARTS` parts, in
       fewer where its kept graph is but a few `GRAIN` or a few vectors of P numbers, of which each
       part writes and adds one: a chunk size that trains also measures. On the same condition, and
       not where a dropout mask is drawn: parts would draw others.

    Raises:
        MeasurementError: If a chunk was asked for and parts are another loss.
    """
    sample, size = _weighed_sample(objective, chunks, builder)
    per_example = size / len(sample[0])
    given = chunks.sizes()
    total = int(per_example * sum(given))
    if strategy == "auto":
        strategy = "recomputed" if total > memory else "cached"
    needed = chunk
    if chunk is None and not objective.mixes_examples():
        needed = max(1, int(memory / max(per_example, 1)))
    largest = min(max(given), needed or max(given))
    finer = math.ceil(largest / _parts(objective, strategy, total))
    if not objective.never_mixes() or objective.draws(sample[0]):
        finer = largest
    chunks.limit = _verified(objective, chunks, [finer, largest], max(given), memory, per_example)
    if chunks.limit is None and chunk is not None and largest < max(given):
        raise MeasurementError(ANOTHER_LOSS.format(chunk=chunk))
    weights = _weights(objective, chunks, memory, len(given))
    return Plan(strategy, math.fsum(weights), len(weights), total)


def _weighed_sample(objective: Objective, chunks: Chunks, builder: Builder) -> tuple[Pair, int]:
    """A few examples, and the bytes of their graph."""
    sample = chunks.sample(SAMPLE)
    try:
        return sample, graph_bytes(objective, builder, sample)
    # of a batch that is one example, such as a graph's nodes
    except (RuntimeError, ValueError, IndexError):
        sample = chunks.sample(sys.maxsize)
        return sample, graph_bytes(objective, builder, sample)


def _weights(objective: Objective, chunks: Chunks, memory: int, batches: int) -> list[float]:
    """What the chunks weigh; a warning where batches of a mean over something else are many."""
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
    "examples (class "
    "weights, ignored targets, padding, a contrastive loss): what is measured is that mean; pass "
    "weight=(inputs, "
    "targets) -> what a batch weighs, such as its number of targets that are not ignored, or one "
    "pair of all"
)


def _verified(
    objective: Objective,
    chunks: Chunks,
    limits: list[int],
    largest: int,
    memory: int,
    per_example: float,
) -> int | None:
    """The first of the limits at which the parts are the same loss as the whole; None for no cut."""
    for limit in dict.fromkeys(limits):
        if limit < largest and splits_into_parts(objective, chunks, limit, memory, per_example):
            return limit
    return None


def _parts(objective: Objective, strategy: Strategy, total: int) -> int:
    if strategy == "recomputed":
        return PARTS
    vector = sum(objective.sizes) * objective.dtype.itemsize
    return min(PARTS, max(1, math.ceil(total / max(GRAIN, 2 * vector))))


def graph_bytes(objective: Objective, builder: Builder, chunk: Pair) -> int:
    """Bytes that a product's graph holds beside weights and data."""
    leaves = objective.leaves()
    own = {t.untyped_storage().data_ptr() for t in (*leaves, *chunk, *objective.model.parameters())}
    held: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            with contextlib.suppress(
                RuntimeError
            ):  # what torch's transforms wrap has no memory that could be asked for
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with saved_tensors_hooks(weigh, lambda tensor: tensor):
            build(builder, objective, leaves, chunk)
    except RuntimeError as why:
        if "saved tensor hooks" not in str(why):
            raise
        # torch.func's gradients inside the model cannot be weighed: the data are not cut for
        # memory's sake.
        build(builder, objective, leaves, chunk)
        return 0
    return sum(size for pointer, size in held.items() if pointer not in own)
