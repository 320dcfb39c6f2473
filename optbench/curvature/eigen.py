"""Largest eigenvalues with error bounds, by a warm-started block solver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optbench.curvature.bounds import error_bounds
from optbench.curvature.operators import Operator
from optbench.curvature.subspace import Subspace, small

GUARD = 0.1  # relative residual of the first guard: a vaguer one would not notice that it overtakes
# Below this accuracy every guard is resolved, to its square root. Of m eigenvalues closer to each other than that, a
# space grown from fewer than m vectors holds fewer; the one it lacks may be the largest, and then no gap is true.
STRICT = 1e-3

Seed = int | torch.Generator
"""A seed, or a generator on the CPU, from which start vectors are drawn; never the global one."""


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenpairs (θ_i, u_i), the largest first, with their error bounds and cost.

    Attributes:
        values: θ, shape (K,), descending. θ_i ≤ λ_i up to rounding. Unit: loss per parameter².
        vectors: u as orthonormal columns, shape (P, K).
        residuals: ‖A u_i − θ_i u_i‖, shape (K,): an eigenvalue, not surely the i-th, is that close.
        bounds: Bound on λ_i − θ_i, shape (K,), about residual²/gap where the gap allows, on the
            condition that no larger eigenvalue was lost; see `error_bounds`.
        hvps: Products spent.
        converged: Whether each of the K met the tolerance.
        basis: vectors followed by the guards, shape (P, K + guards): the next warm start.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    bounds: Tensor
    hvps: int
    converged: bool
    basis: Tensor


def top_eigenpairs(
    operator: Operator,
    k: int = 1,
    *,
    tol: float = 3e-3,
    accuracy: float = 5e-3,
    start: Eigenpairs | Tensor | None = None,
    guards: int = 2,
    above: float | None = None,
    max_hvps: int = 1000,
    window: int | None = None,
    seed: Seed = 0,
) -> Eigenpairs:
    """Algebraically largest eigenpairs, A u_i = λ_i u_i, λ_1 ≥ λ_2 ≥ …; for the smallest pass -A.

    Block LOBPCG with a longer memory: Rayleigh-Ritz on the warm start (K + guards products), then
    on it enlarged by the residuals of the pairs that hold convergence up, one product each, with
    all images carried. Beyond `window` vectors the space shrinks to the Ritz vectors and those of
    the iteration before, which are LOBPCG's three blocks.

    Args:
        operator: A, symmetric, shape (P, P).
        k: Pairs wanted.
        tol: Each residual is to be at most tol·|θ_1|.
        accuracy: Each bound is to be at most accuracy·|θ_1| as well. Values are usually much
            closer, their error being quadratic in the residual; 1e-5 gives five digits.
        start: Pairs or columns, shape (P, any), to start from: the last measurement's pairs.
        guards: Further vectors carried, which show the gap and keep a crossing from being missed. One is cheaper by
            half a product, but at 1 of 422 measurements at the edge (tanh, digits) λ₁ was above its bound.
        above: Also find every eigenvalue above this: k grows until one found is not above it.
        max_hvps: Products after which the pairs are returned unconverged.
        window: Most vectors kept, at least K + guards + k + 1; memory is 2·window·P numbers.
        seed: Seed or generator for start vectors.

    Returns:
        The pairs; the result is a function of the arguments alone.

    Raises:
        ValueError: If k, tol, accuracy or guards is out of range, or start has the wrong shape.
        FloatingPointError: If a product is not finite.

    References:
        Knyazev (2001), SIAM J. Sci. Comput. 23(2); Stathopoulos (2007), SIAM J. Sci. Comput. 29(2).
    """
    _check(operator, k, tol, accuracy, guards, max_hvps)
    solver = _Solver(operator, k, guards, tol, accuracy, window)
    before = operator.hvps
    solver.begin(_start_rows(operator, start, solver.block, seed))
    while True:
        pending = solver.pending()
        if not pending and solver.covers(above):
            break
        spent = operator.hvps - before
        if spent + max(len(pending), 1) > max_hvps:
            break
        if not (solver.improve(pending) if pending else solver.widen(seed)):
            break
    return solver.result(operator.hvps - before, above)


class _Solver:
    """The state of one solve."""

    def __init__(
        self,
        operator: Operator,
        k: int,
        guards: int,
        tol: float,
        accuracy: float,
        window: int | None,
    ) -> None:
        self.space = Subspace(operator)
        self.k, self.guards, self.tol, self.accuracy = k, guards, tol, accuracy
        self.window = window
        self.previous = torch.empty((0, 0), dtype=torch.float64)

    @property
    def block(self) -> int:
        return min(self.k + self.guards, self.space.operator.size)

    def begin(self, rows: Tensor) -> None:
        self.space.expand(rows)
        self._rayleigh_ritz()

    def _rayleigh_ritz(self) -> None:
        self.ritz_values, self.coefficients = self.space.ritz()
        count = min(self.block, len(self.space))
        self.values = self.ritz_values[:count]
        self.vectors, images = self.space.combine(self.coefficients[:count])
        self.residuals = images - self.values.to(images).unsqueeze(1) * self.vectors
        gram = small(self.residuals @ self.residuals.T)
        self.norms = np.sqrt(gram.diagonal())
        self.bounds = error_bounds(self.values.numpy(), gram)

    def pending(self) -> list[int]:
        """Pairs to improve: wanted ones above `tol`, and what holds a wanted bound up."""
        floor = 30 * torch.finfo(self.residuals.dtype).eps * float(self.ritz_values.abs().max())
        values, norms, bounds = self.values.tolist(), self.norms.tolist(), self.bounds.tolist()
        size = abs(values[0])
        found = set()
        for i in range(min(self.k, len(values))):
            if norms[i] > max(self.tol * size, floor):
                found.add(i)
            elif bounds[i] > max(self.accuracy * size, floor):
                rival = max(range(i, len(values)), key=lambda j: values[j] + norms[j])
                found.add(rival if norms[rival] > norms[i] else i)
        strict = self.accuracy < STRICT
        vague = max((self.accuracy**0.5 if strict else GUARD) * size, floor)
        resolved = self.block if strict else self.k + 1
        found.update(i for i in range(self.k, min(resolved, len(values))) if norms[i] > vague)
        return sorted(found)

    def covers(self, above: float | None) -> bool:
        return above is None or self.k >= self.space.operator.size or float(self.values[self.k - 1]) <= above

    def improve(self, pending: list[int]) -> bool:
        """One iteration on the pending pairs; False if their residuals add nothing to the space."""
        self._shrink_if_full(len(pending))
        rows = self.residuals[pending]
        kept = self.coefficients[: self.k]
        grown = self.space.expand(rows)
        self.previous = torch.nn.functional.pad(kept, (0, grown))
        self._rayleigh_ritz()
        return grown > 0

    def widen(self, seed: Seed) -> bool:
        """Want more pairs; the guards become wanted and random vectors take their place."""
        self.k = min(self.k + max(2, self.k // 2), self.space.operator.size)
        missing = self.block - len(self.space)
        if missing > 0:
            self.space.expand(random_rows(self.space.operator, missing, seed))
        self._rayleigh_ritz()
        return True

    def _shrink_if_full(self, more: int) -> None:
        window = max(self.window or 24, self.block + 2 * self.k)
        if len(self.space) + more <= window:
            return
        previous = self.previous[:, : len(self.space)]
        self.space.shrink(torch.cat([self.coefficients[: self.block], previous]))
        self.coefficients = self.space.ritz()[1]

    def result(self, hvps: int, above: float | None) -> Eigenpairs:
        k = min(self.k, len(self.values))
        kind = self.space.basis
        return Eigenpairs(
            values=self.values[:k].to(kind),
            vectors=self.vectors[:k].T,
            residuals=torch.from_numpy(self.norms[:k]).to(kind),
            bounds=torch.from_numpy(self.bounds[:k]).to(kind),
            hvps=hvps,
            converged=not self.pending() and self.covers(above),
            basis=self.vectors.T,
        )


def seeded(seed: Seed) -> torch.Generator:
    """The generator, or a new one with the seed."""
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


def random_rows(operator: Operator, count: int, seed: Seed) -> Tensor:
    """Gaussian vectors as rows, shape (count, P)."""
    rows = torch.randn((count, operator.size), generator=seeded(seed), dtype=operator.dtype)
    return rows.to(operator.device)


def _start_rows(operator: Operator, start: Eigenpairs | Tensor | None, count: int, seed: Seed) -> Tensor:
    """Warm rows, filled up with random ones to the count."""
    if start is None:
        return random_rows(operator, count, seed)
    columns = start.basis if isinstance(start, Eigenpairs) else start
    if columns.ndim != 2 or columns.shape[0] != operator.size:
        raise ValueError(f"start must have shape ({operator.size}, any), got {tuple(columns.shape)}")
    rows = columns.T.to(operator.device, operator.dtype)[:count]
    if len(rows) < count:
        rows = torch.cat([rows, random_rows(operator, count - len(rows), seed)])
    return rows


def _check(operator: Operator, k: int, tol: float, accuracy: float, guards: int, max_hvps: int) -> None:
    if not 1 <= k <= operator.size:
        raise ValueError(f"k must be between 1 and P = {operator.size}, got {k}")
    for name, value in (("tol", tol), ("accuracy", accuracy)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if guards < 0:
        raise ValueError(f"guards must not be negative, got {guards}")
    if max_hvps < k + guards:
        raise ValueError(f"max_hvps must be at least k + guards = {k + guards}, got {max_hvps}")
