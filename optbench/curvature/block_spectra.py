"""Spectral densities of a Hessian's diagonal blocks, and how much they differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations

import torch
from torch import Tensor
from torch.special import entr

from optbench.curvature.density import SpectralDensity, spectral_density
from optbench.curvature.eigen.pairs import Seed, seeded
from optbench.curvature.hessian import ModelOperator
from optbench.curvature.operators import Restricted
from optbench.record.progress import work


def block_densities(
    operator: ModelOperator,
    blocks: Mapping[str, Iterable[str]],
    steps: int = 20,
    probes: int = 1,
    *,
    seed: Seed = 0,
) -> dict[str, SpectralDensity]:
    """Spectral density p_b(t) = (1/P_b) Σ_i δ(t − λ_i(A_bb)) of each diagonal block A_bb.

    All blocks use one operator, so its graphs are built once.

    Args:
        operator: A Hessian or Gauss-Newton matrix.
        blocks: Parameter names by block, such as `per_layer(model)`. Names of parameters that the
            operator does not act on are ignored.
        steps: Lanczos steps per block and probe; each costs one product of the whole operator.
        probes: Random vectors per block.
        seed: Seed or generator of the random vectors.

    Returns:
        Density of each block, by name; blocks without a parameter of the operator are left out.

    Raises:
        ValueError: If the operator is not of a model, or no block holds a parameter that it acts
            on.
    """
    if not isinstance(operator, ModelOperator):
        raise ValueError(
            f"operator must be a Hessian or GaussNewton, got {type(operator).__name__}"
        )
    generator = seeded(seed)
    places = operator.split(torch.arange(operator.size, device=operator.device))
    densities = {}
    with work("spectral densities", len(blocks), "blocks") as told:
        for name, parameters in blocks.items():
            rows = [places[parameter].flatten() for parameter in parameters if parameter in places]
            if rows:
                block = Restricted(operator, torch.cat(rows))
                densities[name] = spectral_density(
                    block, min(steps, block.size), probes, seed=generator
                )
            told.advance()
    if not densities:
        raise ValueError(
            f"blocks must name parameters that the operator acts on, got {list(blocks)[:5]}"
        )
    return densities


def block_heterogeneity(
    densities: Mapping[str, SpectralDensity], *, width: float | None = None, points: int = 2000
) -> float:
    """Mean Jensen-Shannon distance between the spectral densities of all pairs of blocks.

        JS(p, q) = √(½ KL(p‖m) + ½ KL(q‖m)),  m = ½(p + q),

    in base-2 logarithms, so that JS lies in [0, 1]: 0 where all blocks have one spectrum, 1 where
    no two overlap. Each node is first widened to a Gaussian: two sums of point masses never
    overlap. Eigenvalues are not rescaled, so blocks that differ only in scale differ.

    Args:
        densities: Spectral densities of at least two blocks, by name.
        width: Standard deviation of the Gaussians, in units of the eigenvalues; None for a
            hundredth of the range of all nodes. The distance depends on it: compare only at one
            width relative to the range.
        points: Grid points of the sums that approximate the integrals.

    Returns:
        The mean distance, dimensionless.

    Raises:
        ValueError: If there are fewer than two blocks, or width is not positive.

    References:
        Zhang et al. (2024), arXiv:2402.16788, average the distance over pairs of blocks at
        initialization. The default width and the grid differ from theirs: their published code
        takes one block per parameter tensor and Gaussians of σ² = 1e-5 whatever the range. It does
        not include the distance.
    """
    if len(densities) < 2:
        raise ValueError(f"densities must be of at least two blocks, got {len(densities)}")
    low = min(float(d.nodes[0]) for d in densities.values())
    high = max(float(d.nodes[-1]) for d in densities.values())
    if width is not None and not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    # The lower bounds keep the width positive where all nodes coincide.
    width = width or max((high - low) / 100, 1e-6 * max(abs(low), abs(high)), 1e-12)
    # At 5σ beyond the outermost nodes less than 1e-6 of a Gaussian's mass is cut off.
    grid = torch.linspace(low - 5 * width, high + 5 * width, points, dtype=torch.float64)
    smooth = [d.smoothed(grid, width)[1] for d in densities.values()]
    distances = [_distance(p / p.sum(), q / q.sum()) for p, q in combinations(smooth, 2)]
    return sum(distances) / len(distances)


def _distance(p: Tensor, q: Tensor) -> float:
    """√(S((p + q)/2) − ½(S(p) + S(q))), S the entropy in bits: the Jensen-Shannon distance."""
    # Rounding may leave the difference of two equal densities slightly negative.
    nats = float((entr((p + q) / 2) - (entr(p) + entr(q)) / 2).sum())
    return math.sqrt(max(nats, 0.0) / math.log(2))
