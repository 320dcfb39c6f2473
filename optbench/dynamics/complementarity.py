"""Semidefinite complementarity: X ⪰ 0, S = A + B[X] ⪰ 0, ⟨X, S⟩ = 0."""

import math

import numpy as np
from numpy.typing import NDArray

from optbench.errors import UserError

Matrix = NDArray[np.float64]

TOLERANCE = 1e-9
"""Largest residual, relative to the size of A."""


def complementary(a: Matrix, b: Matrix) -> Matrix:
    """Return X of X ⪰ 0, S = A + B[X] ⪰ 0, ⟨X, S⟩ = 0, for a positive semidefinite B.

    1. A ⪰ 0: X = 0.
    2. One dimension: X = −A/B.
    3. Else a semismooth Newton method on the normal map: with Z = X − S and Z₊ its projection on
       the cone, F(Z) = A + B[Z₊] + Z − Z₊ = 0. A step that does not lower ‖F‖ is halved.

    Args:
        a: A, symmetric, (K, K).
        b: B, (K, K, K, K), B[X]_ij = Σ_kl b_ijkl X_kl, symmetric and positive semidefinite as a
            matrix of pairs; what is not symmetric in it is dropped.

    Returns:
        X, (K, K).

    Raises:
        UserError: If no X was found to `TOLERANCE`.

    References:
        Cohen et al. (2025), arXiv:2410.24206, for the problem; Qi & Sun (2006),
        doi:10.1137/050624509, for the derivative of the projection.
    """
    k = len(a)
    if k == 0 or float(np.linalg.eigvalsh(a).min()) >= 0:
        return np.zeros_like(a)
    operator = b.reshape(k * k, k * k)
    operator = (operator + operator.T) / 2
    if k == 1:
        slope = float(operator[0, 0])
        if not slope > 0:
            raise UserError(
                f"nothing brings the eigenvalue back to the edge: its slope is {slope:.3g}"
            )
        return -a / slope
    # in units in which B has size 1, so that X and S are alike
    unit = float(np.linalg.norm(operator, 2)) or 1.0
    x = _newton(a, operator / unit)
    return (x + x.T) / (2 * unit)


def residual(a: Matrix, b: Matrix, x: Matrix) -> float:
    """Largest violation of the three conditions: −λ(X), −λ(S) and |⟨X, S⟩|^½."""
    s = a + np.einsum("ijkl,kl->ij", b, x)
    least = min(float(np.linalg.eigvalsh(m).min()) for m in (x, (s + s.T) / 2))
    return max(-least, math.sqrt(abs(float((x * s).sum()))), 0.0)


def _newton(a: Matrix, operator: Matrix) -> Matrix:
    k, size = len(a), float(np.abs(a).max())
    identity = np.eye(k * k)
    z = -a
    x, f = _normal_map(a, operator, z)
    for _ in range(100):
        if float(np.abs(f).max()) <= TOLERANCE * size:
            return x
        slope = _projection_slope(z)
        jacobian = operator @ slope + identity - slope
        # B may be singular: a little of the identity keeps the step finite
        step = np.linalg.solve(jacobian + 1e-12 * identity, -f.ravel()).reshape(k, k)
        step = (step + step.T) / 2
        share = 1.0
        while True:
            x_next, f_next = _normal_map(a, operator, z + share * step)
            if float(np.linalg.norm(f_next)) < float(np.linalg.norm(f)) or share < 1e-6:
                break
            share /= 2
        z, x, f = z + share * step, x_next, f_next
    raise UserError(
        f"the semidefinite complementarity problem was not solved: residual {np.abs(f).max():.2g} "
        f"of {size:.2g}"
    )


def _normal_map(a: Matrix, operator: Matrix, z: Matrix) -> tuple[Matrix, Matrix]:
    values, vectors = np.linalg.eigh(z)
    x = (vectors * np.maximum(values, 0)) @ vectors.T
    return x, a + (operator @ x.ravel()).reshape(a.shape) + z - x


def _projection_slope(z: Matrix) -> Matrix:
    """Derivative of Z ↦ Z₊ as a matrix on vec Z: V [Ω ∘ (Vᵀ · V)] Vᵀ.

    Ω_ij = (λ_i⁺ − λ_j⁺)/(λ_i − λ_j), and 1 or 0 where both have one sign.
    """
    values, vectors = np.linalg.eigh(z)
    positive = np.maximum(values, 0)
    gaps = values[:, None] - values[None, :]
    same = np.abs(gaps) < 1e-14 * max(1.0, float(np.abs(values).max()))
    weights = np.where(
        same,
        (values > 0)[:, None],
        (positive[:, None] - positive[None, :]) / np.where(same, 1, gaps),
    )
    basis = np.kron(vectors, vectors)
    result: Matrix = (basis * weights.ravel()) @ basis.T
    return result
