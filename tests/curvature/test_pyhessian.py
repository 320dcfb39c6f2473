from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from optbench.curvature.pyhessian import PyHessian
from perf.cases import half_mse

from .helpers import dense_hessian, small


@pytest.mark.parametrize("cut", [False, True])
def test_eigenpairs_and_trace(cut: bool) -> None:
    model, data = small()
    batches = [(data[0][:13], data[1][:13]), (data[0][13:], data[1][13:])] if cut else data
    matrix = dense_hessian(model, half_mse, data)
    values = torch.linalg.eigvalsh(matrix)
    engine = PyHessian(model, half_mse, batches)
    pairs = engine.top_eigenpairs(2, tol=1e-9, max_iterations=2000)
    largest = values[values.abs().argsort(descending=True)[:2]].sort(descending=True).values
    # its normalisation adds 1e-6
    torch.testing.assert_close(pairs.values, largest, rtol=0, atol=1e-4)
    distance = (pairs.values.unsqueeze(1) - values).abs().min(1).values
    assert (distance <= pairs.residuals + 1e-5).all()
    assert pairs.converged
    assert pairs.hvps > 4
    estimate = engine.trace(tol=1e-4)
    assert estimate.low <= float(matrix.trace()) <= estimate.high
    default = engine.top_eigenpairs()
    assert torch.equal(default.values, engine.top_eigenpairs().values)  # seeded


def test_unused_parameters() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.used = nn.Linear(2, 2), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    model, (_, data) = Odd().double(), small()
    pairs = PyHessian(model, half_mse, data).top_eigenpairs(tol=1e-8, max_iterations=1000)
    values = torch.linalg.eigvalsh(dense_hessian(model, half_mse, data))
    assert float(pairs.values[0]) == pytest.approx(float(values[-1]), abs=1e-4)
    assert not pairs.vectors[:6].any()
    assert all(p.requires_grad for p in model.parameters())


def test_refusals() -> None:
    model, data = small()
    with pytest.raises(NotImplementedError, match=r"torch\.eig"):
        PyHessian(model, half_mse, data).spectral_density()
    with pytest.raises(ValueError, match="k must be positive, got 0"):
        PyHessian(model, half_mse, data).top_eigenpairs(0)
