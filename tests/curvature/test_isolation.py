"""What a measurement must not change, and what must not change a measurement."""

from __future__ import annotations

import random
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optbench.curvature import GaussNewton, Hessian, spectral_density, top_eigenpairs, trace
from optbench.curvature.isolation import Mode
from optbench.curvature.product_strategy import Strategy
from optbench.curvature.pyhessian import PyHessian
from perf.cases import half_mse

from .helpers import EPS, dense_hessian, small


def state(model: nn.Module) -> list[object]:
    """All that a measurement might change, bit for bit."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [t.clone() for t in tensors],
        [t._version for t in tensors],
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [m.training for m in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    ]


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def tricky() -> nn.Sequential:
    """Batch norm, dropout, a frozen layer, mixed modes, and a gradient already there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3),
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3),
    ).double()  # fmt: skip
    model[4].requires_grad_(False)
    model[5].eval()
    model(torch.randn(9, 6).double()).sum().backward()
    return model


class Broken(nn.Module):
    """Fails in the forward pass of its third call."""

    def __init__(self, calls: int = 2) -> None:
        super().__init__()
        # not a number: what a forward pass sets is put back after a measurement
        self.left = iter([False] * calls)

    def forward(self, x: Tensor) -> Tensor:
        if next(self.left, True):
            raise RuntimeError("broken")
        return x * torch.rand_like(x)


@pytest.mark.parametrize("strategy", ["auto", "cached", "recomputed"])
@pytest.mark.parametrize("mode", ["train", "eval", None])
def test_nothing_is_changed(strategy: Strategy, mode: Mode | None) -> None:
    model, (_, data) = tricky(), small()
    before = state(model)
    for operator in (
        Hessian(model, half_mse, data, strategy=strategy, mode=mode),
        GaussNewton(model, half_mse, data, strategy=strategy, mode=mode),
    ):
        top_eigenpairs(operator, 2)
        trace(operator, 3)
        spectral_density(operator, 5, 1)
    if mode == "eval":
        PyHessian(model, half_mse, data).top_eigenpairs(2)
        PyHessian(model, half_mse, [data, data]).trace()
    assert same(before, state(model))


@pytest.mark.parametrize("engine", ["ours", "pyhessian"])
def test_nothing_is_changed_by_an_exception(engine: str) -> None:
    _, data = small()
    model = nn.Sequential(tricky(), Broken())
    model[0].zero_grad()
    before = state(model)
    with pytest.raises(RuntimeError, match="broken"):
        if engine == "ours":
            top_eigenpairs(Hessian(model, half_mse, data, mode="eval", strategy="recomputed"))
        else:
            PyHessian(model, half_mse, [data, data]).top_eigenpairs()
    assert same(before, state(model))


def test_training_batches_are_unmoved() -> None:
    """A shared DataLoader with its own generator deals the batches it would have dealt."""
    model, data = small()
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*data), batch_size=6, shuffle=True, generator=generator)
    untouched = generator.get_state()
    H = Hessian(model, half_mse, loader)
    v = torch.randn(H.size).double()
    expected = dense_hessian(model, half_mse, data) @ v
    torch.testing.assert_close(H @ v, expected, rtol=0, atol=1000 * EPS)  # last batch has 2 of 20
    assert torch.equal(generator.get_state(), untouched)


def test_training_is_bit_identical_with_measurements() -> None:
    def train(measured: bool) -> list[Tensor]:
        model, (_, data) = tricky(), small()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
        H = Hessian(model, half_mse, data)
        for step in range(6):
            if measured and step % 2 == 0:
                with H:
                    top_eigenpairs(H)
            optimizer.zero_grad()
            half_mse(model(data[0]), data[1]).backward()
            optimizer.step()
        return [*model.parameters(), *model.buffers()]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_autocast_grad_modes_and_float64() -> None:
    model, data = small()
    v = torch.randn(53).double()
    expected = Hessian(model, half_mse, data, strategy="cached") @ v
    for context in (torch.autocast("cpu", torch.bfloat16), torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(Hessian(model, half_mse, data, strategy="cached") @ v, expected)
    single = small()[0].float()
    H = Hessian(single, half_mse, data, strategy="cached")
    Hv = H @ v.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(H @ v.float(), Hv)
        assert torch.equal(Hessian(single, half_mse, data, strategy="cached") @ v.float(), Hv)

    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = single

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x).bfloat16()
            return out

    with pytest.raises(ValueError, match=r"computes in torch.bfloat16"):
        Hessian(Casts(), half_mse, data) @ v.float()


def test_compiled_model_is_measured_uncompiled() -> None:
    model, data = small()
    v = torch.randn(53).double()
    compiled = cast(nn.Module, torch.compile(model))
    H = Hessian(compiled, half_mse, data, strategy="cached")
    assert torch.equal(H @ v, Hessian(model, half_mse, data, strategy="cached") @ v)
