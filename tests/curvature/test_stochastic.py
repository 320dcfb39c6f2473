from __future__ import annotations

import math

import pytest
import torch

from optbench.curvature import Hessian, diagonal, per_layer, spectral_density, top_eigenpairs, trace
from perf.cases import half_mse

from .helpers import Matrix, dense_hessian, small, with_spectrum

SPECTRUM = torch.cat([torch.tensor([40.0, 25.0, 10.0]), torch.linspace(2, -0.5, 97)]).double()


def test_interval_covers_the_trace() -> None:
    A = Matrix(with_spectrum(SPECTRUM))
    exact = float(SPECTRUM.sum())
    hits = sum((e := trace(A, 20, seed=s)).low <= exact <= e.high for s in range(200))
    # Binomial(200, .95): mean 190, standard deviation 3.1; five of them below.
    assert hits >= 175


def test_variance_is_hutchinsons() -> None:
    matrix = with_spectrum(SPECTRUM)
    off = matrix - matrix.diagonal().diag()
    estimate = trace(Matrix(matrix), 4000)
    # Standard error of a sample deviation at n = 4000 is about 1-2%; 10% is five of them.
    assert estimate.stderr * math.sqrt(4000) == pytest.approx(
        math.sqrt(2) * float(off.norm()), rel=0.1
    )


def test_deflation_is_exact_and_narrows() -> None:
    A = Matrix(with_spectrum(SPECTRUM))
    pairs = top_eigenpairs(A, 3, accuracy=1e-8)
    wide, narrow = trace(A, 30), trace(A, 30, deflate=pairs)
    assert narrow.stderr < wide.stderr / 3
    assert abs(narrow.value - float(SPECTRUM.sum())) < 5 * narrow.stderr
    rough = top_eigenpairs(A, 3, tol=0.5, accuracy=1.0)  # unbiased with wrong vectors, too
    values = [trace(A, 10, deflate=rough, seed=s).value for s in range(100)]
    mean, spread = sum(values) / 100, torch.tensor(values).std() / 10
    assert abs(mean - float(SPECTRUM.sum())) < 5 * float(spread)


def test_diagonal() -> None:
    model, data = small()
    exact = dense_hessian(model, half_mse, data).diagonal()
    H = Hessian(model, half_mse, data)
    estimate = diagonal(H, 400)
    assert estimate.hvps == 400
    score = (estimate.values - exact) / estimate.stderr.clamp_min(1e-12)
    assert float(score.abs().max()) < 5  # 53 near-normal scores
    deflated = diagonal(H, 400, deflate=top_eigenpairs(H, 3, accuracy=1e-6))
    assert float(deflated.stderr.mean()) < float(estimate.stderr.mean())
    assert float((deflated.values - exact).abs().max()) < 6 * float(deflated.stderr.max())
    matrix = torch.arange(1.0, 6).double().diag()
    # exact without off-diagonals
    assert torch.equal(diagonal(Matrix(matrix), 2).values, matrix.diagonal())


def test_density_moments() -> None:
    matrix = with_spectrum(SPECTRUM)
    density = spectral_density(Matrix(matrix), 30, 20)
    assert density.hvps == 600
    assert density.moment(0) == pytest.approx(1, abs=1e-12)
    for order in (1, 2, 3):
        power = torch.linalg.matrix_power(matrix, order)
        off = power - power.diagonal().diag()
        deviation = math.sqrt(2 / 20) * float(off.norm()) / 100
        assert abs(density.moment(order) - float(power.trace()) / 100) < 5 * deviation
    grid, values = density.smoothed()
    assert float(torch.trapezoid(values, grid)) == pytest.approx(1, abs=1e-3)
    assert float(density.nodes[-1]) == pytest.approx(40, abs=1e-6)


def test_density_is_exact_for_a_full_krylov_space() -> None:
    A = Matrix(torch.diag(torch.tensor([1.0, 2.0, 5.0]).double()))
    density = spectral_density(A, 10, 1)
    torch.testing.assert_close(
        density.nodes, torch.tensor([1.0, 2.0, 5.0]).double(), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        density.weights, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_wishart_law() -> None:
    n, p = 1200, 300
    x = torch.randn(n, p, generator=torch.Generator().manual_seed(0)).double()
    density = spectral_density(Matrix(x.T @ x / n), 40, 40)
    ratio = p / n
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # Marchenko-Pastur has mean 1, second moment 1 + ratio, and these edges. The standard error of
    # the mean is √(2/40·75)/300 = .0065, that of the second moment about 2.5 times it; five of
    # each. The edges fluctuate as P^(-2/3).
    assert density.moment(1) == pytest.approx(1, abs=0.033)
    assert density.moment(2) == pytest.approx(1 + ratio, abs=0.085)
    assert float(density.nodes[0]) == pytest.approx(low, abs=0.05)
    assert float(density.nodes[-1]) == pytest.approx(high, abs=0.08)


def test_block_densities_add_up_to_the_trace() -> None:
    model, data = small()
    exact = dense_hessian(model, half_mse, data).diagonal()
    first, second = (  # the first moment of a quadrature is exact, however few its steps
        spectral_density(Hessian(model, half_mse, data, params=names), 3, 200)
        for names in per_layer(model).values()
    )
    assert first.moment(1) * first.size == pytest.approx(float(exact[:35].sum()), rel=0.05)
    assert second.moment(1) * second.size == pytest.approx(float(exact[35:].sum()), rel=0.05)


def test_plot() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = spectral_density(Matrix(with_spectrum(SPECTRUM)), 10, 1).plot()
    assert axes.get_xlabel() == "eigenvalue"
    zero = spectral_density(Matrix(torch.zeros(3, 3).double()), 2, 1)
    assert torch.isfinite(zero.smoothed()[1]).all()


def test_refusals() -> None:
    A = Matrix(torch.eye(3).double())
    with pytest.raises(ValueError, match="samples must be at least 2"):
        trace(A, 1)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 2"):
        trace(A, 5, confidence=2)
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        spectral_density(A, 0)
    with pytest.raises(ValueError, match="probes must be positive, got 0"):
        spectral_density(A, 3, 0)
