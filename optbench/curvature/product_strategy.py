"""Choosing how products are done: what fits in memory, then what the clock prefers."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from optbench.curvature.data import Chunks, Pair
from optbench.curvature.errors import MeasurementError, WeightingWarning
from optbench.curvature.loss_function import Objective
from optbench.curvature.products import Builder, Tensors, build
from optbench.curvature.weighting import batches_are_parts, splits_into_parts

Strategy = Literal["auto", "cached", "linearized", "recomputed", "timed"]

SAMPLE = 32  # examples whose graph is weighed; graphs grow linearly with the examples
TRUST = 1e4  # rounding units by which two correct products may differ: norms amplify rounding
# of a chunk, one after the other: what a second derivative needs beside the graph is then a quarter
PARTS = 4
# bytes of a kept graph below which a part would cost more time than its memory is worth
GRAIN = 2 << 20
PRODUCTS = 8  # products a measurement is expected to need, over which a set-up is spread


@dataclass(frozen=True)
class Plan:
    """How the data is cut and products are done.

    Attributes:
        strategy: "cached", "linearized" or "recomputed".
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
    builders: Mapping[str, Builder],
    strategy: Strategy,
    chunk: int | None,
    memory: int,
    batched: bool,
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

    Only "timed" looks at the clock, and only where the whole graph fits.

    Raises:
        MeasurementError: If a chunk was asked for and parts are another loss, or if forced
            transforms give wrong products on this model.
    """
    sample = chunks.sample(SAMPLE)
    try:
        size = graph_bytes(objective, builders["cached"], sample)
    # of a batch that is one example, such as a graph's nodes
    except (RuntimeError, ValueError, IndexError):
        sample = chunks.sample(sys.maxsize)
        size = graph_bytes(objective, builders["cached"], sample)
    per_example = size / len(sample[0])
    given = chunks.sizes()
    total = int(per_example * sum(given))
    if strategy in ("auto", "timed") and total > memory:
        strategy = "recomputed"
    elif strategy == "auto":
        strategy = "cached"
    needed = chunk
    if chunk is None and not objective.mixes_examples():
        needed = max(1, int(memory / max(per_example, 1)))
    largest = min(max(given), needed or max(given))
    finer = math.ceil(largest / _parts(objective, strategy, total))
    if not objective.never_mixes() or objective.draws(sample[0]):
        finer = largest
    chunks.limit = _verified(objective, chunks, [finer, largest], max(given), memory, per_example)
    if chunks.limit is None and chunk is not None and largest < max(given):
        raise MeasurementError(
            f"chunk={chunk} cuts a loss that is not the mean over examples: its parts are another "
            "loss (class weights, "
            "ignored targets, a contrastive loss, statistics over a batch); leave chunk out, or "
            "pass weight=(inputs, "
            "targets) -> what a part weighs in the mean, such as its number of targets that are "
            "not ignored"
        )
    if (
        len(given) > 1
        and chunks.weight is None
        and not batches_are_parts(objective, chunks, memory)
    ):
        warnings.warn(UNEQUAL, WeightingWarning, stacklevel=2)
    if strategy == "timed":
        strategy = fastest(objective, builders, next(iter(chunks)))
    builder = builders["linearized" if strategy == "linearized" else "cached"]
    if strategy == "linearized" or batched:
        error = disagreement(objective, builders["cached"], builder, sample, batched)
        if error > TRUST * torch.finfo(objective.dtype).eps:
            raise MeasurementError(
                f"strategy={strategy!r}, batched={batched} gives products that are off by "
                f"{error:.1e}: torch "
                "transforms a layer of this model wrongly or draws its dropout mask anew; "
                "use strategy='cached' or 'recomputed' with batched=False"
            )
    weights = [weight for weight, _ in chunks.weighted()]
    if not math.fsum(weights) > 0:
        raise MeasurementError(
            f"weight must be positive for some batch, got 0 for all {len(given)}"
        )
    return Plan(strategy, math.fsum(weights), len(weights), total)


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
    if strategy not in ("cached", "timed"):
        return PARTS if strategy == "recomputed" else 1
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


def fastest(objective: Objective, builders: Mapping[str, Builder], chunk: Pair) -> Strategy:
    """The quicker of kept graph and linearization, set-up included; a wrong one loses."""
    cached = _seconds(objective, builders["cached"], chunk)
    try:
        error = disagreement(objective, builders["cached"], builders["linearized"], chunk, False)
        linearized = _seconds(objective, builders["linearized"], chunk)
    except (RuntimeError, NotImplementedError):
        # Some operations have no forward derivative or write in place: torch says so this way.
        return "cached"
    trusted = error <= TRUST * torch.finfo(objective.dtype).eps
    return "linearized" if trusted and linearized < cached else "cached"


def disagreement(
    objective: Objective, reference: Builder, builder: Builder, chunk: Pair, batched: bool
) -> float:
    """Relative difference of a builder's product from the reference's, which is not batched.

    torch's transforms can be wrong without a word: in 2.13 torch.func.hessian is off by 10% on
    LayerNorm and train-mode batch norm, and a trace draws its dropout mask anew. A product that
    differs from the double backward is therefore not used.
    """
    leaves = objective.leaves()
    generator = torch.Generator().manual_seed(0)
    tangents = torch.randn(
        (2, sum(objective.sizes)), generator=generator, dtype=objective.dtype
    ).to(objective.device)
    expected = _flat(reference(objective, leaves, chunk)(tangents[1], False, False))
    product = builder(objective, leaves, chunk)
    product(tangents[1], False, False)  # a mask drawn anew shows from the second product on
    found = (
        [x[1] for x in product(tangents, True, False)]
        if batched
        else product(tangents[1], False, False)
    )
    size, off = float(expected.norm()), float((_flat(found) - expected).norm())
    return off / size if size else off


def _flat(parts: Tensors) -> Tensor:
    return torch.cat([part.double().reshape(-1) for part in parts])


def _seconds(objective: Objective, builder: Builder, chunk: Pair) -> float:
    """Seconds for a set-up and as many products as a measurement needs."""
    leaves = objective.leaves()
    tangent = torch.ones(sum(objective.sizes), dtype=objective.dtype, device=objective.device)
    # warms up allocators and compiled kernels
    builder(objective, leaves, chunk)(tangent, False, False)
    start = _now(objective.device)
    product = builder(objective, leaves, chunk)
    middle = _now(objective.device)
    for _ in range(3):
        product(tangent, False, False)
    end = _now(objective.device)
    return middle - start + PRODUCTS * (end - middle) / 3


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
