"""Curvature along a direction on other examples: against closed forms, and as a bracket of λ₁."""

import math

import pytest
import torch
from torch import Tensor, nn

from optbench.curvature import Hessian, MeasurementError, held_out, top_eigenpairs
from optbench.curvature.chunk_loss import Criterion
from optbench.task import half_mse
from tests.curvature.helpers import dense_hessian

WIDTH = 6


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
    square = (share * (q - squares.mean())).square().sum() / (1 - share.square().sum())
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


class _Score(nn.Module):
    """∇_x of a potential: it differentiates itself."""

    def __init__(self) -> None:
        super().__init__()
        self.potential = nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.potential(x).sum(), x, create_graph=True)
        return slope[:, :1]


def test_a_model_that_differentiates_itself_is_measured() -> None:
    torch.manual_seed(0)
    model, (x, others) = _Score(), torch.randn(2, 64, WIDTH, dtype=torch.float64)
    hessian = Hessian(model, half_mse, (x, _targets(x)))
    u = torch.randn(hessian.size, dtype=torch.float64)
    expected = u @ (Hessian(model, half_mse, (others, _targets(others))) @ u)
    found = held_out(hessian, (others, _targets(others)), u)
    assert found.value == pytest.approx(expected.item(), rel=1e-10)


class _Fixed(nn.Module):
    """It takes batches of 64 only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.view(64, WIDTH))
        return out


class _ZeroHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, 4).double(), nn.Linear(4, 4).double()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(x)))
        return out


def _weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    """All examples' losses are ln 4 at first, and yet it is no mean over examples."""
    weights = torch.tensor([1.0, 1.0, 1.0, 50.0], dtype=torch.float64)
    return nn.functional.cross_entropy(outputs, targets, weights)


@pytest.mark.parametrize(
    ("model", "loss", "reason"),
    [
        (_Fixed(), half_mse, "does not run on a group"),
        (_ZeroHead(), _weighted, "is not the mean over groups"),
        (
            nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout(0.1), nn.Linear(4, 1)).double(),
            half_mse,
            "draws random numbers",
        ),
    ],
)
def test_what_cannot_be_measured_on_groups_is_refused_each_time_alike(
    model: nn.Module, loss: Criterion, reason: str
) -> None:
    torch.manual_seed(0)
    x, others = torch.randn(2, 64, WIDTH, dtype=torch.float64)
    targets = torch.randint(0, 4, (64,)) if loss is _weighted else _targets(x)
    hessian = Hessian(model, loss, (x, targets))
    u = torch.ones(hessian.size, dtype=torch.float64)
    said = []
    for _ in range(2):
        with pytest.raises(MeasurementError, match=reason) as why:
            held_out(hessian, (others, targets), u)
        said.append(str(why.value))
    assert said[0] == said[1]


def test_the_error_is_that_of_unequal_groups_and_few_heavy_ones_are_refused() -> None:
    """Weights of 1 to 3: over 300 draws the error told is that of the values, see above."""
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(64, 2, dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()

    def weight(inputs: Tensor, targets: Tensor) -> float:
        return float(targets.sum())

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets * 0.5 * outputs.square()).sum() / targets.sum()

    hessian = Hessian(model, mean, (x, torch.ones(64, 1, dtype=torch.float64)), weight=weight)
    u = torch.tensor([1.0, 0.0], dtype=torch.float64)
    weights = (1 + 2 * (torch.arange(64) % 16 > 8)).double()[:, None]
    values, squares = [], []
    for _ in range(300):
        others = torch.randn(64, 2, generator=generator, dtype=torch.float64)
        found = held_out(hessian, (others, weights), u)
        values.append(found.value)
        squares.append(found.error**2)
    assert math.sqrt(math.fsum(squares) / 300) == pytest.approx(
        torch.tensor(values).std().item(), rel=0.15
    )
    weights[:4] = 1000
    with pytest.raises(MeasurementError, match="weigh nearly all"):
        held_out(hessian, (torch.randn(64, 2, dtype=torch.float64), weights), u)
