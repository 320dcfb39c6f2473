"""Operations whose derivatives torch gets wrong or lacks: right ones, or a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations

from optbench.curvature import (
    GaussNewton,
    Hessian,
    MeasurementError,
    SecondDerivativeWarning,
    top_eigenpairs,
)
from optbench.curvature.corrected_operations import Measured
from optbench.dynamics.progressive_sharpening import sharpening

from .helpers import EPS, dense, dense_hessian, differenced_hessian

LABELS = torch.arange(30) % 3


def _of_any_order() -> Measured:
    mode = Measured(torch.float64)
    mode.any_order = True
    return mode


def _data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(30, 5).double(), LABELS


@pytest.mark.parametrize("dim", [0, 1, -1, None])
@pytest.mark.parametrize("old", [True, False])
def test_weight_norm(dim: int | None, old: bool) -> None:
    torch.manual_seed(0)
    norm: Callable[..., nn.Module] = nn.utils.weight_norm if old else parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(5, 6), dim=dim), nn.Tanh(), nn.Linear(6, 3)).double()
    H = Hessian(model, F.cross_entropy, _data())
    expected = differenced_hessian(model, F.cross_entropy, _data())
    torch.testing.assert_close(dense(H), expected, rtol=0, atol=1e-6)
    pairs = top_eigenpairs(H, accuracy=1e-8, tol=1e-8)
    assert float(pairs.values[0]) == pytest.approx(
        float(torch.linalg.eigvalsh(expected)[-1]), abs=1e-6
    )
    assert pairs.converged


def test_values_are_torchs_own() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(7, 4).double(), torch.randn(5, 4).double()
    table, tokens = torch.randn(9, 4).double(), torch.randint(0, 9, (20,))
    starts, bags = torch.tensor([0, 3, 3, 11]), torch.randint(0, 9, (6, 3))
    weights = torch.rand(20).double()
    uses: list[Callable[[], Tensor]] = [
        lambda: torch._weight_norm(x, y[:1], 1),
        lambda: F.hardsigmoid(4 * x),
        lambda: torch.cdist(x, y),
        lambda: torch.cdist(x, y, 1.0),
        lambda: F.pdist(x, 3.0),
        lambda: F.embedding(tokens, table, 2, sparse=True),
        lambda: F.embedding_bag(bags, table, mode="mean"),
        lambda: F.embedding_bag(bags, table, mode="max", padding_idx=3),
        lambda: F.embedding_bag(tokens, table, starts, mode="sum", per_sample_weights=weights),
        lambda: F.embedding_bag(
            tokens, table, starts, mode="mean", padding_idx=1, include_last_offset=True
        ),
        lambda: F.embedding_bag(tokens, table, starts, mode="max"),
    ]
    for use in uses:
        expected = use()
        with Measured(torch.float64):
            torch.testing.assert_close(use(), expected, rtol=0, atol=20 * EPS)


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.LayerNorm((4, 3)), (6, 4, 3)),
    "plain layer": (lambda: nn.LayerNorm(3, elementwise_affine=False), (6, 4, 3)),
    "rms": (lambda: nn.RMSNorm(3), (6, 4, 3)),
    "group": (lambda: nn.GroupNorm(2, 4), (6, 4, 3)),
    "instance": (lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), (6, 4, 3)),
    "batch": (lambda: nn.BatchNorm1d(4), (6, 4, 3)),
    "batch, eval": (lambda: nn.BatchNorm1d(4).eval(), (6, 4)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_primitive_operations(name: str) -> None:
    """Values and statistics are torch's; third derivatives agree with differences of the second."""
    make, shape = NORMS[name]
    torch.manual_seed(0)
    x, mask = torch.randn(shape).double(), torch.randn(shape).double()
    original, primitive = make().double(), make().double()
    expected = original(x)
    with _of_any_order():
        torch.testing.assert_close(primitive(x), expected, rtol=0, atol=100 * EPS)
        for one, two in zip(original.buffers(), primitive.buffers(), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=10 * EPS)

        def curvature(at: Tensor) -> Tensor:
            at = at if at.requires_grad else at.requires_grad_()
            (slope,) = torch.autograd.grad(
                (primitive(at) * mask).pow(3).sum(), at, create_graph=True
            )
            (bent,) = torch.autograd.grad((slope * mask).sum(), at, create_graph=True)
            return (bent * mask).sum()

        start = x.clone().requires_grad_()
        (third,) = torch.autograd.grad(curvature(start), start)
        h = 1e-5
        along = torch.randn(shape).double()
        difference = float((curvature(x + h * along) - curvature(x - h * along)).detach()) / (2 * h)
        assert float((third * along).sum()) == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(8), lambda: nn.BatchNorm1d(8)])
def test_a_model_that_differentiates_by_itself_through_a_norm(
    norm: Callable[[], nn.Module],
) -> None:
    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(5, 8), norm(), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            y = self.inside(x)
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            return torch.cat([y, slope], 1)

    torch.manual_seed(0)
    model = Penalized().double()
    inputs = _data()[0]

    def loss(outputs: Tensor, _: Tensor) -> Tensor:
        return outputs.square().mean()

    for kind in (Hessian, GaussNewton):
        H = kind(model, loss, (inputs, LABELS))
        assert H.layers != "torch" or kind is GaussNewton
        if kind is Hessian:
            torch.testing.assert_close(
                dense(H), _by_differences(model, loss, inputs), rtol=0, atol=1e-6
            )
            assert H.layers == "primitive"
        else:
            matrix = dense(H)
            torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)


def _by_differences(model: nn.Module, loss: Any, inputs: Tensor) -> Tensor:
    """Columns from central differences of the gradient, itself by differences: error about 1e-7.

    Twice differences of the loss in double precision: h = 1e-4, error h² + ε/h².
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    flat = torch.nn.utils.parameters_to_vector(weights).detach()
    h, axes = 1e-5, torch.eye(len(flat)).double()

    def gradient(w: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(w, weights)
        with _of_any_order():
            value = loss(model(inputs), LABELS)
            return torch.cat([g.flatten() for g in torch.autograd.grad(value, weights)])

    columns = [(gradient(flat + h * a) - gradient(flat - h * a)) / (2 * h) for a in axes]
    torch.nn.utils.vector_to_parameters(flat, weights)
    return torch.stack(columns)


def test_sharpening_through_a_layer_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, labels = _data()
    weights = list(model.parameters())
    u = torch.randn(sum(p.numel() for p in weights)).double()
    u /= u.norm()

    def loss() -> Tensor:
        return F.cross_entropy(model(inputs), labels)

    with _of_any_order():
        found = sharpening(loss, weights, u)
    flat, h = torch.nn.utils.parameters_to_vector(weights).detach(), 1e-5
    along = torch.randn(len(flat)).double()
    bent = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(flat + sign * h * along, weights)
        bent.append(float(u @ (Hessian(model, F.cross_entropy, (inputs, labels)) @ u)))
    assert float(found.gradient @ along) == pytest.approx((bent[0] - bent[1]) / (2 * h), rel=1e-5)


class _Cube(torch.autograd.Function):
    """x³, whose backward pass forgets that it depends on x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * g


class _CubeOnce(_Cube):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class _CubeAskew(_Cube):
    """x³ with a gradient of which the derivative is wrong, and not symmetric."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * g + g.detach() * (x - x.detach()).roll(1, -1)


class _Through(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(5, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.function.apply(self.a(x)))
        return out


def test_wrong_second_derivatives_of_the_users_own_are_found() -> None:
    torch.manual_seed(0)
    with pytest.warns(
        SecondDerivativeWarning, match=r"differ from differences of the gradient by \d"
    ):
        Hessian(_Through(_Cube).double(), F.cross_entropy, _data()).prepare()
    for kind in (Hessian, GaussNewton):
        with pytest.raises(MeasurementError, match="differentiable once"):
            kind(_Through(_CubeOnce).double(), F.cross_entropy, _data()).prepare()
    H = Hessian(_Through(_CubeAskew).double(), F.cross_entropy, _data())
    with (
        pytest.warns(SecondDerivativeWarning),
        pytest.raises(MeasurementError, match="are not symmetric"),
    ):
        top_eigenpairs(H)


def test_later_products_are_compared_too() -> None:
    """A first product in a corner where all is well does not vouch for the rest."""
    torch.manual_seed(0)
    H = Hessian(_Through(_CubeAskew).double(), F.cross_entropy, _data())
    corner = torch.zeros(H.size).double()
    corner[-1] = 1  # a bias after the wrong function
    with (
        pytest.warns(SecondDerivativeWarning),
        pytest.raises(MeasurementError, match="are not symmetric"),
    ):
        H @ corner
        H @ torch.ones(H.size).double()


@pytest.mark.parametrize("old", [True, False])
def test_spectral_norm_in_train_mode_is_refused(old: bool) -> None:
    torch.manual_seed(0)
    norm: Any = nn.utils.spectral_norm if old else parametrizations.spectral_norm
    model = nn.Sequential(norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)).double()
    with pytest.raises(MeasurementError, match=r"spectral_norm of 0 is in train mode.*mode='eval'"):
        dense(Hessian(model, F.cross_entropy, _data()))
    model.eval()
    expected = differenced_hessian(model, F.cross_entropy, _data())
    torch.testing.assert_close(
        dense(Hessian(model, F.cross_entropy, _data())), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    "loss",
    [nn.MultiMarginLoss(), lambda o, t: torch.special.zeta(3 + o.square(), 2 + o.square()).mean()],
)
def test_what_torch_cannot_do_is_said_in_one_line(loss: Any) -> None:
    model = nn.Linear(5, 3).double()
    with pytest.raises(
        MeasurementError, match="torch cannot differentiate this loss twice"
    ) as caught:
        dense(Hessian(model, loss, _data()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"sparse": True}, {"scale_grad_by_freq": True}, {}])
def test_embeddings_give_the_hessian_of_the_loss(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(9, 4, **settings), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)
    ).double()
    data = torch.randint(0, 9, (30, 3)), LABELS
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)).double()
    found = dense(Hessian(model, F.cross_entropy, data))
    torch.testing.assert_close(
        found, dense_hessian(plain, F.cross_entropy, data), rtol=0, atol=100 * EPS
    )
