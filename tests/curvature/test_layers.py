"""Layers put in for their cheap second derivative: the same functions as torch's, in all derivatives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from optbench.curvature import Hessian
from optbench.curvature.chunks import Pair
from optbench.curvature.layers import CheapSecondDerivatives, ThirdDerivativeError
from optbench.curvature.objective import Objective
from optbench.curvature.products import hessian_by_double_backward
from optbench.curvature.strategy import graph_bytes
from optbench.models.vit import vit
from perf.cases import CNN, ViT, half_mse
from tests.curvature.helpers import EPS

attend = F.scaled_dot_product_attention
CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "conv1d": (F.conv1d, [(2, 3, 7), (4, 3, 3), (4,)]),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=1), [(2, 3, 5, 4), (4, 3, 3, 3), (4,)]),
    "conv2d of groups, dilated": (
        lambda x, w: F.conv2d(x, w, dilation=2, padding=(2, 1), groups=2),
        [(2, 4, 5, 5), (6, 2, 3, 3)],
    ),
    "conv2d, same": (lambda x, w: F.conv2d(x, w, padding="same", dilation=2), [(1, 2, 5, 5), (2, 2, 3, 3)]),
    "conv1d, valid": (lambda x, w: F.conv1d(x, w, None, 2, "valid"), [(1, 2, 5), (2, 2, 3)]),
    "conv3d": (lambda x, w, b: F.conv3d(x, w, b, 2, 1), [(2, 2, 4, 3, 3), (2, 2, 3, 3, 3), (2,)]),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (5,), w, b), [(3, 2, 5), (5,), (5,)]),
    "layer norm of two dimensions, no bias": (lambda x, w: F.layer_norm(x, (2, 3), w), [(4, 2, 3), (2, 3)]),
    "layer norm alone": (lambda x: F.layer_norm(x, (5,), eps=0.1), [(3, 5)]),
    "group norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [(3, 4, 2, 3), (4,), (4,)]),
    "group norm, no places": (lambda x, w, b: F.group_norm(x, 2, w, b), [(3, 6), (6,), (6,)]),
    "group norm alone": (lambda x: F.group_norm(x, 1, eps=0.1), [(2, 3, 4)]),
    "batch norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        [(3, 2, 2, 2), (2,), (2,)],
    ),
    "batch norm alone": (lambda x: F.batch_norm(x, None, None, training=True, eps=0.1), [(4, 3)]),
    "gelu": (F.gelu, [(4, 3)]),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), [(4, 3)]),
    "silu": (F.silu, [(4, 3)]),
    "mish": (F.mish, [(4, 3)]),
    "softplus": (lambda x: F.softplus(x, 2), [(4, 3)]),
    "tanh": (torch.tanh, [(4, 3)]),
    "tanh, method": (lambda x: x.tanh(), [(4, 3)]),
    "sigmoid": (torch.sigmoid, [(4, 3)]),
    "attention": (attend, [(2, 2, 4, 3)] * 3),
    "attention, causal": (lambda q, k, v: attend(q, k, v, is_causal=True), [(2, 4, 3)] * 3),
    "attention across": (lambda q, k, v: attend(q, k, v, scale=0.7), [(2, 1, 4, 3), (2, 1, 5, 3), (2, 1, 5, 2)]),
    "attention, mask": (
        lambda q, k, v: attend(q, k, v, torch.arange(4) > torch.tensor([[0], [1], [-1], [2]])),
        [(2, 2, 4, 3)] * 3,
    ),
    "attention, bias": (
        lambda q, k, v: attend(q, k, v, torch.linspace(-1, 1, 32).double().view(2, 1, 4, 4)),
        [(2, 2, 4, 3)] * 3,
    ),
}


@pytest.fixture
def at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("optbench.curvature.layers.activation"), "LEAST", 0)


def _in_order(x: Tensor) -> Tensor:
    return x


def _channels_last(x: Tensor) -> Tensor:
    """The same numbers with the second dimension next to each other in memory, as convolutions like them."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 2 else x


def _reversed(x: Tensor) -> Tensor:
    """The same numbers with the first dimension next to each other in memory."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


@pytest.mark.parametrize("layout", [_in_order, _channels_last, _reversed])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("at_any_size")
def test_second_derivatives_against_differences_and_torchs(name: str, layout: Callable[[Tensor], Tensor]) -> None:
    function, shapes = CASES[name]
    torch.manual_seed(0)
    arguments = [layout(torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes]

    def cheap(*given: Tensor) -> Tensor:
        with CheapSecondDerivatives():
            return function(*given)

    own = cheap(*arguments).grad_fn
    while own is not None and not type(own).__name__.startswith("_"):  # through a last change of shape
        own = own.next_functions[0][0]
    assert own is not None, "torch's own was called"
    # By central differences, 1e-6 apart, so that they err by 1e-10 of the values; torch allows 1e-5.
    assert gradgradcheck(cheap, arguments)
    along = [torch.randn_like(x) for x in arguments]
    weights = layout(torch.randn_like(function(*arguments).detach())).requires_grad_()
    found, expected = (_derivatives(f, arguments, weights, along) for f in (cheap, function))
    for one, other in zip(found, expected, strict=True):
        # Sums of tens of terms in another order: some hundred rounding units of the largest.
        torch.testing.assert_close(one, other, rtol=0, atol=500 * EPS * max(1.0, float(other.abs().max())))


def _derivatives(
    function: Callable[..., Tensor], arguments: list[Tensor], weights: Tensor, along: list[Tensor]
) -> list[Tensor]:
    """The value, its gradients along the weights, and the gradients of those along others."""
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
        value = function(*arguments)
    slopes = torch.autograd.grad(value, arguments, weights, create_graph=True)
    bends = torch.autograd.grad(slopes, [weights, *arguments], along, allow_unused=True, materialize_grads=True)
    return [value.detach(), *(s.detach() for s in slopes), *bends]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.conv2d(x, x[:, :, :2, :2], padding="same"),
        lambda x: F.conv2d(x[0], x[:, :, :2, :2]),
        lambda x: F.batch_norm(x, torch.zeros(3).double(), torch.ones(3).double()),
        lambda x: F.silu(x * 1, inplace=True),
        lambda x: F.silu(x * 1, True),
        lambda x: attend(x, x, x, dropout_p=0.5),
        lambda x: attend(x, x[:, :1], x[:, :1], enable_gqa=True),
        lambda x: attend(x, x, x, x[0, 0, :4, :4]),
        torch.tanh,  # small
    ],
)
def test_what_is_not_covered_is_torchs_own(call: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    expected = call(x)
    torch.manual_seed(1)
    with CheapSecondDerivatives():
        found = call(x)
    assert torch.equal(found, expected)
    assert type(found.grad_fn) is type(expected.grad_fn)


def _compare(model: nn.Module, data: Pair) -> tuple[Hessian, list[Tensor]]:
    """Products with the cheap layers, kept and recomputed, and then with torch's, in float64."""
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    kept, anew, plain = (Hessian(model, half_mse, data, strategy=s) for s in ("cached", "recomputed", "cached"))
    plain.objective.cheap = False
    return kept, [kept @ v, anew @ v, plain @ v]


def _assert_same(found: Tensor, expected: Tensor) -> None:
    # Norms and sums over up to a thousand terms amplify rounding; seen: 1e-15.
    assert float((found - expected).norm() / expected.norm()) < 1000 * EPS


@pytest.mark.parametrize("build", [CNN, ViT, lambda: vit((3, 32, 32), 10)], ids=["CNN", "torch's ViT", "ViT"])
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


@pytest.mark.parametrize("kind", [nn.GELU, lambda: nn.LayerNorm(8), lambda: nn.Unflatten(1, (8, 1))])
def test_a_checkpointed_layer_runs_again_as_it_ran(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Linear(6, 8), kind(), nn.Flatten(), nn.Sigmoid(), nn.LayerNorm(8), nn.GELU())
    model, data = _Checkpointed(inside, nn.Linear(8, 7)).double(), _data()
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    found = [Hessian(model, half_mse, data, strategy=s) @ v for s in ("cached", "recomputed")]
    model.on = False
    plain = Hessian(model, half_mse, data)
    plain.objective.cheap = False
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
    (slopes,) = torch.autograd.grad(y[0, :2], z, torch.eye(2).double(), create_graph=True, is_grads_batched=True)
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
        return self.use(z, checkpoint(self.inside, z, use_reentrant=False) if self.again else self.inside(z))


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
def test_every_way_to_differentiate_inside_of_a_model(use: Callable[[Tensor, Tensor], Tensor], again: bool) -> None:
    torch.manual_seed(0)
    model, data = _Slopes(use, again).double(), (torch.randn(9, 6).double(), torch.tensor(0.0).double().expand(9))
    loss = lambda o, _: o.square().mean()  # noqa: E731
    H, plain = Hessian(model, loss, data), Hessian(model, loss, data)
    plain.objective.cheap = False
    v = torch.randn(H.size, dtype=torch.float64)
    _assert_same(H @ v, plain @ v)


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
    return attend(y, y, y, seen) + attend(y, y, y, torch.zeros(9, 1, 1).double().masked_fill(~seen, -torch.inf))


@pytest.mark.usefixtures("at_any_size")
@pytest.mark.parametrize(
    "use",
    [
        lambda m, y: F.group_norm(y.tanh(), 2, m.table.weight[:, 0], m.table.bias),
        lambda m, y: F.group_norm(y, 2, m.table.bias[:1].expand(6)),
        lambda m, y: torch.tanh(torch.complex(y, y * 2)).abs() + torch.sigmoid(torch.complex(y, y * 2)).abs(),
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
    H, plain = (Hessian(model, lambda o, _: o.square().mean() + o.mean(), data) for _ in range(2))
    plain.objective.cheap = False
    v = torch.randn(H.size, dtype=torch.float64)
    _assert_same(H @ v, plain @ v)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.layer_norm(x, (6,)),
        lambda x: F.layer_norm(x, (3,), torch.ones(1, 3).double()),
        lambda x: F.batch_norm(x, None, None, torch.ones(1).double(), training=True),
        lambda x: attend(x, x, x, torch.zeros(2, 2).double(), is_causal=True),
        lambda x: attend(x, x, x, torch.ones(2, 2).int()),
    ],
)
def test_what_torch_refuses_is_refused(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError) as expected:
        call(x)
    with CheapSecondDerivatives(), pytest.raises(RuntimeError) as found:
        call(x)
    assert str(found.value) == str(expected.value)


def test_a_norm_keeps_the_layout_of_its_input() -> None:
    x = torch.randn(2, 4, 3, 3, requires_grad=True).to(memory_format=torch.channels_last)
    for norm in (nn.GroupNorm(2, 4), nn.BatchNorm2d(4)):
        expected = norm(x)
        with CheapSecondDerivatives():
            found = norm(x)
        assert found.stride() == expected.stride()


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
        nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 7)
    ).double()
    for name in ("0.bias", "1.weight", "2.bias", "4.weight", "4.bias"):
        model.get_parameter(name).requires_grad_(False)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    data = torch.randn(9, 1, 6).double(), torch.randn(9, 7).double()
    H, plain = Hessian(model, half_mse, data, params=trained), Hessian(model, half_mse, data, params=trained)
    plain.objective.cheap = False
    v = torch.randn(H.size, dtype=torch.float64)
    _assert_same(H @ v, plain @ v)


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


def test_attention_inside_of_torchs_own_layers_is_seen() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    with CheapSecondDerivatives():
        nodes = [layer(torch.randn(2, 3, 8)).grad_fn]
    names = set()
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.add(type(node).__name__)
            nodes += [following for following, _ in node.next_functions]
    assert "_AttentionBackward" in names


def test_nothing_is_left_behind() -> None:
    with CheapSecondDerivatives():
        pass
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert type(F.conv2d(x, torch.randn(2, 3, 3, 3)).grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(1, 3), lambda: nn.BatchNorm2d(3)], ids=["group", "batch"])
def test_channels_last(norm: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 3, 3, padding=1), norm(), nn.Conv2d(3, 3, 3), norm(), nn.GELU(), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(48, 7)).double()
    images = torch.randn(8, 3, 6, 6).double().to(memory_format=torch.channels_last)
    _, (kept, _, plain) = _compare(model, (images, torch.randn(8, 7).double()))
    _assert_same(kept, plain)
