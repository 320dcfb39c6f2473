"""Layers with a cheap second derivative: torch's functions, in all derivatives."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel

from optbench.fast_layers import CheapSecondDerivatives
from tests.curvature.helpers import EPS

attend = F.scaled_dot_product_attention
CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "conv1d": (F.conv1d, [(2, 3, 7), (4, 3, 3), (4,)]),
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=1),
        [(2, 3, 5, 4), (4, 3, 3, 3), (4,)],
    ),
    "conv2d of groups, dilated": (
        lambda x, w: F.conv2d(x, w, dilation=2, padding=(2, 1), groups=2),
        [(2, 4, 5, 5), (6, 2, 3, 3)],
    ),
    "conv2d, same": (
        lambda x, w: F.conv2d(x, w, padding="same", dilation=2),
        [(1, 2, 5, 5), (2, 2, 3, 3)],
    ),
    "conv1d, valid": (lambda x, w: F.conv1d(x, w, None, 2, "valid"), [(1, 2, 5), (2, 2, 3)]),
    "conv3d": (lambda x, w, b: F.conv3d(x, w, b, 2, 1), [(2, 2, 4, 3, 3), (2, 2, 3, 3, 3), (2,)]),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (5,), w, b), [(3, 2, 5), (5,), (5,)]),
    "layer norm of two dimensions, no bias": (
        lambda x, w: F.layer_norm(x, (2, 3), w),
        [(4, 2, 3), (2, 3)],
    ),
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
    "attention across": (
        lambda q, k, v: attend(q, k, v, scale=0.7),
        [(2, 1, 4, 3), (2, 1, 5, 3), (2, 1, 5, 2)],
    ),
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
    monkeypatch.setattr(importlib.import_module("optbench.fast_layers.activation"), "LEAST", 0)


def _in_order(x: Tensor) -> Tensor:
    return x


def _channels_last(x: Tensor) -> Tensor:
    """The same numbers with the second dimension contiguous in memory, as convolutions prefer."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 2 else x


def _reversed(x: Tensor) -> Tensor:
    """The same numbers with the first dimension next to each other in memory."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


@pytest.mark.parametrize("layout", [_in_order, _channels_last, _reversed])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("at_any_size")
def test_second_derivatives_against_differences_and_torchs(
    name: str, layout: Callable[[Tensor], Tensor]
) -> None:
    function, shapes = CASES[name]
    torch.manual_seed(0)
    arguments = [
        layout(torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes
    ]

    def cheap(*given: Tensor) -> Tensor:
        with CheapSecondDerivatives():
            return function(*given)

    node = cheap(*arguments).grad_fn
    # The last nodes may only change the shape.
    while node is not None and not type(node).__name__.startswith("_"):
        node = node.next_functions[0][0]
    assert node is not None, "torch's own was called"
    # By central differences, 1e-6 apart, so that they err by 1e-10 of the values; torch allows
    # 1e-5.
    assert gradgradcheck(cheap, arguments)
    along = [torch.randn_like(x) for x in arguments]
    weights = layout(torch.randn_like(function(*arguments).detach())).requires_grad_()
    found, expected = (_derivatives(f, arguments, weights, along) for f in (cheap, function))
    for one, other in zip(found, expected, strict=True):
        # Sums of tens of terms in another order: some hundred rounding units of the largest.
        torch.testing.assert_close(
            one, other, rtol=0, atol=500 * EPS * max(1.0, float(other.abs().max()))
        )


def _derivatives(
    function: Callable[..., Tensor], arguments: list[Tensor], weights: Tensor, along: list[Tensor]
) -> list[Tensor]:
    """The value, its gradients along the weights, and the gradients of those along others."""
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
        value = function(*arguments)
    slopes = torch.autograd.grad(value, arguments, weights, create_graph=True)
    bends = torch.autograd.grad(
        slopes, [weights, *arguments], along, allow_unused=True, materialize_grads=True
    )
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
