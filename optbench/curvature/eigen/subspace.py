"""A growing orthonormal basis with its image under an operator, and Rayleigh-Ritz on it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from optbench.curvature.operators import Operator
from optbench.curvature.symmetry import WRONG, not_symmetric

STEEP = (
    0.1  # part of a unit row outside those before it, below which its Gram matrix tells too little
)
PIECE = 4096  # numbers of a row whose inner products stay in a processor's cache
ENOUGH = 0.7  # part above which one pass leaves it orthogonal up to rounding


class Subspace:
    """Orthonormal vectors q_1 … q_n, their images A q_i and T = Q A Qᵀ.

    Every product with A is kept, so that growing by b vectors costs b products, whatever n is. A
    vector and its image lie side by side: beyond some 10⁵ parameters the cost is that of reading
    memory, and what needs both reads it once.

    Args:
        operator: A, symmetric, shape (P, P).
    """

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self._held = torch.empty(
            (0, 2, operator.size), dtype=operator.dtype, device=operator.device
        )
        self._count = 0
        # in double precision on the CPU, like all that is as small
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
        """q_i and A q_i in turn from the index on, as rows, shape (2 (n - since), P)."""
        return self._held[since : self._count].view(-1, self.operator.size)

    def expand(self, rows: Tensor) -> int:
        """Add what of the rows lies outside the span; returns how many vectors that is.

        Raises:
            FloatingPointError: If a product is not finite.
            MeasurementError: If products are not symmetric.
        """
        fresh = self._outside(rows)
        if not len(fresh):
            return 0
        before = len(self)
        self._append(fresh, (self.operator @ fresh.T).T)
        edge = inner(self.images[before:], self.basis).T
        skew = float(np.abs(edge[before:] - edge[before:].T).max())
        if skew > WRONG * _largest_norm(self.images[before:]):
            raise not_symmetric(f"two vectors of the search differ by {skew:.3g}")
        grown = np.empty((len(self), len(self)))
        grown[:before, :before] = self.projected
        grown[:, before:], grown[before:, :before] = edge, edge[:before].T
        grown[before:, before:] = (edge[before:] + edge[before:].T) / 2
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
        """A u - θ u of vectors with the given coefficients, shape (m, n), as rows, shape (m, P)."""
        weights = np.stack([-values[:, None] * coefficients, coefficients], 2)
        return self._like(weights.reshape(len(values), -1)) @ self.pairs()

    def shrink(self, coefficients: np.ndarray) -> np.ndarray:
        """Keep the span of the vectors with the given coefficients only; returns the coefficients of the new basis."""
        kept = np.linalg.qr(coefficients.T)[0].T
        weights = self._like(kept)
        basis, images = weights @ self.basis, weights @ self.images
        self._count = 0
        self._append(basis, images)
        self.projected = kept @ self.projected @ kept.T
        return kept

    def _append(self, vectors: Tensor, images: Tensor) -> None:
        count = self._count + len(vectors)
        if count > len(self._held):
            held = self._held.new_empty((max(2 * count, 16), *self._held.shape[1:]))
            # pages that are never written cost nothing
            held[: self._count] = self._held[: self._count]
            self._held = held
        self._held[self._count : count, 0], self._held[self._count : count, 1] = vectors, images
        self._count = count

    def _like(self, weights: np.ndarray) -> Tensor:
        return torch.from_numpy(weights).to(self._held)

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

        It squares condition numbers: None where the rows are too dependent for that. Beside the
        rows, the smallest part of a unit row that was outside the ones before it.
        """
        inside, own = inner(rows, self.basis).T, inner(rows, rows)
        lengths = own.diagonal()
        if not (lengths.min() > torch.finfo(rows.dtype).tiny ** 0.5 and np.isfinite(own).all()):
            return None
        scale = 1 / np.sqrt(lengths)
        inside, cosines = inside * scale, own * np.outer(scale, scale)
        try:
            factor = np.linalg.cholesky(cosines - inside.T @ inside)
        except np.linalg.LinAlgError:
            return None
        part = float(factor.diagonal().min())
        if not part >= STEEP:
            return None
        weights = np.linalg.inv(factor)
        fresh = self._like(weights * scale) @ rows
        return (
            torch.addmm(fresh, self._like(-weights @ inside.T), self.basis) if len(self) else fresh
        ), part

    def _outside_with_care(self, rows: Tensor) -> Tensor:
        tiny = 100 * torch.finfo(rows.dtype).eps
        for _ in range(2):
            rows = torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)
            if len(self):
                rows = torch.addmm(rows, rows @ self.basis.T, self.basis, alpha=-1)
            rows = _independent(rows, tiny)
        return torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)


def inner(a: Tensor, b: Tensor) -> np.ndarray:
    """A Bᵀ of long rows, shapes (m, P) and (n, P), as `small` has it.

    Long rows are taken in pieces, whose sums are then added: up to three times as fast as one
    multiplication of matrices that are so far from square, and in float32 closer by as much as the
    pieces are fewer than the terms.
    """
    whole = a.shape[1] // PIECE
    if whole < 4:
        return small(a @ b.T)
    cut = whole * PIECE
    left, right = (x[:, :cut].unflatten(1, (whole, PIECE)).transpose(0, 1) for x in (a, b))
    return small(torch.bmm(left, right.mT).sum(0) + a[:, cut:] @ b[:, cut:].T)


def _largest_norm(rows: Tensor) -> float:
    """The largest ‖·‖ of the rows, also where its square would over- or underflow."""
    size = float(rows.abs().max())
    return size * float((rows / size).norm(dim=1).max()) if size else 0.0


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
