"""Approximate eigenpairs, and the random vectors that a search for them starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optbench.curvature.operators import Operator, check_whole

Seed = int | torch.Generator
"""A seed, or a generator on the CPU, from which start vectors are drawn; never the global one."""


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenpairs (θ_i, u_i), the largest first, with their error bounds and cost.

    Attributes:
        values: θ, shape (K,), descending. θ_i ≤ λ_i up to rounding. Unit: loss per parameter².
        vectors: u as orthonormal columns, shape (P, K).
        residuals: ‖A u_i − θ_i u_i‖, shape (K,): an eigenvalue, not surely the i-th, is that close.
        bounds: Bound on λ_i − θ_i, shape (K,), about residual²/gap where there is a gap. It is
            valid if no larger eigenvalue was lost; see `error_bounds`. It includes 80 ε ‖A‖ for
            rounding. It does not include rounding of the weights at a kink: in float32 a ReLU may
            be on its other side, which gives another matrix (7e-5 of λ_1 off, once in 190
            measurements of a network with 1,000 examples).
        hvps: Matrix-vector products spent.
        converged: Whether each of the K pairs met the tolerance; for held pairs, the accuracy.
        basis: Directions remembered for the next search, shape (P, M): Ritz vectors of this search
            and its memory together, the K vectors about first. The first K + guards start the next
            search; all of them steer it.
        estimates: Estimated eigenvalues of the basis, shape (M,). Directions that this search had
            no product with keep their earlier estimates. None where nothing is remembered.
        rest: μ, an upper bound of A's eigenvalues on the complement of the K vectors, if none was
            lost: the largest θ_j + ‖R_j‖ of the guards; infinite without guards.
        held: Whether μ was taken over from the last solve; see `trust` of `top_eigenpairs`.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    bounds: Tensor
    hvps: int
    converged: bool
    basis: Tensor
    rest: float = math.inf
    held: bool = False
    estimates: Tensor | None = None

    def times(self, factor: float) -> Eigenpairs:
        """The pairs of the operator factor · A, factor > 0: values and errors times the factor."""
        return replace(
            self,
            values=self.values * factor,
            residuals=self.residuals * factor,
            bounds=self.bounds * factor,
            rest=self.rest * factor,
            estimates=None if self.estimates is None else self.estimates * factor,
        )


def seeded(seed: Seed) -> torch.Generator:
    """The generator itself, or a new one on the CPU with the seed."""
    if not isinstance(seed, torch.Generator):
        check_whole(seed=seed)
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


def random_rows(operator: Operator, count: int, seed: Seed) -> Tensor:
    """Gaussian vectors as rows, shape (count, P)."""
    rows = torch.randn((count, operator.size), generator=seeded(seed), dtype=operator.dtype)
    return rows.to(operator.device)
