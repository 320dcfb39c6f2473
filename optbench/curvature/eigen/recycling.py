"""Memory of an earlier solve, which guides the directions of the next one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from optbench.curvature.eigen.subspace import Subspace, inner

# Squared length of a remembered direction's part outside the space, below which it is dropped.
NEW = 0.001


class Recycled:
    """Directions z_1 … z_m, rows of Z, with A ≈ Σ_j θ_j z_j z_jᵀ for an earlier matrix A.

    Where eigenvalues crowd, as they do at the edge of stability, a residual lies mostly along
    eigenvectors that the last solve met but did not need. This memory costs no product. It only
    chooses the directions that products are spent on, and no reported number rests on it.

    Args:
        rows: Z, shape (m, P), about orthonormal.
        values: θ, shape (m,).
        space: The space of the search, still empty.

    References:
        Parks et al. (2006), Recycling Krylov subspaces, SIAM J. Sci. Comput. 28(5); Davidson
        (1975), J. Comput. Phys. 17.
    """

    def __init__(self, rows: Tensor, values: np.ndarray, space: Subspace) -> None:
        self.rows, self.values, self.space = rows, values, space
        self.gram = inner(rows, rows)
        self.forget()

    def forget(self) -> None:
        """Forget the overlaps with the space, whose basis has changed."""
        self.inside = self.seen = np.zeros((0, len(self.rows)))  # Q Zᵀ and A Q Zᵀ, shape (n, m)

    def observe(self) -> None:
        """Compute overlaps with the vectors that were added to the space."""
        if len(self.space) > len(self.inside):
            # Rows alternate between q_i and A q_i.
            overlaps = inner(self.space.pairs(len(self.inside)), self.rows)
            self.inside = np.concatenate([self.inside, overlaps[::2]])
            self.seen = np.concatenate([self.seen, overlaps[1::2]])

    def steered(
        self,
        residuals: Tensor,
        norms: np.ndarray,
        values: np.ndarray,
        coefficients: np.ndarray,
        size: float,
    ) -> Tensor:
        """Davidson's corrections s (θ − A)⁻¹ R, up to sign, with the memory in place of A.

        A residual's part along z_j is multiplied by s/(θ − θ_j): a small change of A mixes
        eigenvectors in proportion to 1/(θ − θ_j). The part outside the memory is left as it is.

        Args:
            residuals: Residuals R of Ritz pairs of the space, shape (b, P).
            norms: ‖R‖, shape (b,), a lower limit of θ − θ_j.
            values: Ritz values θ, shape (b,).
            coefficients: Coefficients of the Ritz vectors in the space, shape (b, n).
            size: s, about ‖A‖.

        Returns:
            The corrections' parts outside the space, up to rounding, shape (b, P).
        """
        # R Zᵀ = (A u − θ u) Zᵀ, from the overlaps with the space.
        overlaps = coefficients @ self.seen - values[:, None] * (coefficients @ self.inside)
        # s/(θ − θ_j) − 1 is the change of the part along z_j; ‖R‖ limits it where θ_j ≥ θ.
        gaps = np.maximum(values[:, None] - self.values, norms[:, None])
        weights = overlaps * (size / gaps - 1)
        steered = torch.addmm(residuals, self._like(weights), self.rows)
        return steered.addmm_(self._like(-weights @ self.inside.T), self.space.basis)

    def merged(self, count: int, ceiling: float) -> tuple[np.ndarray, Tensor]:
        """Rayleigh-Ritz on the space and the memory together.

        On the memory's part outside the space, A is taken to be as it was remembered, at most
        `ceiling`. Directions in neither are taken to have the lowest eigenvalue seen, or 0.

        Args:
            count: Number of pairs wanted.
            ceiling: Upper bound of A on the complement of the pairs found; remembered values may
                exceed it, since they belong to an earlier matrix.

        Returns:
            At most `count` Ritz values, descending, and their vectors as rows: the memory of the
            next search.
        """
        space = self.space
        # Eigenvectors of the Gram matrix of W = Z − (Z Qᵀ) Q, the memory's part outside the space.
        squares, turn = np.linalg.eigh(self.gram - self.inside.T @ self.inside)
        squares, turn = squares[squares > NEW], turn[:, squares > NEW]
        outside = turn / np.sqrt(squares)  # coefficients in W of an orthonormal basis B of its span
        shadow = turn * np.sqrt(squares)  # Z Bᵀ
        # [[Q A Qᵀ, Q A Bᵀ], [B A Qᵀ, B A Bᵀ]], the last block from the memory.
        coupling = (self.seen - space.projected @ self.inside) @ outside
        floor = min(self.values.min(), np.diagonal(space.projected).min(), 0.0)
        remembered = (shadow.T * (np.minimum(self.values, ceiling) - floor)) @ shadow
        remembered = remembered + floor * np.eye(len(squares))
        values, columns = np.linalg.eigh(
            np.block([[space.projected, coupling], [coupling.T, remembered]])
        )
        top = columns.T[::-1][:count]
        # Coefficients of the Ritz vectors in Q and in Z, by B = outsideᵀ (Z − (Z Qᵀ) Q).
        in_basis, in_memory = top[:, : len(space)], top[:, len(space) :] @ outside.T
        vectors = space.combine(in_basis - in_memory @ self.inside.T)
        return values[::-1][:count].copy(), vectors.addmm_(self._like(in_memory), self.rows)

    def _like(self, weights: np.ndarray) -> Tensor:
        return torch.from_numpy(weights).to(self.rows)
