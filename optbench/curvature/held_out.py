"""Curvature along a direction on other examples: what a sharpness of few examples is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from optbench.curvature import products
from optbench.curvature.chunks import Chunks, Pair
from optbench.curvature.errors import MeasurementError
from optbench.curvature.hessian import ModelOperator
from optbench.curvature.weighting import splits_into_parts

GROUPS = 16
FEWEST = 2 * GROUPS
"""Other examples below which the spread of their groups says little."""
EFFECTIVE = 8  # groups of equal weight that those there are must be worth

# Whether groups of examples have a spread that means anything, by operator: the modes of its
# modules that this was decided for, and why not.
_verdicts: WeakKeyDictionary[ModelOperator, tuple[tuple[bool, ...], str | None]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True)
class HeldOut:
    """Curvature along a direction on other examples.

    Attributes:
        value: uᵀH'u, unit: loss per parameter².
        error: Its standard error over the choice of examples.
    """

    value: float
    error: float


def held_out(
    hessian: ModelOperator, others: Pair, vector: Tensor, population: int | None = None
) -> HeldOut:
    """Curvature uᵀH'u of other examples than those that the direction u was found on.

    λ₁(H_S) of a sample S of all examples is larger than λ₁ of all, on average: by convexity,
    E λ₁(H_S) ≥ λ₁(E H_S). Along its eigenvector u the curvature of other examples S' is smaller,
    since u does not depend on them:

        E uᵀH_{S'}u ≤ λ₁(H) ≤ E λ₁(H_S)

    With q_g = uᵀH_g u of about 16 groups of S' with shares s_g of its weight, and M the number of
    examples that S' is drawn from,

        value = Σ_g s_g q_g,   error² = (1 − n/M) Σ_g s_g² (q_g − value)² / (1 − Σ_g s_g²).

    Both hold for examples in random order. In one by class or length, the first ones are no sample;
    if S' is drawn at random from the rest, then at least E uᵀH_{S'}u ≤ λ₁ of the rest.

    Cost: a graph and a product over S', a group at a time; about two products with a kept graph
    where computing dominates, and more where a group is little work. The first call for an operator
    looks whether the loss is a mean over groups: a forward pass and two gradients more.

    Args:
        hessian: H_S, or another operator of the same model, loss and parameters.
        others: Inputs and targets of S', n of them, at least 32; none is in S.
        vector: u, shape (P,), of any length.
        population: M; the error is then that of the mean over all of these. None: of infinitely
            many.

    Raises:
        MeasurementError: If the loss of S' is not the mean over its groups: batch norm in train
            mode, dropout, losses that compare examples; if the model takes batches of one size
            only; if a few groups weigh nearly all. If a product cannot be computed.
        ValueError: If there are too few others.

    References:
        The bias of the largest eigenvalue of a sample: Lawley (1956), Biometrika 43; Jensen's
        inequality, for the largest eigenvalue is convex.
    """
    count = len(others[0])
    if count < FEWEST:
        raise ValueError(f"others must be {FEWEST} examples or more, got {count}")
    hessian.prepare()
    objective, cut = hessian.objective, hessian.chunks.limit
    chunks = Chunks(others, hessian.device, hessian.dtype, hessian.chunks.weight)
    # no more than fit in memory with their graph
    chunks.limit = min(math.ceil(count / GROUPS), cut or count)
    found: list[tuple[float, float]] = []  # of each group: weight, q
    with chunks.kept_rng(), objective.evaluated():
        if (why := _why_not(hessian, chunks, chunks.limit)) is not None:
            raise MeasurementError(why)
        leaves = objective.leaves()
        for weight, group in chunks.weighted():
            product = products.build(type(hessian).builder, objective, leaves, group)
            parts = [part.reshape(-1) for part in product(vector, free_graph=True)]
            found.append((weight, float(torch.cat(parts).double() @ vector.double())))
            del product
    total = math.fsum(weight for weight, _ in found)
    square = math.fsum(weight**2 for weight, _ in found)
    if not EFFECTIVE * square <= total**2 or not total:
        raise MeasurementError("a few groups of the other examples weigh nearly all")
    value = math.fsum(weight * q for weight, q in found) / total
    spread = math.fsum((weight * (q - value)) ** 2 for weight, q in found) / (total**2 - square)
    left = 1.0 if population is None else max(0.0, 1 - count / population)
    return HeldOut(value, math.sqrt(left * spread))


def _why_not(hessian: ModelOperator, chunks: Chunks, size: int) -> str | None:
    """Why groups of examples say nothing, decided once for an operator in these modes."""
    modes = hessian.objective.modes()
    known = _verdicts.get(hessian)
    if known is None or known[0] != modes:
        known = modes, _reason(hessian, chunks, size)
        _verdicts[hessian] = known
    return known[1]


def _reason(hessian: ModelOperator, chunks: Chunks, size: int) -> str | None:
    objective = hessian.objective
    if objective.mixes_examples():
        return "a batch norm in train mode lets examples affect each other"
    # where the examples of H are cut into chunks, the graph of them all does not fit
    per_example = math.inf if hessian.chunks.limit else 0.0
    try:
        if objective.draws(next(iter(chunks))[0]):
            return "the model draws random numbers, such as dropout masks, for each group anew"
        if splits_into_parts(objective, chunks, size, hessian.loss.memory, per_example):
            return None
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as why:
        return f"the model does not run on a group of examples ({type(why).__name__})"
    return "the loss of other examples is not the mean over groups of them"
