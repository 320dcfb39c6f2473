"""Losses that count, remember or have extreme scales: measured as they are, left as they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optbench.curvature import Hessian, MeasurementError, top_eigenpairs

from .helpers import EPS, dense, dense_hessian

LABELS = torch.arange(30) % 3
Loss = Callable[[Tensor, Tensor], Tensor]


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def _data() -> tuple[Tensor, Tensor]:
    return torch.randn((30, 5), generator=torch.Generator().manual_seed(1)).double(), LABELS


class _Object:
    """Grows with every call: in a number, a list, a tensor, and an attribute made at the first."""

    def __init__(self) -> None:
        self.calls, self.seen, self.mean = 0, [0.0], torch.zeros(3, dtype=torch.float64)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(float(self.calls))
        self.mean += outputs.detach().mean(0)
        self.last = outputs.detach()
        return (
            F.cross_entropy(outputs, targets) * (self.calls + sum(self.seen))
            + (outputs * self.mean).mean()
        )

    def state(self) -> list[object]:
        return [self.calls, list(self.seen), self.mean.tolist(), hasattr(self, "last")]

    def method(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self(outputs, targets)


def _counting() -> tuple[Loss, Callable[[], object]]:
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(outputs, targets) * calls

    return loss, lambda: calls


def _of_object() -> tuple[Loss, Callable[[], object]]:
    loss = _Object()
    return loss, loss.state


def _of_method() -> tuple[Loss, Callable[[], object]]:
    loss = _Object()
    return loss.method, loss.state


def _in_closure() -> tuple[Loss, Callable[[], object]]:
    inner = _Object()
    return lambda outputs, targets: inner(outputs, targets), inner.state


@pytest.mark.parametrize("make", [_counting, _of_object, _of_method, _in_closure])
def test_a_loss_that_remembers(make: Callable[[], tuple[Loss, Callable[[], object]]]) -> None:
    model, data = _model(), _data()
    loss, state = make()
    before = state()
    H = Hessian(model, loss, data)
    found = dense(H)
    assert state() == before
    # What the first call of it would give: sums of 30 terms in float64.
    size = float(found.abs().max())
    torch.testing.assert_close(
        found, dense_hessian(model, _first_call(make), data), rtol=0, atol=100 * EPS * size
    )
    loss(torch.zeros(3, 3, dtype=torch.float64), LABELS[:3])
    assert state() != before
    after = dense(H)  # without refresh: what it is now is seen
    assert float((after - found).abs().max()) > 0.1 * size


def _first_call(make: Callable[[], tuple[Loss, Callable[[], object]]]) -> Loss:
    return lambda outputs, targets: make()[0](outputs, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-110, -60, -40, 0, 60, 110])
def test_eigenvalues_scale_with_the_loss(dtype: torch.dtype, exponent: int) -> None:
    """Powers of two change no digit of a product, but squares may over- or underflow."""
    data = _data()[0].to(dtype), LABELS
    model = _model().to(dtype)
    plain = top_eigenpairs(Hessian(model, F.cross_entropy, data), 2)
    factor = 2.0**exponent
    H = Hessian(model, lambda outputs, targets: F.cross_entropy(outputs, targets) * factor, data)
    cold = top_eigenpairs(H, 2)
    warm = top_eigenpairs(H, 2, start=cold, trust=0.1)
    for found in (cold, warm):
        assert found.converged
        # Both searches meet accuracy 5e-3 of λ₁ and are quadratically closer.
        torch.testing.assert_close(found.values / factor, plain.values, rtol=1e-3, atol=0)
        assert bool((found.bounds / factor < 1e-2 * plain.values[0]).all())
    assert warm.hvps <= 4


def test_data_made_in_inference_mode() -> None:
    model, data = _model(), _data()
    with torch.inference_mode():
        made = data[0].clone(), data[1].clone()
    torch.testing.assert_close(
        dense(Hessian(model, F.cross_entropy, made)), dense(Hessian(model, F.cross_entropy, data))
    )


def test_models_without_a_weight_to_differentiate_are_told_apart() -> None:
    frozen = _model().requires_grad_(False)
    with pytest.raises(MeasurementError, match="no parameter that trains"):
        Hessian(frozen, F.cross_entropy, _data())
    with torch.inference_mode():
        made = _model()
    with pytest.raises(MeasurementError, match="inference_mode"):
        Hessian(made, F.cross_entropy, _data())
