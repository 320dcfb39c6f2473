"""What an earlier solve knew of a matrix, as a guide to what the next one should look at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from optbench.curvature.eigen.subspace import Subspace, inner

# squared part of a remembered direction outside a space below which the space has it already
NEW = 0.001


class Recycled:
    """Directions z_1 … z_m, rows of Z, with A ≈ Σ_j θ_j z_j z_jᵀ, of a matrix that has changed since.

    Where eigenvalues crowd, as they do at the edge of stability, most of what a residual must be
    followed for lies along eigenvectors that the last solve met and did not need. Nothing that is
    reported rests on this memory, which costs no product: it only chooses the directions that
    products are spent on.

    Args:
        rows: Z, shape (m, P), about orthonormal.
        values: θ, shape (m,).
        space: The space of the search, empty yet.

    References:
        Parks et al. (2006), Recycling Krylov subspaces, SIAM J. Sci. Comput. 28(5); Davidson
        (1975), J. Comput. Phys. 17.
    """

    def __init__(self, rows: Tensor, values: np.ndarray, space: Subspace) -> None:
        self.rows, self.values, self.space = rows, values, space
        self.gram = inner(rows, rows)
        self.forget()

    def forget(self) -> None:
        """Observe the space anew hereafter: its basis has been changed."""
        self.inside = self.seen = np.zeros((0, len(self.rows)))  # Q Zᵀ and A Q Zᵀ, shape (n, m)

    def observe(self) -> None:
        """Take note of what has been added to the space."""
        if len(self.space) > len(self.inside):
            found = inner(self.space.pairs(len(self.inside)), self.rows)
            self.inside = np.concatenate([self.inside, found[::2]])
            self.seen = np.concatenate([self.seen, found[1::2]])

    def steered(
        self,
        residuals: Tensor,
        norms: np.ndarray,
        values: np.ndarray,
        coefficients: np.ndarray,
        size: float,
    ) -> Tensor:
        """Davidson's corrections, (s/(θ − A)) R up to sign, with the memory in place of A and 0 where it has nothing.

        A residual's part along z_j is enlarged by s/(θ − θ_j), as a small change of A mixes
        eigenvectors.

        Args:
            residuals: R, shape (b, P), of Ritz pairs of the space.
            norms: ‖R‖, shape (b,); θ − θ_j is taken to be no smaller, and positive.
            values: θ, shape (b,).
            coefficients: Of the Ritz vectors in the space, shape (b, n).
            size: s, about ‖A‖.

        Returns:
            Their parts outside the space, up to rounding, shape (b, P).
        """
        overlaps = coefficients @ self.seen - values[:, None] * (coefficients @ self.inside)
        gaps = np.maximum(values[:, None] - self.values, norms[:, None])
        weights = overlaps * (size / gaps - 1)
        steered = torch.addmm(residuals, self._like(weights), self.rows)
        return steered.addmm_(self._like(-weights @ self.inside.T), self.space.basis)

    def merged(self, count: int, ceiling: float) -> tuple[np.ndarray, Tensor]:
        """Rayleigh-Ritz on the space and the memory together, the memory's own part of A as it was.

        What nobody has looked at is taken to lie at 0, or as low as the lowest that was seen.

        Args:
            count: How many pairs are wanted.
            ceiling: What A does not exceed beside the pairs that were found: the memory may be of a
                larger matrix.

        Returns:
            At most `count` Ritz values, descending, and their vectors as rows: the memory for the
            next time.
        """
        space = self.space
        lengths, turn = np.linalg.eigh(self.gram - self.inside.T @ self.inside)
        lengths, turn = lengths[lengths > NEW], turn[:, lengths > NEW]
        # of Z - (Z Qᵀ) Q: an orthonormal basis of what the space lacks
        outside = turn / np.sqrt(lengths)
        shadow = turn * np.sqrt(lengths)  # and its inner products with Z
        edge = (self.seen - space.projected @ self.inside) @ outside
        floor = min(self.values.min(), np.diagonal(space.projected).min(), 0.0)
        kept = (shadow.T * (np.minimum(self.values, ceiling) - floor)) @ shadow + floor * np.eye(
            len(lengths)
        )
        values, columns = np.linalg.eigh(np.block([[space.projected, edge], [edge.T, kept]]))
        top = columns.T[::-1][:count]
        ours, theirs = top[:, : len(space)], top[:, len(space) :] @ outside.T
        own = space.combine(ours - theirs @ self.inside.T)
        return values[::-1][:count].copy(), own.addmm_(self._like(theirs), self.rows)

    def _like(self, weights: np.ndarray) -> Tensor:
        return torch.from_numpy(weights).to(self.rows)
