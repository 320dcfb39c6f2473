"""Bounds on the distance of Ritz values from eigenvalues."""

from __future__ import annotations

import numpy as np


def error_bounds(
    theta: np.ndarray, gram: np.ndarray, rest: float = -np.inf, k: int | None = None
) -> np.ndarray:
    """Bounds on λ_i − θ_i from the residuals R_i = A u_i − θ_i u_i of a block of Ritz pairs.

    Two facts hold always: θ_i ≤ λ_i, and an eigenvalue lies within ‖R_i‖ of θ_i. No residual shows
    that it is the i-th, which the search may have lost. So the bounds are conditional: each is the
    smaller of two.

    (1) If every top eigenvalue is near a pair of its own, λ_i is at most the i-th largest of all
    θ_j + ‖R_j‖: a guard that has not converged may still overtake.

    (2) For j > i, with G the Gram matrix of R_1 … R_{j-1} and μ = max_{l ≥ j} θ_l + ‖R_l‖ < θ_i,

        0 ≤ λ_i − θ_i ≤ λ_i(diag(θ_1 … θ_{j-1}) + G / (θ_i − μ)) − θ_i.

    This is about ‖R_i‖² / gap, where the gap is that to the eigenvalues outside of the first j − 1,
    so a crowd among these does no harm. It follows from the Schur complement if A, restricted to
    the complement of u_1 … u_{j-1}, has no eigenvalue above μ. That holds if no eigenvalue was
    lost, which `audit` tests.

    Args:
        theta: Ritz values θ, descending, shape (M,), guards included.
        gram: Inner products R_iᵀR_j of all residuals, shape (M, M).
        rest: Upper bound of A on the complement of the block, if one is known; −∞ if not.
        k: Number of bounds wanted, the first ones; None for all M.

    Returns:
        Bounds, shape (k,), in the unit of the values.

    References:
        Parlett (1998), The Symmetric Eigenvalue Problem, chapters 10 and 11.
    """
    k = len(theta) if k is None else min(k, len(theta))
    # (1): the i-th largest θ_j + ‖R_j‖, `rest` among them.
    upper = np.append(theta + np.sqrt(gram.diagonal()), rest)
    bounds = np.sort(upper)[::-1][:k] - theta[:k]
    # (2), for every size j of the leading block; j = M needs a bound on the rest.
    for j in range(1, len(theta) + (rest > -np.inf)):
        mu = upper[j:].max()
        for i in range(min(j, k)):
            gap = theta[i] - mu
            if gap > 0 and gram[i, i] / gap < bounds[i]:  # a lower bound of (2): it may be smaller
                # λ_i of a j × j matrix, with indices from 0; eigvalsh sorts ascending.
                shifted = np.diag(theta[:j]) + gram[:j, :j] / gap
                above = np.linalg.eigvalsh(shifted)[j - 1 - i] if j > 1 else shifted[0, 0]
                bounds[i] = min(bounds[i], above - theta[i])
    # Rounding may leave a bound slightly negative.
    clipped: np.ndarray = bounds.clip(min=0)
    return clipped
