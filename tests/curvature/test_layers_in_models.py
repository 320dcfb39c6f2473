"""Hessians of models with cheap layers put in: those with torch's own, whatever the model does."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from optbench.curvature import Hessian
from optbench.curvature.chunk_loss import Criterion, Objective
from optbench.curvature.chunks import Pair
from optbench.curvature.product_strategy import graph_bytes
from optbench.curvature.products import hessian_by_double_backward
from optbench.fast_layers import CheapSecondDerivatives, ThirdDerivativeError
from optbench.models.vit import vit
from perf.cases import CNN, ViT, half_mse
from tests.curvature.helpers import EPS

attend = F.scaled_dot_product_attention


@pytest.fixture
def at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("optbench.fast_layers.activation"), "LEAST", 0)


def _compare(model: nn.Module, data: Pair) -> tuple[Hessian, list[Tensor]]:
    """Products with the cheap layers, kept and recomputed, and then with torch's, in float64."""
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    kept, anew = (Hessian(model, half_mse, data, strategy=s) for s in ("cached", "recomputed"))
    plain = _with_torchs(model, half_mse, data)
    return kept, [kept @ v, anew @ v, plain @ v]


def _with_torchs(model: nn.Module, loss: Criterion, data: Pair, **kwargs: Any) -> Hessian:
    H = Hessian(model, loss, data, **kwargs)
    H.objective.cheap = False
    return H


def _assert_same_product(model: nn.Module, loss: Criterion, data: Pair, **kwargs: Any) -> None:
    H = Hessian(model, loss, data, **kwargs)
    v = torch.randn(H.size, dtype=torch.float64)
    _assert_same(H @ v, _with_torchs(model, loss, data, **kwargs) @ v)


def _assert_same(found: Tensor, expected: Tensor) -> None:
    # Norms and sums over up to a thousand terms amplify rounding; seen: 1e-15.
    assert float((found - expected).norm() / expected.norm()) < 1000 * EPS


@pytest.mark.parametrize(
    "build", [CNN, ViT, lambda: vit((3, 32, 32), 10)], ids=["CNN", "torch's ViT", "ViT"]
)
def test_networks_have_the_same_hessian_and_no_larger_graph(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().double()
    data = torch.randn(4, 3, 32, 32).double(), torch.randn(4, 10).double()
    operator, (kept, anew, plain) = _compare(model, data)
    assert operator.objective.cheap
    _assert_same(kept, plain)
    _assert_same(anew, plain)
    sizes = []
    for cheap in (True, False):
        objective = Objective(model, half_mse)
        objective.cheap = cheap
        with objective.measured():
            sizes.append(graph_bytes(objective, hessian_by_double_backward, data))
    assert sizes[0] <= 1.05 * sizes[1]


class _Checkpointed(nn.Module):
    def __init__(self, inside: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.inside, self.last, self.on = inside, last, True

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.inside, x, use_reentrant=False) if self.on else self.inside(x)
        out: Tensor = self.last(hidden)
        return out


class _Penalized(nn.Module):
    """Outputs beside their own derivative in the inputs, as in physics-informed networks."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        y = self.inside(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return torch.cat([y, slope], 1)


class _Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 7))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.func.vmap(self.inside)(x)
        return out


def _data() -> Pair:
    return torch.randn(9, 6).double(), torch.randn(9, 7).double()


@pytest.mark.parametrize(
    "kind", [nn.GELU, lambda: nn.LayerNorm(8), lambda: nn.Unflatten(1, (8, 1))]
)
def test_a_checkpointed_layer_runs_again_as_it_ran(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    inside = nn.Sequential(
        nn.Linear(6, 8), kind(), nn.Flatten(), nn.Sigmoid(), nn.LayerNorm(8), nn.GELU()
    )
    model, data = _Checkpointed(inside, nn.Linear(8, 7)).double(), _data()
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    found = [Hessian(model, half_mse, data, strategy=s) @ v for s in ("cached", "recomputed")]
    model.on = False
    plain = _with_torchs(model, half_mse, data)
    for product in found:
        _assert_same(product, plain @ v)


def test_a_model_that_differentiates_by_itself_gets_torchs_layers() -> None:
    torch.manual_seed(0)
    model = _Penalized().double()
    operator, (kept, anew, plain) = _compare(model, _data())
    assert not operator.objective.cheap
    assert torch.equal(kept, plain)
    _assert_same(anew, plain)  # in parts
    with CheapSecondDerivatives(), pytest.raises(ThirdDerivativeError):
        torch.autograd.grad(model(_data()[0]).sum(), list(model.parameters()), create_graph=True)


def _two_derivatives(z: Tensor, y: Tensor) -> Tensor:
    slopes = [torch.autograd.grad(y[:, i].sum(), z, create_graph=True)[0] for i in range(2)]
    return torch.cat([y, *slopes], 1)


def _detached_slope(z: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y, torch.autograd.grad(y.sum(), z, create_graph=True)[0].detach()], 1)


def _batched_slopes(z: Tensor, y: Tensor) -> Tensor:
    (slopes,) = torch.autograd.grad(
        y[0, :2], z, torch.eye(2).double(), create_graph=True, is_grads_batched=True
    )
    return y + slopes.sum()


def _backward_into_the_input(z: Tensor, y: Tensor) -> Tensor:
    y.sum().backward(inputs=[z], retain_graph=True)
    assert z.grad is not None
    return y * z.grad.sum()


class _Slopes(nn.Module):
    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], again: bool) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
        self.use, self.again = use, again

    def forward(self, x: Tensor) -> Tensor:
        z = x.detach().requires_grad_()
        return self.use(
            z, checkpoint(self.inside, z, use_reentrant=False) if self.again else self.inside(z)
        )


@pytest.mark.parametrize(
    ("use", "again"),
    [
        (_two_derivatives, False),
        (_detached_slope, False),
        (_batched_slopes, False),
        (_backward_into_the_input, False),
        (_backward_into_the_input, True),
    ],
)
def test_every_way_to_differentiate_inside_of_a_model(
    use: Callable[[Tensor, Tensor], Tensor], again: bool
) -> None:
    torch.manual_seed(0)
    model, data = (
        _Slopes(use, again).double(),
        (torch.randn(9, 6).double(), torch.tensor(0.0).double().expand(9)),
    )
    _assert_same_product(model, lambda o, _: o.square().mean(), data)


class _Uses(nn.Module):
    """A convolution of six channels and what is made of its outputs, shape (9, 6, 4)."""

    def __init__(self, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.table = nn.Conv1d(1, 6, 3), nn.BatchNorm1d(6), nn.Linear(2, 6)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, self.conv(x)).flatten(1)


def _statistics_read(m: Any, y: Tensor) -> Tensor:
    out: Tensor = m.bn(y) * m.bn.running_var[:, None]
    return out


def _statistics_used(m: Any, y: Tensor) -> Tensor:
    F.batch_norm(y.detach(), m.bn.running_mean, m.bn.running_var, training=True)
    return F.batch_norm(y, m.bn.running_mean, m.bn.running_var)


def _frozen_extractor(m: Any, y: Tensor) -> Tensor:
    with torch.inference_mode():
        scale = F.gelu(F.layer_norm(m.table.weight, (2,)))
    return y * scale.clone().sum()


def _masked_tokens(m: Any, y: Tensor) -> Tensor:
    seen = (torch.arange(9) % 2 == 0).view(9, 1, 1)
    return attend(y, y, y, seen) + attend(
        y, y, y, torch.zeros(9, 1, 1).double().masked_fill(~seen, -torch.inf)
    )


@pytest.mark.usefixtures("at_any_size")
@pytest.mark.parametrize(
    "use",
    [
        lambda m, y: F.group_norm(y.tanh(), 2, m.table.weight[:, 0], m.table.bias),
        lambda m, y: F.group_norm(y, 2, m.table.bias[:1].expand(6)),
        lambda m, y: (
            torch.tanh(torch.complex(y, y * 2)).abs() + torch.sigmoid(torch.complex(y, y * 2)).abs()
        ),
        lambda m, y: F.conv1d(y, y[:2, :, :2], stride=np.int64(1)),  # type: ignore[call-overload]
        lambda m, y: F.gelu(input=y),
        lambda m, y: attend(y[:, :0], y, y).sum() + y,
        _statistics_read,
        _statistics_used,
        _frozen_extractor,
        _masked_tokens,
    ],
)
def test_uses_of_layers(use: Callable[[nn.Module, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, data = _Uses(use).double(), (torch.randn(9, 1, 6).double(), torch.zeros(9))
    _assert_same_product(model, lambda o, _: o.square().mean() + o.mean(), data)


@pytest.mark.parametrize("cheap", [True, False])
def test_a_checkpointed_batch_norm_keeps_its_statistics(cheap: bool) -> None:
    inside = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU())
    model = _Checkpointed(inside, nn.Linear(8, 7)).double()
    before = [b.clone() for b in model.buffers()]
    H = Hessian(model, half_mse, _data())
    H.objective.cheap = cheap
    products = [H @ torch.ones(H.size, dtype=torch.float64) for _ in range(2)]
    assert torch.equal(*products)
    assert all(torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True))


def test_a_model_that_uses_transforms_gets_torchs_layers() -> None:
    torch.manual_seed(0)
    _, (kept, _, plain) = _compare(_Mapped().double(), _data())
    assert torch.equal(kept, plain)


def test_frozen_and_unused_affine_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.BatchNorm1d(4),
        nn.Flatten(),
        nn.LayerNorm(16),
        nn.Linear(16, 7),
    ).double()
    for name in ("0.bias", "1.weight", "2.bias", "4.weight", "4.bias"):
        model.get_parameter(name).requires_grad_(False)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    data = torch.randn(9, 1, 6).double(), torch.randn(9, 7).double()
    _assert_same_product(model, half_mse, data, params=trained)


@pytest.mark.parametrize("build", [CNN, lambda: vit((3, 32, 32), 10)], ids=["CNN", "ViT"])
def test_single_precision_is_as_exact_as_torchs(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    data = torch.randn(4, 3, 32, 32), torch.randn(4, 10)
    v = torch.randn(sum(p.numel() for p in model.parameters()))
    truth = Hessian(model, half_mse, data, dtype=torch.float64) @ v.double()
    errors: list[Any] = []
    for cheap in (True, False):
        H = Hessian(model, half_mse, data)
        H.objective.cheap = cheap
        errors.append(float((H @ v - truth).norm() / truth.norm()))
    assert errors[0] < 2 * errors[1]


@pytest.mark.parametrize(
    "norm", [lambda: nn.GroupNorm(1, 3), lambda: nn.BatchNorm2d(3)], ids=["group", "batch"]
)
def test_channels_last(norm: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 3, 3, padding=1),
        norm(),
        nn.Conv2d(3, 3, 3),
        norm(),
        nn.GELU(),
        nn.Flatten(),
    )
    model = nn.Sequential(*layers, nn.Linear(48, 7)).double()
    images = torch.randn(8, 3, 6, 6).double().to(memory_format=torch.channels_last)
    _, (kept, _, plain) = _compare(model, (images, torch.randn(8, 7).double()))
    _assert_same(kept, plain)
