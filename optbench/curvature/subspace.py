"""A growing orthonormal basis with its image under an operator, and Rayleigh-Ritz on it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from optbench.curvature.operators import Operator

STEEP = 0.1  # part of a unit row outside those before it, below which its Gram matrix tells too little
ENOUGH = 0.7  # part above which one pass leaves it orthogonal up to rounding


class Subspace:
    """Orthonormal vectors q_1 … q_n as rows, their images A q_i and T = Q A Qᵀ.

    Every product with A is kept, so that growing by b vectors costs b products, whatever n is.

    Args:
        operator: A, symmetric, shape (P, P).
    """

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        nothing = torch.empty((0, operator.size), dtype=operator.dtype, device=operator.device)
        self.basis, self.images = nothing, nothing
        self.projected = np.zeros((0, 0))  # in double precision on the CPU, like all that is as small

    def __len__(self) -> int:
        """Number of basis vectors."""
        return len(self.basis)

    def expand(self, rows: Tensor) -> int:
        """Add what of the rows lies outside the span; returns how many vectors that is.

        Raises:
            FloatingPointError: If a product is not finite.
        """
        fresh = self._outside(rows)
        if not len(fresh):
            return 0
        images = (self.operator @ fresh.T).T
        self.basis, self.images = _appended(self.basis, fresh), _appended(self.images, images)
        edge = small(self.basis @ images.T)
        if not np.isfinite(edge).all():
            raise FloatingPointError("the curvature product is not finite: the weights have diverged or overflow")
        before = len(self) - len(fresh)
        grown = np.empty((len(self), len(self)))
        grown[:before, :before] = self.projected
        grown[:, before:], grown[before:, :before] = edge, edge[:before].T
        grown[before:, before:] = (edge[before:] + edge[before:].T) / 2
        self.projected = grown
        return len(fresh)

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values, descending, shape (n,), and their coefficients as rows, shape (n, n)."""
        values, columns = np.linalg.eigh(self.projected)
        return torch.from_numpy(values[::-1].copy()), torch.from_numpy(columns.T[::-1].copy())

    def combine(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors with the given coefficients, shape (m, n), and their images, each (m, P)."""
        weights = coefficients.to(self.basis)
        return weights @ self.basis, weights @ self.images

    def shrink(self, coefficients: Tensor) -> None:
        """Keep the span of the vectors with the given coefficients only; costs no product."""
        kept = torch.linalg.qr(coefficients.T)[0].T
        self.basis, self.images = self.combine(kept)
        self.projected = kept.numpy() @ self.projected @ kept.numpy().T

    def _outside(self, rows: Tensor) -> Tensor:
        """An orthonormal basis of the rows' part outside the span, near-dependent ones dropped."""
        rows = rows[: self.operator.size - len(self)]
        if not len(rows):
            return rows
        for _ in range(2):  # twice is enough (Kahan and Parlett): the first pass may leave rounding
            found = self._cholesky(rows)
            if found is None:
                return self._outside_with_care(rows)
            rows, part = found
            if part > ENOUGH:
                break
        return rows

    def _cholesky(self, rows: Tensor) -> tuple[Tensor, float] | None:
        """One pass of orthogonalisation from inner products alone, two multiplications of long vectors.

        It squares condition numbers: None where the rows are too dependent for that. Beside the rows, the smallest
        part of a unit row that was outside the ones before it.
        """
        stack = torch.cat([self.basis, rows])
        gram = small(stack @ rows.T)
        inside, own = gram[: len(self)], gram[len(self) :]
        lengths = own.diagonal()
        if not (lengths.min() > torch.finfo(rows.dtype).tiny ** 0.5 and np.isfinite(gram).all()):
            return None
        scale = 1 / np.sqrt(lengths)
        cosines = (own - inside.T @ inside) * np.outer(scale, scale)
        try:
            factor = np.linalg.cholesky((cosines + cosines.T) / 2)
        except np.linalg.LinAlgError:
            return None
        part = float(factor.diagonal().min())
        if part < STEEP:
            return None
        weights = np.linalg.solve(factor, np.concatenate([-inside.T, np.eye(len(rows))], 1) * scale[:, None])
        return torch.from_numpy(weights).to(stack) @ stack, part

    def _outside_with_care(self, rows: Tensor) -> Tensor:
        tiny = 100 * torch.finfo(rows.dtype).eps
        for _ in range(2):
            rows = torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)
            if len(self):
                rows = torch.addmm(rows, rows @ self.basis.T, self.basis, alpha=-1)
            rows = _independent(rows, tiny)
        return torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)


def _appended(rows: Tensor, fresh: Tensor) -> Tensor:
    """The rows and the fresh ones below them, in the rows' own memory where that has room, which only they may use."""
    room = rows.untyped_storage().nbytes() // max(1, rows.element_size() * rows.shape[1])
    count = len(rows) + len(fresh)
    if count > room:
        held = rows.new_empty((2 * count, rows.shape[1]))  # pages that are never written cost nothing
        held[: len(rows)] = rows
    else:
        held = rows.as_strided((room, rows.shape[1]), rows.stride())
    held[len(rows) : count] = fresh
    return held[:count]


def small(matrix: Tensor) -> np.ndarray:
    """A matrix of a few inner products, in double precision on the CPU, where LAPACK is at its quickest for it."""
    found: np.ndarray = matrix.cpu().numpy().astype(np.float64)
    return found


def _independent(rows: Tensor, tiny: float) -> Tensor:
    """The rows orthogonalised, without those whose part outside the ones before is tiny."""
    lengths = rows.norm(dim=1)
    if not bool((lengths > tiny).all()):
        rows = rows[lengths > tiny]
    if len(rows) > 1:
        columns, triangle = torch.linalg.qr(rows.T)
        rows = columns.T[triangle.diagonal().abs() > tiny]
    return rows
