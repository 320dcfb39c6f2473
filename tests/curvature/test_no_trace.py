"""Models that write to themselves, change, cast or are compiled: measured correctly, unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from optbench.curvature import (
    Hessian,
    MeasurementError,
    SecondDerivativeWarning,
    loss_and_gradient,
    mean_loss,
    top_eigenpairs,
)
from optbench.curvature.chunks import Chunks, Pair

from .helpers import EPS, dense, dense_hessian

LABELS = torch.arange(30) % 3


class _Clamped(nn.Module):
    """Clips its weights in place at every call, one of them where torch does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.a.weight.clamp_(-0.2, 0.2)
        self.b.weight.data.clamp_(-0.1, 0.1)
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out


class _Remembering(nn.Module):
    """Counts its calls, keeps its last activations and a moving average that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3)
        self.calls, self.average = 0, torch.zeros(5)
        self.seen: Tensor | None = None
        self.total: Tensor
        self.register_buffer("total", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = outputs = self.inner(x)
        self.average.mul_(0.9).add_(x.detach().mean(0).float(), alpha=0.1)
        self.total += x.detach().sum(0)
        self.extra = x
        out: Tensor = outputs * (1 + 0.01 * self.calls)
        return out


def _inputs(dtype: torch.dtype = torch.float64) -> Pair:
    torch.manual_seed(2)
    return torch.randn(30, 5).to(dtype), LABELS


def _tokens() -> Pair:
    torch.manual_seed(2)
    return torch.randint(0, 9, (30, 3)), LABELS


def _renormed() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(9, 4, max_norm=0.5), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)
    )


@pytest.mark.filterwarnings("ignore::optbench.curvature.SecondDerivativeWarning")
@pytest.mark.parametrize("strategy", ["cached", "recomputed"])
@pytest.mark.parametrize(("make", "data"), [(_Clamped, _inputs), (_renormed, _tokens)])
def test_weights_that_a_forward_pass_writes_to_stay(
    make: Callable[[], nn.Module], data: Callable[[], Pair], strategy: Any
) -> None:
    torch.manual_seed(0)
    model = make().double()
    before = copy.deepcopy(model.state_dict())
    H = Hessian(model, F.cross_entropy, data(), strategy=strategy)
    found = dense(H)
    loss_and_gradient(H), mean_loss(H), top_eigenpairs(H)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    # now the weights are what the forward pass makes of them
    F.cross_entropy(model(data()[0]), LABELS)
    torch.testing.assert_close(
        found, dense(Hessian(model, F.cross_entropy, data())), rtol=0, atol=100 * EPS
    )


def test_that_the_projection_is_held_is_said() -> None:
    torch.manual_seed(0)
    with pytest.warns(SecondDerivativeWarning, match="held"):
        Hessian(_renormed().double(), F.cross_entropy, _tokens()).prepare()


def test_attributes_buffers_and_activations_stay() -> None:
    torch.manual_seed(0)
    model = _Remembering().double()
    H = Hessian(model, F.cross_entropy, _inputs())
    first, second = dense(H), dense(H)
    assert torch.equal(first, second)
    assert (model.calls, model.seen) == (0, None) and not hasattr(model, "extra")
    assert not model.average.any() and not model.total.any()


@pytest.mark.parametrize("name", ["old weight_norm", "old spectral_norm"])
def test_norms_of_the_old_kind_leave_no_graph_behind(name: str) -> None:
    layer = nn.Linear(5, 3).double()
    layer = nn.utils.weight_norm(layer) if "weight" in name else nn.utils.spectral_norm(layer)
    kept = layer.weight
    dense(Hessian(layer, F.cross_entropy, _inputs(), mode="eval"))
    assert layer.weight is kept


def test_what_trains_may_change_and_the_operator_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model[0].requires_grad_(False)
    H = Hessian(model, F.cross_entropy, _inputs())
    v = torch.ones(21).double()
    assert H @ v is not None
    for change in (
        lambda: model[0].requires_grad_(True),
        lambda: model[2].weight.requires_grad_(False),
        lambda: model.__setitem__(2, nn.Linear(6, 4).double()),
    ):
        change()
        with pytest.raises(MeasurementError, match="parameters that train have changed"):
            H @ v
    torch.testing.assert_close(
        dense(Hessian(model, F.cross_entropy, _inputs())),
        dense_hessian(model, F.cross_entropy, _inputs()),
        rtol=0,
        atol=100 * EPS,
    )


class _Autocast(nn.Module):
    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x: Tensor) -> Any:
        if self.how == "decorated":
            return torch.autocast("cpu", torch.bfloat16)(self.inner)(x).float()
        if self.how == "cast":
            return self.inner(x).bfloat16().float()
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).float() if self.how == "context" else self.inner(x)


def _mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("how", ["context", "left in bfloat16", "decorated"])
def test_autocast_inside_the_model_is_off_meanwhile_and_on_again_after(how: str) -> None:
    inner, data = _mlp(), _inputs(torch.float32)
    model = _Autocast(inner, how)
    before = model(data[0])
    plain = Hessian(inner, F.cross_entropy, data)
    assert torch.equal(dense(Hessian(model, F.cross_entropy, data)), dense(plain))
    assert torch.equal(model(data[0]), before) and not torch.equal(before.float(), inner(data[0]))


def test_a_cast_to_half_precision_is_refused_in_words() -> None:
    with pytest.raises(MeasurementError, match=r"computes in torch\.bfloat16"):
        dense(Hessian(_Autocast(_mlp(), "cast"), F.cross_entropy, _inputs(torch.float32)))


def test_single_precision_inside_a_model_does_not_round_a_measurement_in_double() -> None:
    class Upcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.softmax(self.a(x), -1, dtype=torch.float32).to(x.dtype)
            out: Tensor = self.b(hidden.float().tanh().to(torch.float32).to(x.dtype))
            return out

    torch.manual_seed(0)
    model, data = Upcast(), _inputs(torch.float32)
    found = dense(Hessian(model, F.cross_entropy, data, dtype=torch.float64))

    def plain(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        hidden = torch.softmax(F.linear(x, weights["a.weight"], weights["a.bias"]), -1)
        return F.linear(hidden.tanh(), weights["b.weight"], weights["b.bias"])

    names, shapes = zip(*[(n, p.shape) for n, p in model.named_parameters()], strict=True)

    def loss(w: Tensor) -> Tensor:
        parts = torch.split(w, [s.numel() for s in shapes])
        weights = {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(plain(weights, data[0].double()), data[1])

    w = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    torch.testing.assert_close(found, torch.func.hessian(loss)(w), rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("what", ["loss", "model", "part", "in place"])
def test_compiled_code_is_measured_as_it_was_written(what: str) -> None:
    model, data = _mlp().double(), _inputs()
    expected = dense_hessian(model, F.cross_entropy, data)
    compiled: Any = copy.deepcopy(model)
    loss: Any = F.cross_entropy
    if what == "loss":
        loss = torch.compile(F.cross_entropy, backend="aot_eager")
    elif what == "model":
        compiled = torch.compile(compiled, backend="aot_eager")
    elif what == "part":
        compiled[0] = torch.compile(compiled[0], backend="aot_eager")
    else:
        compiled.compile(backend="aot_eager")
    loss(compiled(data[0]), data[1]).backward()
    torch.testing.assert_close(
        dense(Hessian(compiled, loss, data)), expected, rtol=0, atol=100 * EPS
    )
    loss(compiled(data[0]), data[1]).backward()  # and is compiled again afterwards


class _Noisy(Dataset[Pair]):
    """Other inputs each time they are asked for."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Pair:
        return torch.randn(5), LABELS[index]


def test_workers_that_persist_are_left_alone_and_draw_the_same_at_each_pass() -> None:
    loader = DataLoader(_Noisy(), batch_size=10, num_workers=1, persistent_workers=True)
    chunks = Chunks(loader, torch.device("cpu"), torch.float32)
    training = iter(loader)
    next(training)
    with chunks.kept_rng():
        first, second = ([inputs for inputs, _ in chunks] for _ in range(2))
    assert len(first) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(list(training)) == 2
