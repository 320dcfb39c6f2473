"""Between and beside solves: the one-product Rayleigh update, the audit for a lost eigenvalue."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from optbench.curvature.eigen.pairs import Eigenpairs, Seed, random_rows
from optbench.curvature.eigen.subspace import Subspace
from optbench.curvature.operators import Operator, check_operator, check_whole


class Rayleigh(NamedTuple):
    """A Rayleigh quotient θ = uᵀAu/uᵀu ≤ λ_1, and ‖Au − θu‖/‖u‖, within which an eigenvalue is."""

    value: float
    residual: float


def rayleigh(operator: Operator, vector: Tensor) -> Rayleigh:
    """One-product update of an eigenvalue between solves: a lower bound of λ_1.

    Args:
        operator: A, shape (P, P).
        vector: u, shape (P,), such as the last solve's `vectors[:, 0]`.

    Raises:
        ValueError: If u is zero, not finite, or has another shape.
    """
    check_operator(operator)
    if not isinstance(vector, Tensor) or not vector.is_floating_point():
        raise ValueError(f"vector must be a tensor of real numbers, got {type(vector).__name__}")
    if vector.shape != (operator.size,):
        raise ValueError(f"vector must have shape ({operator.size},), got {tuple(vector.shape)}")
    length = float(vector.norm())
    if not 0 < length < math.inf:
        raise ValueError(f"vector must have a direction, got one of length {length}")
    unit = vector / length
    image = operator @ unit
    value = unit @ image
    return Rayleigh(float(value), float((image - value * unit).norm()))


class Audit(NamedTuple):
    """A cold check of tracked pairs: `lost` says that a larger eigenvalue exists than was tracked.

    `value` is the cold estimate of λ_1, from below; `basis`, shape (P, B), a new start if lost.
    """

    lost: bool
    value: float
    basis: Tensor
    hvps: int


def audit(
    operator: Operator, pairs: Eigenpairs, *, block: int = 4, steps: int = 10, seed: Seed = 0
) -> Audit:
    """Look for a top eigenvalue that tracking lost, by block Lanczos from random vectors.

    The cold θ_1 never exceeds λ_1, so θ_1 > tracked value + its bound proves a loss (up to
    rounding, allowed for). The reverse is not proof: more steps find more.

    Args:
        operator: A, at the weights the pairs were computed at.
        pairs: The tracked pairs.
        block: Random start vectors B: multiplicities and near-orthogonal starts up to B are seen.
        steps: Lanczos steps; costs block·steps products, and one.
        seed: Seed or generator for the start vectors.

    Raises:
        ValueError: If block or steps is not positive, or if the pairs are not of this operator at
            these weights: one product more looks at that.

    References:
        Golub and Underwood (1977), The block Lanczos method, in Mathematical Software III.
    """
    check_operator(operator)
    if not isinstance(pairs, Eigenpairs):
        raise ValueError(f"pairs must be Eigenpairs, got {type(pairs).__name__}")
    check_whole(block=block, steps=steps)
    for name, value in (("block", block), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    before = operator.hvps
    _check_of(operator, pairs)
    space = Subspace(operator)
    rows = random_rows(operator, min(block, operator.size), seed)
    for _ in range(steps):
        added = space.expand(rows)
        if not added:
            break
        rows = space.images[-added:]
    values, coefficients = space.ritz()
    slack = float(pairs.bounds[0]) + 30 * torch.finfo(operator.dtype).eps * float(
        np.abs(values).max()
    )
    lost = float(values[0]) > float(pairs.values[0]) + slack
    basis = space.combine(coefficients[: pairs.basis.shape[1]]).T
    return Audit(lost, float(values[0]), basis, operator.hvps - before)


def _check_of(operator: Operator, pairs: Eigenpairs) -> None:
    """Raise a ValueError unless θ_1 and u_1 leave the residual that they were returned with."""
    if pairs.vectors.shape[0] != operator.size:
        raise ValueError(
            f"pairs must be of this operator, got vectors of {pairs.vectors.shape[0]} entries for "
            f"P = {operator.size}"
        )
    vector = pairs.vectors[:, 0].to(operator.device, operator.dtype)
    image, value = operator @ vector, float(pairs.values[0])
    found, stated = float((image - value * vector).norm()), float(pairs.residuals[0])
    # The rounding of a product is allowed ten times over: residuals of other weights or models are
    # as large as A.
    allowed = (
        2 * stated
        + 1000 * torch.finfo(operator.dtype).eps * float(image.norm())
        + 1e-3 * abs(value)
    )
    if found > allowed:
        raise ValueError(
            f"pairs must be of this operator at its present weights: ‖Au − θu‖ is {found:.3g}, and "
            f"was {stated:.3g} "
            "when they were found"
        )
