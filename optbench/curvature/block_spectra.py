"""How unlike the spectra of a Hessian's diagonal blocks are."""

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


def block_densities(
    operator: ModelOperator,
    blocks: Mapping[str, Iterable[str]],
    steps: int = 20,
    probes: int = 1,
    *,
    seed: Seed = 0,
) -> dict[str, SpectralDensity]:
    """Spectral densities of an operator's diagonal blocks, on the graph that the operator keeps.

    Args:
        operator: A Hessian or Gauss-Newton matrix.
        blocks: Parameter names by block, such as `per_layer(model)`; names that the operator does
            not act on count for nothing.
        steps: Lanczos steps a block and probe; each costs a product of the whole operator.
        probes: Random vectors a block.
        seed: Seed or generator for them.

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
    found = {}
    for name, names in blocks.items():
        rows = [places[each].flatten() for each in names if each in places]
        if rows:
            block = Restricted(operator, torch.cat(rows))
            found[name] = spectral_density(block, min(steps, block.size), probes, seed=generator)
    if not found:
        raise ValueError(
            f"blocks must name parameters that the operator acts on, got {list(blocks)[:5]}"
        )
    return found


def block_heterogeneity(
    densities: Mapping[str, SpectralDensity], *, width: float | None = None, points: int = 2000
) -> float:
    """Mean Jensen-Shannon distance between the spectral densities of all pairs of blocks.

    JS(p, q) = √(½ KL(p‖m) + ½ KL(q‖m)), m = ½(p + q), in bits: 0 where all blocks have one
    spectrum, 1 where no two overlap. Dimensionless. Densities are compared as they are, not scaled
    to one another, after each node is widened to a Gaussian, without which two quadratures never
    overlap.

    Args:
        densities: Of two blocks or more.
        width: Standard deviation of the Gaussians; None for a hundredth of the range of all nodes.
            The distance depends on it: compare only at one width relative to the range.
        points: Points of the grid that the integrals are sums over.

    Raises:
        ValueError: If there are fewer than two blocks.

    References:
        Zhang et al. (2024), arXiv:2402.16788, who average the distance over pairs of blocks at
        initialization. The width and the grid are ours: their published code has one block a
        parameter tensor and Gaussians of σ² = 1e-5, whatever the range, and does not have the
        distance itself.
    """
    if len(densities) < 2:
        raise ValueError(f"densities must be of at least two blocks, got {len(densities)}")
    low = min(float(d.nodes[0]) for d in densities.values())
    high = max(float(d.nodes[-1]) for d in densities.values())
    if width is not None and not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    width = width or max((high - low) / 100, 1e-6 * max(abs(low), abs(high)), 1e-12)
    grid = torch.linspace(low - 5 * width, high + 5 * width, points, dtype=torch.float64)
    smooth = [d.smoothed(grid, width)[1] for d in densities.values()]
    distances = [_distance(p / p.sum(), q / q.sum()) for p, q in combinations(smooth, 2)]
    return sum(distances) / len(distances)


def _distance(p: Tensor, q: Tensor) -> float:
    """√(S((p + q)/2) − ½(S(p) + S(q))), S the entropy in bits: the Jensen-Shannon distance."""
    nats = float((entr((p + q) / 2) - (entr(p) + entr(q)) / 2).sum())
    return math.sqrt(max(nats, 0.0) / math.log(2))
