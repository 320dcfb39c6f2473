"""Layers and habits that break curvature tools."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from optbench.curvature import Hessian
from optbench.curvature.product_strategy import Strategy
from perf.cases import half_mse

from .helpers import EPS, dense, dense_hessian, differenced_hessian, small


@pytest.mark.parametrize("strategy", ["auto", "cached", "recomputed"])
def test_batch_norm_in_train_mode(strategy: Strategy) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    _, data = small()
    H = Hessian(model, half_mse, data, strategy=strategy)
    without = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    without.load_state_dict(model.state_dict(), strict=False)
    expected = differenced_hessian(without, half_mse, data)
    torch.testing.assert_close(dense(H), expected, rtol=0, atol=1e-6)
    halves = [(data[0][:10], data[1][:10]), (data[0][10:], data[1][10:])]
    with pytest.raises(ValueError, match=r"one chunk, got 2"):
        Hessian(model, half_mse, halves) @ torch.zeros(H.size).double()
    split = Hessian(model, half_mse, halves, split_batch_norm=True)
    mean = sum(differenced_hessian(without, half_mse, half) for half in halves) / 2
    torch.testing.assert_close(dense(split), mean, rtol=0, atol=1e-6)
    model.eval()
    torch.testing.assert_close(
        dense(Hessian(model, half_mse, halves)),
        differenced_hessian(model, half_mse, data),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("strategy", ["auto", "cached", "recomputed"])
def test_dropout_keeps_one_mask(strategy: Strategy) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    _, data = small()
    H = Hessian(model, half_mse, data, strategy=strategy)
    matrix = dense(H)
    assert torch.equal(matrix, dense(H))
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=100 * EPS)
    reference = dense(Hessian(model, half_mse, data, strategy="cached"))
    # the same mask everywhere
    torch.testing.assert_close(matrix, reference, rtol=0, atol=100 * EPS)
    model.eval()
    assert not torch.allclose(matrix, dense(H))


def test_unused_tied_and_frozen_parameters() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight  # tied
            self.frozen = nn.Linear(4, 3)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.frozen(torch.tanh(self.b(torch.tanh(self.a(x)))))
            return out

    torch.manual_seed(0)
    model = Odd().double()
    data = (torch.randn(20, 4).double(), torch.randn(20, 3).double())
    strategies: tuple[Strategy, ...] = ("cached", "recomputed")
    for strategy in strategies:
        H = Hessian(model, half_mse, data, strategy=strategy)
        assert H.size == 6 + 16 + 4 + 4
        expected = dense_hessian(model, half_mse, data)
        torch.testing.assert_close(dense(H), expected, rtol=0, atol=100 * EPS)
        assert not dense(H)[:6].any()
    assert torch.equal(
        dense(Hessian(model, half_mse, data, params=["b.weight"])),
        dense(Hessian(model, half_mse, data, params=["a.weight"])),
    )
    with pytest.raises(ValueError, match="requires_grad is False"):
        Hessian(model, half_mse, data, params=["frozen.bias"])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        out: Tensor = self.out(scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))
        return out


@pytest.mark.parametrize("name", ["sdpa", "encoder"])
@pytest.mark.parametrize("training", [True, False])
def test_fused_attention(name: str, training: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model = (
        Attention() if name == "sdpa" else nn.Sequential(layer, nn.Flatten(), nn.Linear(20, 3))
    ).double()
    model.train(training)
    data = (torch.randn(8, 5, 4).double(), torch.arange(8) % 3)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model.train()
        expected = differenced_hessian(model, cross_entropy, data)
        model.train(training)
    for strategy in ("auto", "recomputed"):
        H = Hessian(model, cross_entropy, data, strategy=strategy)
        torch.testing.assert_close(dense(H), expected, rtol=0, atol=1e-6)


def test_l2_in_the_loss_is_seen_or_refused() -> None:
    model, data = small()
    kept = list(model.parameters())

    def live(o: Tensor, t: Tensor) -> Tensor:
        return half_mse(o, t) + sum(p.square().sum() for p in model.parameters())

    def captured(o: Tensor, t: Tensor) -> Tensor:
        return half_mse(o, t) + sum(p.square().sum() for p in kept)

    expected = dense_hessian(model, half_mse, data) + 2 * torch.eye(53).double()
    torch.testing.assert_close(dense(Hessian(model, live, data)), expected, rtol=0, atol=100 * EPS)
    with pytest.raises(ValueError, match="taken out of the model"):
        Hessian(model, captured, data) @ torch.zeros(53).double()


def test_linear_loss_has_no_curvature() -> None:
    model = nn.Linear(3, 1).double()
    data = (torch.randn(5, 3).double(), torch.zeros(5))
    strategies: tuple[Strategy, ...] = ("cached", "recomputed")
    for strategy in strategies:
        assert not dense(Hessian(model, lambda o, t: o.mean(), data, strategy=strategy)).any()


def test_convolution_pooling_and_norms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Tanh(),
        nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(18), nn.Linear(18, 3),
    ).double()  # fmt: skip
    data = (torch.randn(6, 1, 8, 8).double(), torch.arange(6) % 3)
    expected = differenced_hessian(model, cross_entropy, data)
    for strategy in ("auto", "cached", "recomputed"):
        H = Hessian(model, cross_entropy, data, strategy=strategy)
        torch.testing.assert_close(dense(H), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(5, track_running_stats=False), nn.LayerNorm(5)])
def test_products_of_norms(norm: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), norm, nn.Tanh(), nn.Linear(5, 3)).double()
    _, data = small()
    H = Hessian(model, half_mse, data, strategy="cached")
    torch.testing.assert_close(
        dense(H), differenced_hessian(model, half_mse, data), rtol=0, atol=1e-6
    )
