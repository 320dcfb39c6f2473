"""Curvature along a direction on other examples: what a sharpness of few examples is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.curvature import products
from optbench.curvature.chunk_loss import Objective
from optbench.curvature.chunks import Chunks, Pair
from optbench.curvature.errors import MeasurementError
from optbench.curvature.hessian import ModelOperator

GROUPS = 16
FEWEST = 2 * GROUPS
"""Other examples below which the spread of their groups says little."""
WHOLE = 1e-3  # largest relative difference of the loss of all from the mean over the groups


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

    λ₁(H_S) of a sample S of n examples is larger than λ₁ of all, on average: by convexity,
    E λ₁(H_S) ≥ λ₁(E H_S). Along its eigenvector u the curvature of other examples S' is smaller,
    since u does not depend on them:

        E uᵀH_{S'}u ≤ λ₁(H) ≤ E λ₁(H_S)

    With q_g = uᵀH_g u of G groups of S' of equal weight, N the number of all examples,

        value = (1/G) Σ_g q_g,   error² = (1 − n/N) Σ_g (q_g − value)² / (G (G − 1)).

    Cost: two forward passes, a graph and a product over S', a group at a time.

    Args:
        hessian: H_S, or another operator of the same model, loss and parameters.
        others: Inputs and targets of S', in random order, at least 32; none is in S.
        vector: u, shape (P,), of any length.
        population: N; None for infinitely many.

    Raises:
        MeasurementError: If the loss of S' is not the mean over its groups: batch norm in train
            mode, dropout, losses that compare examples. If a product cannot be computed.
        ValueError: If there are too few others.

    References:
        The bias of the largest eigenvalue of a sample: Lawley (1956), Biometrika 43; Jensen's
        inequality, for the largest eigenvalue is convex.
    """
    count = len(others[0])
    if count < FEWEST:
        raise ValueError(f"others must be {FEWEST} examples or more, got {count}")
    hessian.prepare()
    objective, chunks = hessian.objective, hessian.chunks
    if objective.mixes_examples():
        raise MeasurementError("a batch norm in train mode lets examples affect each other")
    # no more than fit in memory with their graph
    size = min(math.ceil(count / GROUPS), chunks.limit or count)
    found: list[tuple[float, float, float]] = []  # of each group: weight, q, loss
    with chunks.kept_rng(), objective.evaluated():
        leaves = objective.leaves()
        for weight, group in chunks.parts(others, size):
            with torch.no_grad():
                loss = float(objective.value(leaves, group))
            product = products.build(type(hessian).builder, objective, leaves, group)
            parts = [part.reshape(-1) for part in product(vector, free_graph=True)]
            found.append((weight, float(torch.cat(parts).double() @ vector.double()), loss))
            del product
        # where the examples of H are cut into chunks it is known that their loss is the mean
        whole = None if chunks.limit else _loss(objective, leaves, chunks, others)
    if len(found) < 2:
        raise MeasurementError("all but one of the groups of other examples weigh nothing")
    total = math.fsum(weight for weight, _, _ in found)
    mean = math.fsum(weight * loss for weight, _, loss in found) / total
    if whole is not None and not abs(mean - whole) <= WHOLE * abs(whole):
        raise MeasurementError(
            f"the loss of {count} examples, {whole:.6g}, is not the mean over groups, {mean:.6g}"
        )
    value = math.fsum(weight * q for weight, q, _ in found) / total
    square = math.fsum((weight * (q - value)) ** 2 for weight, q, _ in found) / total**2
    left = 1.0 if population is None else max(0.0, 1 - count / population)
    return HeldOut(value, math.sqrt(left * square * len(found) / (len(found) - 1)))


@torch.no_grad()
def _loss(objective: Objective, leaves: Sequence[Tensor], chunks: Chunks, pair: Pair) -> float:
    ((_, whole),) = chunks.parts(pair, None, weigh=False)
    return float(objective.value(leaves, whole))
