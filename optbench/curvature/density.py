"""Spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optbench.curvature.eigen.pairs import Seed, seeded
from optbench.curvature.eigen.subspace import Subspace
from optbench.curvature.operators import Operator, check_operator, check_whole
from optbench.curvature.trace import rademacher
from optbench.record.progress import Work, work

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class SpectralDensity:
    """Quadrature of the density p(t) = (1/P) Σ_i δ(t − λ_i): p ≈ Σ_j w_j δ(t − t_j).

    Attributes:
        nodes: t_j, ascending, shape (J,), double precision; unit: loss per parameter².
        weights: w_j ≥ 0, shape (J,), summing to 1.
        size: P.
        hvps: Matrix-vector products spent.
    """

    nodes: Tensor
    weights: Tensor
    size: int
    hvps: int

    def moment(self, order: int) -> float:
        """Moment Σ_j w_j t_j^order ≈ tr(A^order) / P; unbiased for order < 2 · steps."""
        return float((self.weights * self.nodes**order).sum())

    def smoothed(
        self, grid: Tensor | None = None, width: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Smoothed density Σ_j w_j N(t; t_j, width²): each node widened to a Gaussian.

        Args:
            grid: Points t, shape (T,); None for 1000 that cover the nodes.
            width: Standard deviation of the Gaussians; None for a hundredth of the nodes' range.

        Returns:
            Grid and density on it, each of shape (T,); the density integrates to 1.

        Raises:
            ValueError: If width is not positive.
        """
        if width is not None and not width > 0:
            raise ValueError(f"width must be positive, got {width}")
        low, high = float(self.nodes[0]), float(self.nodes[-1])
        width = width or max((high - low) / 100, 1e-6 * max(abs(low), abs(high)), 1e-12)
        if grid is None:
            grid = torch.linspace(low - 5 * width, high + 5 * width, 1000, dtype=torch.float64)
        deviations = (grid.double().unsqueeze(1) - self.nodes) / width
        normalization = width * math.sqrt(2 * math.pi)
        return grid, torch.exp(-deviations.square() / 2) @ self.weights / normalization

    def plot(self, axes: Axes | None = None, **line: Any) -> Axes:
        """Draw the smoothed density, on a logarithmic scale since the bulk dwarfs the outliers."""
        if axes is None:
            import matplotlib.pyplot as plt  # an optional dependency: only plots need it

            axes = plt.subplots()[1]
        grid, density = self.smoothed()
        axes.semilogy(grid, density, **line)
        axes.set(xlabel="eigenvalue", ylabel="density", ylim=(1e-3 / self.size, None))
        return axes


def spectral_density(
    operator: Operator, steps: int = 64, probes: int = 4, *, seed: Seed = 0
) -> SpectralDensity:
    """Spectral density of A by stochastic Lanczos quadrature.

    For a unit vector z of random signs, m Lanczos steps give Ritz values t_j and weights w_j, the
    squared first components of the tridiagonal matrix's eigenvectors, with

        Σ_j w_j f(t_j) = zᵀ f(A) z

    for polynomials f of degree below 2m. The mean over z estimates tr f(A) / P. Lanczos vectors
    are fully reorthogonalised. For the density of one block pass the operator of its parameters,
    `Hessian(..., params=names)`.

    Args:
        operator: A, shape (P, P).
        steps: m, Lanczos steps per probe; 2·m·P numbers are held in memory.
        probes: Number of vectors z; the relative error falls as 1/√(P·probes).
        seed: Seed or generator of the vectors z.

    Raises:
        ValueError: If steps or probes is not positive.
        FloatingPointError: If a product is not finite.

    References:
        Ubaru, Chen, Saad (2017), SIAM J. Matrix Anal. Appl. 38(4); Ghorbani et al. (2019),
        arXiv:1901.10159.
    """
    check_operator(operator)
    check_whole(steps=steps, probes=probes)
    for name, value in (("steps", steps), ("probes", probes)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    generator = seeded(seed)
    before = operator.hvps
    with work("spectral density", steps * probes, "products") as told:
        rules = [
            _quadrature(operator, rademacher(operator, generator), steps, told)
            for _ in range(probes)
        ]
    # The mean of the quadratures over the probes is a quadrature with all their nodes.
    nodes, order = torch.cat([nodes for nodes, _ in rules]).sort()
    weights = torch.cat([weights for _, weights in rules])[order] / probes
    return SpectralDensity(nodes, weights, operator.size, operator.hvps - before)


def _quadrature(operator: Operator, start: Tensor, steps: int, told: Work) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss quadrature of zᵀ f(A) z, from Lanczos started at z."""
    space = Subspace(operator)
    row = start.unsqueeze(0)
    for _ in range(steps):
        if not space.expand(row):
            break  # the Krylov space is exhausted: the quadrature is exact
        told.advance()
        row = space.images[-1:]  # Lanczos: A q_last, orthogonalized by `expand`
    values, coefficients = space.ritz()
    # The first basis vector is z/‖z‖, so column 0 holds the first components.
    return torch.from_numpy(values), torch.from_numpy(coefficients[:, 0] ** 2)
