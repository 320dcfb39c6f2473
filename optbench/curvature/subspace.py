"""A growing orthonormal basis with its image under an operator, and Rayleigh-Ritz on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optbench.curvature.operators import Operator


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
        self.projected = nothing[:, :0]

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
        cross, corner = self.basis @ images.T, fresh @ images.T
        if not math.isfinite(float(images.sum())):
            raise FloatingPointError("the curvature product is not finite: the weights have diverged or overflow")
        self.projected = torch.cat(
            [
                torch.cat([self.projected, cross], 1),
                torch.cat([cross.T, (corner + corner.T) / 2], 1),
            ]
        )
        self.basis = torch.cat([self.basis, fresh])
        self.images = torch.cat([self.images, images])
        return len(fresh)

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values, descending, shape (n,), and their coefficients as rows, shape (n, n)."""
        # On the CPU and in double precision: n is small, and eigh waits for the device anyway.
        values, columns = torch.linalg.eigh(self.projected.double().cpu())
        return values.flip(0), columns.T.flip(0)

    def combine(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors with the given coefficients, shape (m, n), and their images, each (m, P)."""
        weights = coefficients.to(self.basis)
        return weights @ self.basis, weights @ self.images

    def shrink(self, coefficients: Tensor) -> None:
        """Keep the span of the vectors with the given coefficients only; costs no product."""
        kept = torch.linalg.qr(coefficients.T)[0].T
        self.basis, self.images = self.combine(kept)
        weights = kept.to(self.projected)
        self.projected = weights @ self.projected @ weights.T

    def _outside(self, rows: Tensor) -> Tensor:
        """An orthonormal basis of the rows' part outside the span, near-dependent ones dropped."""
        tiny = 100 * torch.finfo(rows.dtype).eps
        rows = rows[: self.operator.size - len(self)]
        for _ in range(2):  # twice is enough (Kahan and Parlett): the first pass leaves rounding
            rows = torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)
            if len(self):
                rows = torch.addmm(rows, rows @ self.basis.T, self.basis, alpha=-1)
            rows = _independent(rows, tiny)
        return torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)


def _independent(rows: Tensor, tiny: float) -> Tensor:
    """The rows orthogonalised, without those whose part outside the ones before is tiny."""
    lengths = rows.norm(dim=1)
    if not bool((lengths > tiny).all()):
        rows = rows[lengths > tiny]
    if len(rows) > 1:
        columns, triangle = torch.linalg.qr(rows.T)
        rows = columns.T[triangle.diagonal().abs() > tiny]
    return rows
