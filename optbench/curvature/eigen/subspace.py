"""Rayleigh-Ritz on a growing orthonormal basis whose image under an operator is kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from optbench.curvature.operators import Operator
from optbench.curvature.symmetry import WRONG, not_symmetric

# Cholesky orthogonalization squares condition numbers. It is used while every unit row has a part
# of at least STEEP outside the span of the rows before it.
STEEP = 0.1
ENOUGH = 0.7  # such a part above which one pass leaves rows orthogonal up to rounding
PIECE = 4096  # numbers of a row whose inner products fit in a processor's cache


class Subspace:
    """Orthonormal vectors q_1 … q_n, their images A q_i and T = Q A Qᵀ.

    Every product with A is kept, so that growing by b vectors costs b products, whatever n is. A
    vector and its image are adjacent in memory: beyond some 10⁵ parameters the cost is that of
    reading memory, and a computation with both reads it once.

    Args:
        operator: A, symmetric, shape (P, P).
    """

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self._held = torch.empty(
            (0, 2, operator.size), dtype=operator.dtype, device=operator.device
        )
        self._count = 0
        # T, in double precision on the CPU, like all small matrices; see `small`.
        self.projected = np.zeros((0, 0))

    def __len__(self) -> int:
        """Number of basis vectors."""
        return self._count

    @property
    def basis(self) -> Tensor:
        """Q, as rows, shape (n, P)."""
        return self._held[: self._count, 0]

    @property
    def images(self) -> Tensor:
        """A Q, as rows, shape (n, P)."""
        return self._held[: self._count, 1]

    def pairs(self, since: int = 0) -> Tensor:
        """Rows q_i, A q_i, q_{i+1}, A q_{i+1}, … from i = since on, shape (2 (n − since), P)."""
        return self._held[since : self._count].view(-1, self.operator.size)

    def expand(self, rows: Tensor) -> int:
        """Add the part of the rows outside the span; return the number of vectors added.

        Raises:
            FloatingPointError: If a product is not finite.
            MeasurementError: If products are not symmetric.
        """
        fresh = self._outside(rows)
        if not len(fresh):
            return 0
        before = len(self)
        self._append(fresh, (self.operator @ fresh.T).T)
        # The new columns of T = Q A Qᵀ; their lower block is symmetric if A is.
        new_columns = inner(self.images[before:], self.basis).T
        corner = new_columns[before:]
        skew = float(np.abs(corner - corner.T).max())
        if skew > WRONG * _largest_norm(self.images[before:]):
            raise not_symmetric(f"two vectors of the search differ by {skew:.3g}")
        grown = np.empty((len(self), len(self)))
        grown[:before, :before] = self.projected
        grown[:, before:], grown[before:, :before] = new_columns, new_columns[:before].T
        grown[before:, before:] = (corner + corner.T) / 2
        self.projected = grown
        return len(fresh)

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values, descending, shape (n,), and their coefficients as rows, shape (n, n)."""
        values, columns = np.linalg.eigh(self.projected)
        return values[::-1].copy(), columns.T[::-1].copy()

    def combine(self, coefficients: np.ndarray) -> Tensor:
        """Vectors with the given coefficients, shape (m, n), as rows, shape (m, P)."""
        return self._like(coefficients) @ self.basis

    def residuals(self, values: np.ndarray, coefficients: np.ndarray) -> Tensor:
        """Residuals A u − θ u as rows, shape (m, P).

        Args:
            values: θ, shape (m,).
            coefficients: Coefficients of the vectors u, shape (m, n).
        """
        # One multiplication with the interleaved rows q_i, A q_i.
        weights = np.stack([-values[:, None] * coefficients, coefficients], 2)
        return self._like(weights.reshape(len(values), -1)) @ self.pairs()

    def shrink(self, coefficients: np.ndarray) -> np.ndarray:
        """Shrink the space to the span of some vectors.

        Args:
            coefficients: Coefficients of the vectors, shape (m, n).

        Returns:
            Coefficients of the new basis in the old one, shape (m, n).
        """
        kept = np.linalg.qr(coefficients.T)[0].T
        weights = self._like(kept)
        basis, images = weights @ self.basis, weights @ self.images
        self._count = 0
        self._append(basis, images)
        self.projected = kept @ self.projected @ kept.T  # T in the new basis
        return kept

    def _append(self, vectors: Tensor, images: Tensor) -> None:
        count = self._count + len(vectors)
        if count > len(self._held):
            held = self._held.new_empty((max(2 * count, 16), *self._held.shape[1:]))
            # Room for twice as many: memory pages cost nothing until they are written.
            held[: self._count] = self._held[: self._count]
            self._held = held
        self._held[self._count : count, 0], self._held[self._count : count, 1] = vectors, images
        self._count = count

    def _like(self, weights: np.ndarray) -> Tensor:
        return torch.from_numpy(weights).to(self._held)

    def _outside(self, rows: Tensor) -> Tensor:
        """Orthonormal basis of the rows' part outside the span, without nearly dependent rows."""
        rows = rows[: self.operator.size - len(self)]
        if not len(rows):
            return rows
        # Twice is enough (Kahan and Parlett): the first pass may leave rounding.
        for _ in range(2):
            orthogonalized = self._cholesky(rows)
            if orthogonalized is None:
                return self._outside_with_care(rows)
            rows, part = orthogonalized
            if part > ENOUGH:
                break
        return rows

    def _cholesky(self, rows: Tensor) -> tuple[Tensor, float] | None:
        """One pass of orthogonalization by the Cholesky factor of a Gram matrix.

        With rows X scaled to unit length, C = Q Xᵀ and L Lᵀ = X Xᵀ − CᵀC, the new rows are
        L⁻¹ (X − CᵀQ). Long vectors are multiplied twice only.

        Returns:
            The new rows, and the smallest part of a unit row outside the span of the ones before
            it. None where rows are too dependent, since the method squares condition numbers.
        """
        inside, gram = inner(rows, self.basis).T, inner(rows, rows)
        squares = gram.diagonal()
        if not (squares.min() > torch.finfo(rows.dtype).tiny ** 0.5 and np.isfinite(gram).all()):
            return None
        scale = 1 / np.sqrt(squares)
        inside, cosines = inside * scale, gram * np.outer(scale, scale)
        try:
            factor = np.linalg.cholesky(cosines - inside.T @ inside)
        except np.linalg.LinAlgError:
            return None
        part = float(factor.diagonal().min())
        if not part >= STEEP:
            return None
        weights = np.linalg.inv(factor)  # L⁻¹, for the unit rows
        fresh = self._like(weights * scale) @ rows
        if len(self):
            fresh = torch.addmm(fresh, self._like(-weights @ inside.T), self.basis)
        return fresh, part

    def _outside_with_care(self, rows: Tensor) -> Tensor:
        """Two passes of Gram-Schmidt against the basis, and a QR factorization of the rest."""
        tiny = 100 * torch.finfo(rows.dtype).eps
        for _ in range(2):
            rows = torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)
            if len(self):
                rows = torch.addmm(rows, rows @ self.basis.T, self.basis, alpha=-1)
            rows = _independent(rows, tiny)
        return torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)


def inner(a: Tensor, b: Tensor) -> np.ndarray:
    """Inner products A Bᵀ of long rows, shapes (m, P) and (n, P), as a `small` matrix.

    Long rows are cut into pieces of `PIECE` numbers, whose inner products are then added. This is
    up to three times as fast as one multiplication of such oblong matrices. In float32 it is also
    more accurate, since each sum is over fewer terms.
    """
    whole = a.shape[1] // PIECE
    if whole < 4:
        return small(a @ b.T)
    cut = whole * PIECE
    left, right = (x[:, :cut].unflatten(1, (whole, PIECE)).transpose(0, 1) for x in (a, b))
    return small(torch.bmm(left, right.mT).sum(0) + a[:, cut:] @ b[:, cut:].T)


def _largest_norm(rows: Tensor) -> float:
    """Largest Euclidean norm of the rows; its square may over- or underflow."""
    size = float(rows.abs().max())
    # Scaled by the largest entry, so that no square over- or underflows.
    return size * float((rows / size).norm(dim=1).max()) if size else 0.0


def small(matrix: Tensor) -> np.ndarray:
    """A small matrix in double precision on the CPU, where LAPACK is fastest for it."""
    double: np.ndarray = matrix.cpu().numpy().astype(np.float64)
    return double


def _independent(rows: Tensor, tiny: float) -> Tensor:
    """Orthonormal rows, without those whose part outside the span of the ones before is tiny."""
    lengths = rows.norm(dim=1)
    if not bool((lengths > tiny).all()):
        rows = rows[lengths > tiny]
    if len(rows) > 1:
        columns, triangle = torch.linalg.qr(rows.T)
        rows = columns.T[triangle.diagonal().abs() > tiny]
    return rows
