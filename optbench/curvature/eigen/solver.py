"""One search for the largest eigenvalues: a space that grows by residuals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optbench.curvature.eigen.bounds import error_bounds
from optbench.curvature.eigen.pairs import Eigenpairs, Seed, random_rows
from optbench.curvature.eigen.recycling import Recycled
from optbench.curvature.eigen.subspace import Subspace, inner, small
from optbench.curvature.operators import Operator

# Residual that a guard must reach, relative to |θ_1|. With a larger one it could be missed that
# the guard's eigenvalue, or one near it, overtakes a wanted one.
GUARD = 0.1
# Below this accuracy, guards must reach its square root instead. Of m eigenvalues that are closer
# than that, a space grown from fewer than m vectors holds fewer. The missing one may be the
# largest, and then the gap that the bounds rest on is wrong.
STRICT = 1e-3
# Error of θ from rounding in products, in ε ‖A‖: up to 50 were seen in float32 (CIFAR, P = 2e5,
# N = 1e3).
ROUNDING = 80


# Vectors kept; beyond, the space shrinks to LOBPCG's three blocks. It holds 2 · WINDOW · P numbers.
WINDOW = 24
# Directions remembered beside the block for the next start, and the most numbers that they may be.
EXTRA, NUMBERS = 9, 2**26


@dataclass(frozen=True)
class Settings:
    """Settings of a search: what it looks for and what it may cost; see `top_eigenpairs`."""

    k: int
    guards: int
    tol: float
    accuracy: float
    trust: float | None
    max_hvps: int
    seed: Seed


class Solver:
    """State of a search by block LOBPCG with a longer memory; see `top_eigenpairs`."""

    def __init__(
        self,
        operator: Operator,
        settings: Settings,
        start: Eigenpairs | None,
    ) -> None:
        self.space = Subspace(operator)
        self.recycled = None if start is None else _recycled(start, self.space)
        self.k, self.guards = settings.k, settings.guards
        self.tol, self.accuracy = settings.tol, settings.accuracy
        self.epsilon = torch.finfo(operator.dtype).eps
        self.previous = np.empty((0, 0))
        # The start's pairs, while its guards stand in for guards of this search.
        self.held: Eigenpairs | None = None
        self.rest = -math.inf  # μ, upper bound of the eigenvalues without a vector in the block

    @property
    def block(self) -> int:
        """Number of Ritz pairs in the block: the wanted and, unless they are held, the guards."""
        return min(self.k + self.guards * (self.held is None), self.space.operator.size)

    def hold(self, start: Eigenpairs, trust: float) -> bool:
        """Try to hold the start's pairs without looking at their guards; return whether it worked.

        1. Do Rayleigh-Ritz on the K vectors, one product each.
        2. Take μ = start.rest + trust · max_i (|θ_i − θ_i before| + ‖R_i‖).
        3. Add the residuals of pairs whose bound is above the accuracy, once.

        Where it fails, the space keeps the vectors for the search that follows.
        """
        # Without guards the last solve knew no μ.
        if math.isinf(start.rest) or len(start.values) != self.k:
            return False
        self.held = start
        self.begin(start.vectors.T.to(self.space.operator.device, self.space.operator.dtype))
        moved = np.abs(self.values - small(start.values)) + self.norms
        self.rest = start.rest + trust * float(moved.max())
        self._bound()
        pending = self.pending()
        # Without θ_K > μ there is no gap, and smaller residuals do not help.
        if pending and float(self.values[-1]) > self.rest:
            self.improve(pending)
            pending = self.pending()
        # A further Ritz value above μ would disprove the assumption about μ.
        if not pending and bool((self.ritz_values[self.k :] <= self.rest).all()):
            return True
        self.held, self.rest = None, -math.inf
        return False

    def begin(self, rows: Tensor, seed: Seed = 0) -> None:
        """Start with rows, shape (any, P), a product each; random ones replace dependent ones."""
        self._expand(rows)
        self._fill(seed)
        self._rayleigh_ritz()

    def _fill(self, seed: Seed) -> None:
        missing = self.block - len(self.space)
        if missing > 0:
            self._expand(random_rows(self.space.operator, missing, seed))

    def _expand(self, rows: Tensor) -> int:
        grown = self.space.expand(rows)
        if self.recycled is not None:
            self.recycled.observe()
        return grown

    def _rayleigh_ritz(self) -> None:
        self.ritz_values, self.coefficients = self.space.ritz()
        count = min(self.block, len(self.space))
        self.values = self.ritz_values[:count]
        self.residuals = self.space.residuals(self.values, self.coefficients[:count])
        self.gram = inner(self.residuals, self.residuals)
        self.norms = np.sqrt(self.gram.diagonal())
        self.size = float(np.abs(self.ritz_values).max())  # lower estimate of ‖A‖
        self._bound()

    def _bound(self) -> None:
        self.bounds = error_bounds(self.values, self.gram, self.rest, self.k)

    def pending(self) -> list[int]:
        """Pairs to improve next, as sorted indices.

        1. Wanted pairs whose residual is above tol · |θ_1|.
        2. For wanted pairs whose bound is above the accuracy: the pair or its rival, the pair with
           the largest θ_j + ‖R_j‖, whichever has the larger residual.
        3. Guards whose residual is too large to notice an overtaking.
        """
        floor = 30 * self.epsilon * self.size  # residuals below it are rounding
        values, norms, bounds = self.values.tolist(), self.norms.tolist(), self.bounds.tolist()
        size = abs(values[0])
        # The rounding allowance is added to bounds at the end, so it is subtracted here; at least a
        # quarter of the accuracy remains.
        accuracy = max(self.accuracy * size - self._rounding(), self.accuracy * size / 4, floor)
        chosen = set()
        for i in range(min(self.k, len(values))):
            if self.held is None and norms[i] > max(self.tol * size, floor):
                chosen.add(i)
            elif bounds[i] > accuracy:
                rival = max(range(i, len(values)), key=lambda j: values[j] + norms[j])
                chosen.add(rival if norms[rival] > norms[i] else i)
        guard_tol = self.accuracy**0.5 if self.accuracy < STRICT else GUARD
        allowed = max(guard_tol * size, floor)
        chosen.update(i for i in range(self.k, len(values)) if norms[i] > allowed)
        return sorted(chosen)

    def improve(self, pending: list[int]) -> bool:
        """One iteration on the pending pairs; False if their residuals add nothing to the space."""
        self._shrink_if_full(len(pending))
        rows = torch.cat([self.residuals[i : i + 1] for i in pending])
        if self.recycled is not None:
            rows = self.recycled.steered(
                rows,
                self.norms[pending],
                self.values[pending],
                self.coefficients[pending],
                self.size,
            )
        self.previous = self.coefficients[: self.k]
        grown = self._expand(rows)
        self._rayleigh_ritz()
        return grown > 0

    def _shrink_if_full(self, more: int) -> None:
        """Shrink the space to the Ritz vectors of the block and of the iteration before."""
        window = max(WINDOW, 2 * self.block + self.k)
        if len(self.space) + more <= window:
            return
        grown = len(self.space) - self.previous.shape[1]  # since the iteration before
        kept = self.space.shrink(
            np.concatenate(
                [self.coefficients[: self.block], np.pad(self.previous, ((0, 0), (0, grown)))]
            )
        )
        # The same Ritz vectors, to which the residuals belong, in the new basis.
        self.coefficients = self.coefficients[: self.block] @ kept.T
        if self.recycled is not None:
            self.recycled.forget()
            self.recycled.observe()

    def _rounding(self) -> float:
        return ROUNDING * self.epsilon * self.size

    def _rest(self, k: int) -> float:
        if self.held is not None:
            return self.rest
        # Above the guards' θ_j + ‖R_j‖ A has no eigenvalue on the complement, if none was lost.
        upper = self.values[k:] + self.norms[k:]
        return float(upper.max()) if len(upper) else math.inf

    def result(self, hvps: int) -> Eigenpairs:
        """The wanted pairs as they are, and the directions to remember, guards among them."""
        k = min(self.k, len(self.values))
        like = self.space.basis  # for dtype and device
        remembered = min(self.k + self.guards + EXTRA, NUMBERS // self.space.operator.size)
        estimates, rows = self._remembered(max(remembered, self.block))
        return Eigenpairs(
            values=torch.from_numpy(self.values[:k].copy()).to(like),
            vectors=self.space.combine(self.coefficients[:k]).T,
            residuals=torch.from_numpy(self.norms[:k]).to(like),
            bounds=torch.from_numpy(self.bounds[:k] + self._rounding()).to(like),
            hvps=hvps,
            converged=not self.pending(),
            basis=rows.T,
            rest=self._rest(k),
            held=self.held is not None,
            estimates=torch.from_numpy(estimates).to(like),
        )

    def _remembered(self, count: int) -> tuple[np.ndarray, Tensor]:
        if self.recycled is not None:
            return self.recycled.merged(count, self._rest(self.k))
        return self.ritz_values[:count].copy(), self.space.combine(self.coefficients[:count])


def _recycled(start: Eigenpairs, space: Subspace) -> Recycled | None:
    if start.estimates is None:
        return None
    rows = start.basis.T.to(space.operator.device, space.operator.dtype).contiguous()
    return Recycled(rows, small(start.estimates), space)
