"""The loss as one function of the parameters: value, gradient, Hessian and Gauss-Newton matrix."""

import copy
import gc
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from optbench.curvature import (
    GaussNewton,
    Hessian,
    Loss,
    MeasurementError,
    loss_and_gradient,
    mean_loss,
)
from perf.cases import half_mse

from .helpers import EPS, dense, dense_hessian, small


def _flat(model: nn.Module, value: Tensor) -> Tensor:
    slopes = torch.autograd.grad(value, list(model.parameters()))
    return torch.cat([slope.reshape(-1) for slope in slopes])


@pytest.mark.parametrize("chunk", [None, 7])
def test_value_and_gradient_are_autograds(chunk: int | None) -> None:
    model, data = small()
    loss = Loss(model, half_mse, data, chunk=chunk)
    expected = half_mse(model(data[0]), data[1])
    value, gradient = loss.value_and_gradient()
    # Sums of 20 terms in float64, in another order: 100 ε.
    assert loss.value() == pytest.approx(float(expected), rel=100 * EPS)
    assert value == pytest.approx(float(expected), rel=100 * EPS)
    torch.testing.assert_close(gradient, _flat(model, expected), rtol=0, atol=100 * EPS)
    assert torch.equal(loss.gradient(), gradient)
    assert all(p.grad is None for p in model.parameters())


def test_its_matrices_are_those_of_the_operators() -> None:
    model, (inputs, _) = small()
    data = inputs, torch.arange(20) % 3
    loss = Loss(model, cross_entropy, data)
    assert torch.equal(dense(loss.hessian()), dense(Hessian(model, cross_entropy, data)))
    assert torch.equal(dense(loss.gauss_newton()), dense(GaussNewton(model, cross_entropy, data)))
    expected = dense_hessian(model, cross_entropy, data)
    torch.testing.assert_close(dense(loss.hessian()), expected, rtol=0, atol=100 * EPS)


def test_an_operators_loss_is_what_it_is_the_hessian_of() -> None:
    model, data = small()
    H = Hessian(model, half_mse, data, params=["2.weight"], weight=lambda x, y: 3.0)
    value, gradient = H.loss.value_and_gradient()
    assert gradient.shape == (H.size,)
    assert (value, H.loss.value()) == (loss_and_gradient(H)[0], mean_loss(H))


def test_it_keeps_arguments_for_its_matrices() -> None:
    model, data = small()
    model = copy.deepcopy(model).float()
    loss = Loss(model, half_mse, data, params=["0.weight"], dtype=torch.float64, layers="torch")
    H = loss.hessian("recomputed")
    assert (H.size, H.dtype, H.layers) == (loss.size, torch.float64, "torch")
    dense(H)
    assert H.strategy == "recomputed"


def test_any_derivative_of_it_can_be_taken() -> None:
    """∇(uᵀHu) against central differences of uᵀHu: h² with h = 1e-5, and rounding/h."""
    model, data = small()
    loss, u = Loss(model, half_mse, data), torch.randn(53, dtype=torch.float64)
    with loss.differentiable() as (value, leaves):
        first = torch.autograd.grad(value(), leaves, create_graph=True)
        along = torch.cat([g.reshape(-1) for g in first]) @ u
        second = torch.autograd.grad(along, leaves, create_graph=True)
        bend = torch.cat([g.reshape(-1) for g in second]) @ u
        third = torch.cat([g.reshape(-1) for g in torch.autograd.grad(bend, leaves)])
    weight = next(model.parameters())
    bends = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            weight[0, 0] += h
        bends.append(float(u @ (Hessian(model, half_mse, data) @ u)))
        with torch.no_grad():
            weight[0, 0] -= h
    assert float(third[0]) == pytest.approx((bends[0] - bends[1]) / 2e-5, rel=1e-5, abs=1e-6)


def test_an_operator_is_freed_with_its_last_name() -> None:
    """Its graphs are large: they must not wait until cycles are collected."""
    model, data = small()
    H = Hessian(model, half_mse, data)
    dense(H)
    seen, loss = ref(H), H.loss
    value = loss.value()
    gc.disable()
    try:
        del H
        assert seen() is None
    finally:
        gc.enable()
    # it cuts its data anew, so that the 20 terms are summed in another order
    assert loss.value() == pytest.approx(value, rel=100 * EPS)


def test_what_a_hessian_refuses_its_loss_alone_refuses_too() -> None:
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    with pytest.raises(MeasurementError, match="inputs of shape"):
        Loss(nn.Linear(5, 2), cross_entropy, (x, y)).value()
    norm = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    for ask in (Loss.value, Loss.gradient):
        with pytest.raises(MeasurementError, match="all examples in one chunk, got 2"):
            ask(Loss(norm, cross_entropy, batches))
