"""Checks between solves: a Rayleigh quotient at one product, and an audit for lost eigenvalues."""

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
    """Rayleigh quotient θ = uᵀAu/uᵀu ≤ λ_1 and its residual ‖Au − θu‖/‖u‖.

    An eigenvalue of A lies within the residual of θ.
    """

    value: float
    residual: float


def rayleigh(operator: Operator, vector: Tensor) -> Rayleigh:
    """Rayleigh quotient of a vector, a lower bound of λ_1, at the cost of one product.

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
    """Result of a search from random vectors, compared with tracked pairs.

    Attributes:
        lost: Whether a larger eigenvalue exists than was tracked.
        value: Estimate of λ_1 from this search, a lower bound.
        basis: Ritz vectors as columns, shape (P, M), to start from if an eigenvalue was lost.
        hvps: Matrix-vector products spent.
    """

    lost: bool
    value: float
    basis: Tensor
    hvps: int


def audit(
    operator: Operator, pairs: Eigenpairs, *, block: int = 4, steps: int = 10, seed: Seed = 0
) -> Audit:
    """Look for a top eigenvalue that tracking lost, by block Lanczos from random vectors.

    The θ_1 of this search never exceeds λ_1, so θ_1 > tracked value + its bound, plus an allowance
    for rounding, proves a loss. The reverse is no proof: more steps may find more.

    Args:
        operator: A, at the weights that the pairs were computed at.
        pairs: The tracked pairs.
        block: Number B of random start vectors; eigenvalues of multiplicity up to B are seen.
        steps: Lanczos steps; the audit costs block · steps + 1 products.
        seed: Seed or generator of the start vectors.

    Raises:
        ValueError: If block or steps is not positive, or if the pairs do not belong to this
            operator at these weights, which one product tests.

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
    _check_belong(operator, pairs)
    space = Subspace(operator)
    rows = random_rows(operator, min(block, operator.size), seed)
    for _ in range(steps):
        added = space.expand(rows)
        if not added:
            break
        rows = space.images[-added:]  # block Lanczos: the next block is A Q_last, orthogonalized
    values, coefficients = space.ritz()
    # A loss is proved only beyond the bound and the rounding of both searches.
    slack = float(pairs.bounds[0]) + 30 * torch.finfo(operator.dtype).eps * float(
        np.abs(values).max()
    )
    lost = float(values[0]) > float(pairs.values[0]) + slack
    basis = space.combine(coefficients[: pairs.basis.shape[1]]).T
    return Audit(lost, float(values[0]), basis, operator.hvps - before)


def _check_belong(operator: Operator, pairs: Eigenpairs) -> None:
    """Raise a ValueError unless ‖A u_1 − θ_1 u_1‖ is the residual that the pairs state."""
    if pairs.vectors.shape[0] != operator.size:
        raise ValueError(
            f"pairs must be of this operator, got vectors of {pairs.vectors.shape[0]} entries for "
            f"P = {operator.size}"
        )
    vector = pairs.vectors[:, 0].to(operator.device, operator.dtype)
    image, value = operator @ vector, float(pairs.values[0])
    residual, stated = float((image - value * vector).norm()), float(pairs.residuals[0])
    # A generous allowance for rounding: at other weights or models residuals are as large as ‖A‖.
    allowed = (
        2 * stated
        + 1000 * torch.finfo(operator.dtype).eps * float(image.norm())
        + 1e-3 * abs(value)
    )
    if residual > allowed:
        raise ValueError(
            f"pairs must be of this operator at its present weights: ‖Au − θu‖ is "
            f"{residual:.3g}, and was {stated:.3g} when they were found"
        )
