"""Block heterogeneity: distances that are known, and densities of the blocks of a real Hessian."""

from __future__ import annotations

import math

import pytest
import torch

from optbench.curvature import (
    Hessian,
    Restricted,
    SpectralDensity,
    block_densities,
    block_heterogeneity,
    per_layer,
    spectral_density,
)
from perf.cases import half_mse

from .helpers import EPS, Matrix, dense, dense_hessian, small, with_spectrum


def _at(*nodes: float) -> SpectralDensity:
    at = torch.tensor(nodes, dtype=torch.float64)
    return SpectralDensity(at, torch.full_like(at, 1 / len(nodes)), len(nodes), 0)


def test_known_distances() -> None:
    # Gaussians 100 widths apart overlap by less than 1e-500; half of the mass in common gives JS² =
    # ½.
    assert block_heterogeneity({"a": _at(0, 1), "b": _at(0, 1)}) == pytest.approx(0, abs=1e-7)
    assert block_heterogeneity({"a": _at(0), "b": _at(1)}) == pytest.approx(1, abs=1e-9)
    assert block_heterogeneity({"a": _at(0), "b": _at(1), "c": _at(0)}) == pytest.approx(
        2 / 3, abs=1e-7
    )
    assert block_heterogeneity({"a": _at(0, 1), "b": _at(1, 2)}) == pytest.approx(
        math.sqrt(0.5), abs=1e-6
    )
    with pytest.raises(ValueError, match="at least two blocks, got 1"):
        block_heterogeneity({"a": _at(0)})


def test_a_block_diagonal_matrix() -> None:
    """Estimated densities of the blocks give the distance of the exact ones."""
    spectra = [
        torch.tensor(values).double()
        for values in ([5.0, 4.0, 0.5], [5.0, 4.0, 0.5], [100.0, 90.0, 3.0, 1.0])
    ]
    blocks = [with_spectrum(values, seed) for seed, values in enumerate(spectra)]
    whole = Matrix(torch.block_diag(*blocks))
    rows = torch.arange(10).split([3, 3, 4])
    found = {}
    for i, (index, block) in enumerate(zip(rows, blocks, strict=True)):
        part = Restricted(whole, index)
        assert torch.equal(dense(part), block)
        found[str(i)] = spectral_density(part, 4, 400, seed=i)
    exact = {str(i): _at(*values.sort().values.tolist()) for i, values in enumerate(spectra)}
    # 400 sign vectors: weights are off by about 1/√400, and the distance by less than that.
    assert block_heterogeneity(found, width=1.0) == pytest.approx(
        block_heterogeneity(exact, width=1.0), abs=0.05
    )
    # Two pairs share at most half of their mass, on one side: JS² ≥ S(¾, ¼) − ½ = .311.
    assert block_heterogeneity(exact) > 2 / 3 * math.sqrt(0.311)


def test_layers_of_a_hessian() -> None:
    model, data = small()
    H = Hessian(model, half_mse, data)
    matrix = dense_hessian(model, half_mse, data)
    found = block_densities(H, per_layer(model), 60, 4)
    assert found.keys() == {"0", "2"}
    for name, rows in (("0", slice(0, 35)), ("2", slice(35, 53))):
        values = torch.linalg.eigvalsh(matrix[rows, rows])
        nodes = found[name].nodes
        # Full Krylov spaces: the ends are eigenvalues, up to rounding.
        assert float(nodes[-1]) == pytest.approx(float(values[-1]), abs=1e5 * EPS)
        assert float(nodes[0]) == pytest.approx(float(values[0]), abs=1e5 * EPS)
