"""Curvature along a direction on other examples: against closed forms, and as a bracket of λ₁."""

import math

import pytest
import torch
from torch import Tensor, nn

from optbench.curvature import Hessian, MeasurementError, held_out, top_eigenpairs
from tests.curvature.helpers import dense_hessian

WIDTH = 6


def half_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(-1).mean()


def _linear(x: Tensor) -> Hessian:
    """Of f(x) = w·x with the half square loss: H = (1/n) Σ x xᵀ, whatever w and y are."""
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    return Hessian(model, half_mse, (x, torch.zeros(len(x), 1, dtype=x.dtype)))


def _targets(x: Tensor) -> Tensor:
    return torch.zeros(len(x), 1, dtype=x.dtype)


@pytest.mark.parametrize("count", [64, 32, 100])
def test_value_and_error_are_those_of_the_closed_form(count: int) -> None:
    torch.manual_seed(0)
    x, others, u = (torch.randn(n, WIDTH, dtype=torch.float64) for n in (50, count, 1))
    found = held_out(_linear(x), (others, _targets(others)), u[0], population=1000)
    squares = (others @ u[0]).square()
    assert found.value == pytest.approx(squares.mean().item(), rel=1e-12)
    groups = squares.split(math.ceil(count / 16))
    q = torch.stack([group.mean() for group in groups])
    share = torch.tensor([len(group) / count for group in groups], dtype=torch.float64)
    square = (share * (q - squares.mean())).square().sum() * len(q) / (len(q) - 1)
    assert found.error == pytest.approx(math.sqrt((1 - count / 1000) * square), rel=1e-12)


def test_a_network_agrees_with_its_dense_hessian_on_the_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data, others = (
        (torch.randn(n, 4, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (40, 48)
    )
    loss = nn.functional.cross_entropy
    hessian = Hessian(model, loss, data)
    u = top_eigenpairs(hessian, 1).vectors[:, 0]
    before = [p.clone() for p in model.parameters()]
    found = held_out(hessian, others, u)
    expected = u @ dense_hessian(model, loss, others) @ u
    assert found.value == pytest.approx(expected.item(), rel=1e-10)
    assert all(map(torch.equal, before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_the_sharpness_of_all_is_between_it_and_that_of_the_sample_on_average() -> None:
    """x ~ N(0, C), C = diag(2, 1.8, 1, …): λ₁ = 2; of 64 examples it is 2.5 on average.

    400 draws: means are within four of their standard errors of their expectation, and the error
    that is told is that of the values (its own relative error is 1/√(2·15·400) = .01, and that of
    the spread of 400 values .035).
    """
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([2.0, 1.8, 1.0, 1.0, 0.5, 0.1], dtype=torch.float64).sqrt()
    n, draws = 64, 400
    hessian = _linear(torch.ones(n, WIDTH, dtype=torch.float64))  # of whatever: S' is given
    tops, values, errors, truths = [], [], [], []
    for _ in range(draws):
        x, others = (
            torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) * scale
            for _ in range(2)
        )
        eigenvalues, vectors = torch.linalg.eigh(x.T @ x / n)
        u = vectors[:, -1]
        found = held_out(hessian, (others, _targets(others)), u)
        tops.append(float(eigenvalues[-1]))
        values.append(found.value)
        errors.append(found.error**2)
        truths.append(float((u * scale).square().sum()))
    top, value, truth = (torch.tensor(v) for v in (tops, values, truths))
    assert value.mean() + 4 * value.std() / draws**0.5 < 2.0 < top.mean() - 4 * top.std() / 20
    assert value.mean() == pytest.approx(truth.mean().item(), abs=4 * value.std().item() / 20)
    spread = (value - truth).square().mean().sqrt()
    assert math.sqrt(math.fsum(errors) / draws) == pytest.approx(spread.item(), rel=0.15)


def test_what_has_no_groups_is_refused() -> None:
    x = torch.randn(64, WIDTH, dtype=torch.float64)
    u = torch.ones(WIDTH, dtype=torch.float64)
    with pytest.raises(ValueError, match="32 examples or more, got 31"):
        held_out(_linear(x), (x[:31], _targets(x[:31])), u)

    def of_a_batch(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.var() + 0 * targets.sum()

    model = nn.Linear(WIDTH, 1, bias=False).double()
    with pytest.raises(MeasurementError, match="is not the mean over groups"):
        held_out(Hessian(model, of_a_batch, (x, _targets(x))), (x, _targets(x)), u)
    norm = nn.Sequential(nn.Linear(WIDTH, 2), nn.BatchNorm1d(2)).double()
    hessian = Hessian(norm, half_mse, (x, _targets(x)))
    with pytest.raises(MeasurementError, match="batch norm"):
        held_out(hessian, (x, _targets(x)), torch.ones(hessian.size, dtype=torch.float64))
