"""The central flow against closed forms, and third derivatives against differences, in float64."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optbench.curvature import Loss
from optbench.dynamics.central_flow import (
    EDGE,
    GradientDescent,
    RMSprop,
    State,
    central_flow,
    discrete,
    stable_flow,
)
from optbench.dynamics.complementarity import complementary, residual
from optbench.dynamics.flat_loss import FlatLoss, pairs
from optbench.errors import UserError
from optbench.task import half_mse

F64 = torch.float64


def _at(*weights: float) -> State:
    w = torch.tensor(weights, dtype=F64)
    return State(w, torch.zeros_like(w))


def test_the_complementarity_problem_is_solved_in_each_dimension() -> None:
    rng = np.random.default_rng(0)
    for k in (1, 2, 3, 5):
        for scale in (1e-4, 1.0, 1e4):
            a = rng.normal(size=(k, k))
            a = (a + a.T) / 2
            factors = rng.normal(size=(k * (k + 1) // 2 + 2, k, k))
            factors = factors + factors.transpose(0, 2, 1)
            b = scale * np.einsum("pij,pkl->ijkl", factors, factors)
            x = complementary(a, b)
            np.testing.assert_allclose(x, x.T, rtol=0, atol=1e-12 * np.abs(x).max())
            # the residual of |⟨X, S⟩|^½ is the root of what Newton's method leaves, 1e-9
            assert residual(a, b, x) < 1e-3 * max(1.0, scale**-0.5)


def test_what_is_inside_the_cone_needs_nothing_and_a_diagonal_problem_is_solved_by_entry() -> None:
    inside = np.diag([1.0, 0.0])
    assert not complementary(inside, np.zeros((2, 2, 2, 2))).any()
    # B[X] = X: X is what lifts the negative part of A to 0
    identity = np.einsum("ik,jl->ijkl", np.eye(3), np.eye(3))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    a = turn @ np.diag([-2.0, -0.5, 3.0]) @ turn.T
    np.testing.assert_allclose(
        complementary(a, identity), turn @ np.diag([2.0, 0.5, 0]) @ turn.T, atol=1e-8
    )
    assert complementary(np.array([[-3.0]]), np.full((1, 1, 1, 1), 6.0)) == 0.5
    with pytest.raises(UserError, match="nothing brings the eigenvalue back to the edge"):
        complementary(np.array([[-1.0]]), np.zeros((1, 1, 1, 1)))


def _net(norm: bool) -> FlatLoss:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), *([nn.LayerNorm(4)] if norm else []), nn.Tanh(), nn.Linear(4, 2)]
    net = nn.Sequential(*layers).double()
    x, y = torch.randn(6, 3, dtype=F64), torch.randn(6, 2, dtype=F64)
    return FlatLoss.of_model(Loss(net, half_mse, (x, y)))


@pytest.mark.parametrize("norm", [False, True])
def test_third_derivatives_are_those_of_central_differences(norm: bool) -> None:
    loss = _net(norm)
    size = 4 * 3 + 4 + 8 * norm + 2 * 4 + 2
    g = torch.Generator().manual_seed(1)
    w = 0.7 * torch.randn(size, generator=g, dtype=F64)
    u = torch.randn(size, 2, generator=g, dtype=F64)
    rows = loss.at(w).third(u)
    assert rows.shape == (3, size)
    h = 1e-5  # truncation about h² = 1e-10, rounding about 1e-16/h = 1e-11
    for row, (i, j) in zip(rows, pairs(2), strict=True):
        for p in range(0, size, 5):
            step = h * torch.eye(size, dtype=F64)[p]
            ends = [u[:, i] @ (loss.at(w + s * step).hessian @ u[:, j]) for s in (1, -1)]
            assert float(row[p]) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), abs=1e-7)


def test_torchs_own_layer_norm_is_wrong_there() -> None:
    """What `FlatLoss.of_model` avoids; when this fails, torch is mended."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 4, dtype=F64), torch.randn(6, 4, dtype=F64)

    def function(w: Tensor) -> Tensor:
        return 0.5 * (nn.functional.layer_norm(x * w, (4,)).tanh() - y).square().mean()

    def right(w: Tensor) -> Tensor:
        z = x * w
        z = z - z.mean(1, keepdim=True)
        z = z * (z.square().mean(1, keepdim=True) + 1e-5).rsqrt()
        return 0.5 * (z.tanh() - y).square().mean()

    w, u = torch.rand(4, dtype=F64) + 0.5, torch.randn(4, 1, dtype=F64)
    torch.testing.assert_close(
        FlatLoss(function).at(w).hessian @ u, FlatLoss(right).at(w).hessian @ u
    )
    torchs, ours = FlatLoss(function).at(w).third(u), FlatLoss(right).at(w).third(u)
    assert float((torchs - ours).norm() / ours.norm()) > 1e-3


def test_below_the_edge_it_is_the_gradient_flow_of_a_quadratic() -> None:
    """L = ½ Σ λ_i w_i²: w(t) = e^{−η λ t} w(0), in steps."""
    curvatures = torch.tensor([3.0, 1.0, 0.1], dtype=F64)
    loss = FlatLoss(lambda w: 0.5 * (curvatures * w.square()).sum())
    lr, steps = 0.1, 10
    start, rule = _at(1.0, -2.0, 3.0), GradientDescent(lr)
    exact = (-lr * curvatures * steps).exp() * start.weights
    *_, stable = islice(stable_flow(loss, rule, start, substeps=4), steps)
    # Runge-Kutta: (ηλ/4)^5/120 a substep, times 40 substeps: below 1e-6
    torch.testing.assert_close(stable.weights, exact, rtol=1e-5, atol=1e-8)
    errors = []
    for substeps in (8, 16):
        *_, center = islice(central_flow(loss, rule, start, substeps), steps)
        assert center.oscillation == 0 and center.predicted_loss == center.loss
        errors.append(float((center.state.weights - exact).norm() / exact.norm()))
    assert errors[0] < 0.02 and errors[1] == pytest.approx(errors[0] / 2, rel=0.1)  # Euler


def _valley(w: Tensor) -> Tensor:
    """L = ½ (1 + v) u² − b v: curvature 1 + v along u, and v rises at rate b."""
    loss: Tensor = 0.5 * (1 + w[1]) * w[0].square() - 0.3 * w[1]
    return loss


def test_a_rising_curvature_stays_at_the_edge_with_the_covariance_that_holds_it() -> None:
    """dv/dt = η (b − ½ Σ), 0 at v = 2/η − 1: Σ = 2b, and the loss is higher by ½ (2/η) 2b = 2b/η."""
    lr, b = 0.5, 0.3
    loss, rule = FlatLoss(_valley), GradientDescent(lr)
    centers = list(islice(central_flow(loss, rule, _at(0.0, 2.0), substeps=4), 40))
    last = centers[-1]
    assert float(last.state.weights[1]) == pytest.approx(2 / lr - 1, abs=1e-6)
    assert float(last.top[0]) == pytest.approx(EDGE, abs=1e-6)
    # X is in the basis with UᵀPU = 1, u = √η: Σ = η X
    assert lr * float(last.covariance[0, 0]) == pytest.approx(2 * b, rel=1e-6)
    assert last.oscillation == pytest.approx(2 * b / lr, rel=1e-6)
    # before the edge nothing oscillates, and v rises as by gradient flow
    assert centers[3].covariance.sum() == 0
    assert float(centers[3].state.weights[1]) == pytest.approx(2 + 4 * lr * b)
    for center in centers:
        if len(center.slack):
            assert float(np.linalg.eigvalsh(center.slack).min()) > -1e-6
            assert abs(float((center.covariance * center.slack).sum())) < 1e-6


def test_two_eigenvalues_are_held_at_once() -> None:
    """As above with two directions of one curvature: Σ is 2b in trace, not in each."""
    lr, b = 0.5, 0.3

    def function(w: Tensor) -> Tensor:
        return 0.5 * (1 + w[2]) * (w[0].square() + w[1].square()) - b * w[2]

    *_, last = islice(
        central_flow(FlatLoss(function), GradientDescent(lr), _at(0.0, 0.0, 2.9), substeps=4), 10
    )
    assert lr * float(np.trace(last.covariance)) == pytest.approx(2 * b, rel=1e-5)
    assert float(np.linalg.eigvalsh(last.covariance).min()) > -1e-9


def test_a_drift_off_the_diagonal_is_held_by_a_covariance_off_the_diagonal() -> None:
    """H = [[w₂, w₄], [w₄, w₃]] of (x, y), driven by (.3, .2, .1): at rest at H = 2/η.

    dw₂/dt ∝ .3 − ½ Σ₁₁, dw₃/dt ∝ .2 − ½ Σ₂₂, dw₄/dt ∝ .1 − Σ₁₂, hence Σ = [[.6, .1], [.1, .4]].
    """
    lr, drive = 0.5, torch.tensor([0.3, 0.2, 0.1], dtype=F64)

    def function(w: Tensor) -> Tensor:
        x, y = w[0], w[1]
        return 0.5 * (w[2] * x.square() + w[3] * y.square()) + w[4] * x * y - w[2:] @ drive

    start = _at(0.0, 0.0, 3.9, 3.95, 0.02)
    *_, last = islice(central_flow(FlatLoss(function), GradientDescent(lr), start), 20)
    expected = np.linalg.eigvalsh(np.array([[0.6, 0.1], [0.1, 0.4]]))
    np.testing.assert_allclose(np.linalg.eigvalsh(lr * last.covariance), expected, rtol=1e-5)
    held = torch.tensor([2 / lr, 2 / lr, 0.0], dtype=F64)
    torch.testing.assert_close(last.state.weights[2:], held, rtol=0, atol=1e-5)


def test_the_average_of_gradient_descent_is_where_the_flow_says() -> None:
    """L = ½ (1 + v) u² + ½ c (v − 3.2)²: descent settles on u ↦ −u with v = 2/η − 1, u² = Σ.

    The flow's rest is the same: ½ Σ = c (3.2 − v). The cycle attracts since c > η u².
    """
    lr, c = 0.5, 0.4

    def function(w: Tensor) -> Tensor:
        return 0.5 * (1 + w[1]) * w[0].square() + 0.5 * c * (w[1] - 3.2).square()

    loss, rule = FlatLoss(function), GradientDescent(lr)
    *_, before, run = islice(discrete(loss, rule, _at(0.3, 2.9)), 400)
    *_, last = islice(central_flow(loss, rule, _at(0.0, 2.9), substeps=4), 40)
    average = (before.weights + run.weights) / 2
    torch.testing.assert_close(average, last.state.weights, rtol=0, atol=1e-6)
    sigma = lr * float(last.covariance[0, 0])
    assert float(run.weights[0].square()) == pytest.approx(sigma, rel=1e-6)
    mean = (loss.value(before.weights) + loss.value(run.weights)) / 2
    assert mean == pytest.approx(last.predicted_loss, rel=1e-6)


def test_rmsprop_holds_the_preconditioned_eigenvalue_and_raises_nu() -> None:
    """On a quadratic no weight moves the curvature: ν alone holds it, with ν = (λη/2)².

    At rest along u, ∇L² averages (HΣH) = λ²Σ = ν, so that Σ = ν/λ² = η²/4, whatever λ.
    """
    curvature, lr = 3.0, 0.1
    loss = FlatLoss(lambda w: 0.5 * curvature * w[0].square() + 0.5 * w[1].square())
    rule = RMSprop(lr, alpha=0.9, eps=0.0)
    start = State(torch.tensor([1e-3, 1e-3], dtype=F64), torch.full((2,), 0.05, dtype=F64))
    last = list(islice(central_flow(loss, rule, start, substeps=4), 50))[-1]
    nu = float(last.state.squares[0])
    assert nu == pytest.approx((curvature * lr / EDGE) ** 2, rel=1e-3)
    p = math.sqrt(nu) / lr
    k = int(last.covariance.diagonal().argmax())
    assert float(last.covariance[k, k]) / p == pytest.approx(lr**2 / 4, rel=0.02)


def test_rmsprop_is_torchs() -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(4, dtype=F64))
    optimizer = torch.optim.RMSprop([w], lr=0.01, alpha=0.9)
    loss = FlatLoss(lambda w: (w.square() * torch.arange(1, 5)).sum().cosh())
    state = State(w.detach().clone(), torch.zeros(4, dtype=F64))
    steps = discrete(loss, RMSprop(0.01, 0.9), state)
    for _ in range(5):
        optimizer.zero_grad()
        loss.function(w).backward()
        optimizer.step()
        state = next(steps)
    torch.testing.assert_close(state.weights, w.detach())


def test_too_few_substeps_and_several_batches_are_refused() -> None:
    with pytest.raises(UserError, match="substeps must be at least 2, got 1"):
        next(central_flow(FlatLoss(_valley), GradientDescent(0.1), _at(0.0, 1.0), substeps=1))
    net = nn.Linear(2, 1).double()
    x, y = torch.randn(4, 2, dtype=F64), torch.randn(4, 1, dtype=F64)
    with pytest.raises(ValueError, match="a flow needs all data in one batch, got 2"):
        FlatLoss.of_model(Loss(net, half_mse, [(x[:2], y[:2]), (x[2:], y[2:])]))
