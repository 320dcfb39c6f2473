"""Between and beside solves: the one-product Rayleigh update, the audit for a lost eigenvalue."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from optbench.curvature.operators import Operator
from optbench.curvature.pairs import Eigenpairs, Seed, random_rows
from optbench.curvature.subspace import Subspace


class Rayleigh(NamedTuple):
    """A Rayleigh quotient θ = uᵀAu/uᵀu ≤ λ_1, and ‖Au − θu‖/‖u‖, within which an eigenvalue is."""

    value: float
    residual: float


def rayleigh(operator: Operator, vector: Tensor) -> Rayleigh:
    """One-product update of an eigenvalue between solves: a lower bound of λ_1.

    Args:
        operator: A, shape (P, P).
        vector: u, shape (P,), such as the last solve's `vectors[:, 0]`; not zero.
    """
    unit = vector / vector.norm()
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


def audit(operator: Operator, pairs: Eigenpairs, *, block: int = 4, steps: int = 10, seed: Seed = 0) -> Audit:
    """Look for a top eigenvalue that tracking lost, by block Lanczos from random vectors.

    The cold θ_1 never exceeds λ_1, so θ_1 > tracked value + its bound proves a loss (up to
    rounding, allowed for). The reverse is not proof: more steps find more.

    Args:
        operator: A, at the weights the pairs were computed at.
        pairs: The tracked pairs.
        block: Random start vectors B: multiplicities and near-orthogonal starts up to B are seen.
        steps: Lanczos steps; costs block·steps products.
        seed: Seed or generator for the start vectors.

    References:
        Golub and Underwood (1977), The block Lanczos method, in Mathematical Software III.
    """
    before = operator.hvps
    space = Subspace(operator)
    rows = random_rows(operator, min(block, operator.size), seed)
    for _ in range(steps):
        added = space.expand(rows)
        if not added:
            break
        rows = space.images[-added:]
    values, coefficients = space.ritz()
    slack = float(pairs.bounds[0]) + 30 * torch.finfo(operator.dtype).eps * float(np.abs(values).max())
    lost = float(values[0]) > float(pairs.values[0]) + slack
    basis = space.combine(coefficients[: pairs.basis.shape[1]]).T
    return Audit(lost, float(values[0]), basis, operator.hvps - before)
