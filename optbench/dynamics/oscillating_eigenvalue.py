"""The multiplier of a training map: an edge of stability for every optimizer, without a formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_ANGLE = math.pi / 6
"""Least |arg μ| that counts as an oscillation: periods of at most 12 steps.

Around +1 lie flat directions, slow averages and drifts along negative curvature, none of which is
the instability that an edge is about."""

NO_ANGLE = 1e-2
"""Share of the largest |μ| below which a value is a 0: of state that is written anew."""

FIRST_LOOK = 8
"""Products before the first look at Ritz values."""

Product = Callable[[Tensor], Tensor]
Choose = Callable[[Tensor, Tensor], int]


@dataclass(frozen=True)
class Multiplier:
    """The oscillating eigenvalue of a Jacobian that is nearest to leaving the unit disc, or beyond.

    Attributes:
        value: μ = ρ e^{iθ}, θ in [0, π]; ρ < 1 is stable, an edge is met at ρ = 1. For gradient
            descent 1 − ηλ₁.
        residual: ‖J y − μ y‖ for the unit Ritz vector y, in the map's scaled coordinates, from
            products other than those of the search; for a normal J the error of μ is at most this.
        disagreement: ‖J y − J'y‖ of the search's product and the check's: error of the differences,
            large where the step has jumps or kinks.
        products: Jacobian-vector products of the search and the check.
        converged: Whether the search met its tolerance.
        vector: y, shape (size,), real or complex.
        others: All Ritz values, shape (m,): the outer ones are near eigenvalues.
    """

    value: complex
    residual: float
    disagreement: float
    products: int
    converged: bool
    vector: Tensor
    others: Tensor

    @property
    def growth(self) -> float:
        """|μ|: factor of a small oscillation per step."""
        return abs(self.value)

    @property
    def angle(self) -> float:
        """|arg μ|/π: 1 alternates with period two."""
        return abs(math.atan2(self.value.imag, self.value.real)) / math.pi


def oscillating(values: Tensor, vectors: Tensor | None = None) -> int:
    """Index of the eigenvalue of largest modulus among those with |arg μ| ≥ `LEAST_ANGLE`.

    Where none is, nothing oscillates, and it is the leftmost.
    """
    counts = values.abs() > NO_ANGLE * values.abs().max()
    turns = counts & (values.angle().abs() >= LEAST_ANGLE)
    if not bool(turns.any()):
        return int(torch.where(counts, values.real, torch.inf).argmin())
    return int(torch.where(turns, values.abs(), -1.0).argmax())


def multiplier(
    product: Product,
    size: int,
    start: Tensor | None = None,
    *,
    check: Product | None = None,
    generator: torch.Generator | None = None,
    noise: float = 0.1,
    tolerance: float = 1e-3,
    max_products: int = 60,
    choose: Choose = oscillating,
) -> Multiplier:
    """Find the multiplier by Arnoldi's iteration.

    1. Extend an orthonormal basis V of the Krylov space of J: J V_m = V_m H_m + h v_{m+1} e_mᵀ.
    2. Of the eigenvalues of H_m (Ritz values), choose one: the largest in modulus of those at an
       angle of at least π/6 from the positive axis; the leftmost if there is none.
    3. Stop where its residual |h eᵀ_m z| is at most `tolerance`, else go on; there is no restart.
    4. Take its residual anew from one more product (two for a complex pair) with `check`.

    The outer Ritz values come first: of a Jacobian at its edge −1 stands out of a spectrum within
    the disc. If several lie on one circle (heavy ball below its edge: all at √β) no vector is
    found, the modulus is; `converged` says so. J is not symmetric: an eigenvalue's error is the
    residual times its condition number, 1/cos of the angle between left and right eigenvector.

    Args:
        product: y ↦ J y, shape (size,).
        size: Length of y.
        start: First vector, such as the last multiplier's.
        check: Product for the check, by another step of differences; None: `product`.
        generator: For the first vector and the noise; seed 0 if absent.
        noise: Share of a random vector that is added to `start`.
        tolerance: Residual at which to stop, relative to max(|μ|, 0.1).
        max_products: Most products of the search.
        choose: Ritz values (m,) and vectors in the basis (m, m) ↦ index of the one that is wanted.

    References:
        Saad (2011), Numerical Methods for Large Eigenvalue Problems, chapter 6.
    """
    basis = [_first(size, start, noise, generator or torch.Generator().manual_seed(0))]
    limit = min(max_products, size)
    hessenberg = torch.zeros(limit + 1, limit, dtype=torch.float64)
    for m in range(1, limit + 1):
        rest, hessenberg[:m, m - 1] = _orthogonalized(product(basis[-1]), basis)
        length = float(rest.norm())
        hessenberg[m, m - 1] = length
        # the Krylov space is invariant: its Ritz values are eigenvalues
        exhausted = length <= 1e-12 * float(hessenberg[: m + 1, m - 1].norm()) or m == size
        if m >= FIRST_LOOK or exhausted or m == limit:
            values, value, z = _ritz(hessenberg[:m, :m], choose)
            estimate = 0.0 if exhausted else length * abs(complex(z[-1]))
            converged = estimate <= tolerance * max(0.1, abs(value))
            if converged or m == limit:
                break
        basis.append(rest / length)
    space = torch.stack(basis, 1).to(torch.complex128)
    y = space @ z
    image = space @ (hessenberg[:m, :m].to(torch.complex128) @ z) + rest * z[-1]
    again, spent = _applied(check or product, y, real=value.imag == 0)
    return Multiplier(
        value,
        residual=float((again - value * y).norm()),
        disagreement=float((again - image).norm()),
        products=m + spent,
        converged=converged,
        vector=y.real if value.imag == 0 else y,
        others=values,
    )


def orbit_multiplier(product: Product, size: int, mode: Tensor) -> Multiplier:
    """Multiplier of the map of several steps for the mode that one step alternates along.

    An oscillation of period two has another Jacobian on each of its sides, and only their product
    says whether it grows. Its sign is lost, (−1)² = 1, among the flat directions around +1: so the
    eigenvalue is taken whose vector is nearest to the mode, from the Krylov space of the mode.

    Args:
        product: y ↦ J_k y, of the map of k steps.
        size: Length of y.
        mode: Vector of the one-step multiplier, real.
    """

    def nearest(values: Tensor, vectors: Tensor) -> int:
        return int((vectors[0].abs() / vectors.norm(dim=0)).argmax())

    return multiplier(product, size, mode, noise=0.0, max_products=12, choose=nearest)


def _first(size: int, start: Tensor | None, noise: float, generator: torch.Generator) -> Tensor:
    """Unit vector to start from."""
    random = torch.randn(size, generator=generator, dtype=torch.float64)
    first = random / random.norm()
    if start is not None and float(start.norm()) > 0:
        first = start / start.norm() + noise * first
    unit: Tensor = first / first.norm()
    return unit


def _orthogonalized(w: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return w without its components along the basis, and these; Gram and Schmidt, twice."""
    v = torch.stack(basis)
    once: Tensor = v @ w
    w = w - once @ v
    twice: Tensor = v @ w
    rest: Tensor = w - twice @ v
    return rest, once + twice


def _ritz(matrix: Tensor, choose: Choose) -> tuple[Tensor, complex, Tensor]:
    """Ritz values, the chosen one, and its unit vector in the basis; of a pair the upper one."""
    values, vectors = torch.linalg.eig(matrix)
    index = choose(values, vectors)
    value, z = complex(values[index]), vectors[:, index]
    if value.imag < 0:
        value, z = value.conjugate(), z.conj()
    if value.imag == 0:  # the vector of a real eigenvalue is real up to a phase
        z = z / torch.exp(1j * z[z.abs().argmax()].angle())
    return values, value, z / z.norm()


def _applied(product: Product, y: Tensor, real: bool) -> tuple[Tensor, int]:
    """J y of a complex y, and the products that it took."""
    if real:
        return product(y.real.contiguous()).to(y.dtype), 1
    parts = product(y.real.contiguous()), product(y.imag.contiguous())
    return torch.complex(*parts), 2
