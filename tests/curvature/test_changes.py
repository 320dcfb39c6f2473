"""What changes between two products, or between two calls of one: seen, or without effect."""

from __future__ import annotations

import copy
import importlib
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from optbench.curvature import (
    Hessian,
    MeasurementError,
    SecondDerivativeWarning,
    WeightingWarning,
    loss_and_gradient,
    mean_loss,
)
from optbench.curvature.chunk_loss import Criterion
from optbench.curvature.chunks import Pair

from .helpers import EPS, dense, dense_hessian

LABELS = torch.arange(40) % 3


def _data(N: int = 40) -> Pair:
    torch.manual_seed(1)
    return torch.randn(N, 5).double(), torch.arange(N) % 3


def _mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def _same(H: Hessian, model: nn.Module, loss: Criterion, data: Pair) -> None:
    # Sums of 40 terms in float64, in another order.
    torch.testing.assert_close(dense(H), dense_hessian(model, loss, data), rtol=0, atol=100 * EPS)


def _hardest(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over examples whose cross-entropy is above .7: at the start all of them."""
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses[losses > 0.7].mean()


@pytest.mark.parametrize("strategy", ["auto", "recomputed"])
def test_a_loss_that_becomes_no_mean_while_training(
    strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        importlib.import_module("optbench.curvature.product_strategy"), "GRAIN", 1
    )  # so small a graph is cut
    model, data = _mlp(), _data()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.1)
    H = Hessian(model, _hardest, data, strategy=strategy)
    _same(H, model, _hardest, data)
    assert H.chunks.limit is not None  # it was a mean, so it was cut
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    losses = F.cross_entropy(model(data[0]), data[1], reduction="none")
    assert 3 < int((losses > 0.7).sum()) < 37
    _same(H, model, _hardest, data)


def test_data_that_grow_are_replaced_or_relabelled() -> None:
    model, (x, y) = _mlp(), _data()
    batches = [(x[:20], y[:20])]
    H = Hessian(model, F.cross_entropy, batches)
    _same(H, model, F.cross_entropy, batches[0])
    batches.append((x[20:], y[20:]))
    _same(H, model, F.cross_entropy, (x, y))
    batches[:] = [(x[10:30], y[10:30].roll(1))]
    _same(H, model, F.cross_entropy, batches[0])
    batches[0][1][:10] = -100
    _same(H, model, F.cross_entropy, batches[0])
    assert loss_and_gradient(H)[0] == pytest.approx(mean_loss(H), rel=1e-12)


def test_settings_of_modules_that_change() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = _mlp(), 1.0

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x) * self.scale
            return out

    model, data = Scaled(), _data()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())
    H = Hessian(model, loss, data)

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * 0.7

    classes = loss.weight
    assert classes is not None
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: setattr(model, "scale", 0.5),
        lambda: model.inner.__setitem__(1, nn.Sigmoid()),
        lambda: model.inner[0].register_forward_hook(hook),
        lambda: classes.copy_(torch.tensor([3.0, 1.0, 1.0])),
        lambda: setattr(loss, "label_smoothing", 0.1),
    ]
    for change in changes:
        change()
        _same(H, model, loss, data)


def test_a_teacher_in_the_losss_closure_is_seen_and_left_alone() -> None:
    model, (x, y) = _mlp(), _data()
    teacher = nn.Sequential(copy.deepcopy(model), nn.BatchNorm1d(3).double())

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, teacher(x).detach())

    before = copy.deepcopy(teacher.state_dict())
    H = Hessian(model, loss, (x, y))
    first = copy.deepcopy(teacher)(x).detach()
    _same(H, model, lambda o, _: F.mse_loss(o, first), (x, y))
    assert all(torch.equal(before[name], now) for name, now in teacher.state_dict().items())
    with torch.no_grad():
        teacher.get_parameter("0.0.weight").mul_(2)
    target = copy.deepcopy(teacher)(x).detach()
    _same(H, model, lambda o, _: F.mse_loss(o, target), (x, y))


class _OwnNorm(nn.Module):
    """Somebody's own batch norm, which follows its training flag."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_modes_that_change_and_dropout_beside_statistics_of_the_batch(dropout: float) -> None:
    model = nn.Sequential(_OwnNorm(), nn.Dropout(dropout), *_mlp())
    model.eval()
    H = Hessian(model, F.cross_entropy, _data(), memory=4000)
    _same(H, model, F.cross_entropy, _data())
    assert H.chunks.limit is not None
    model.train()
    H.prepare()
    assert H.chunks.limit is None
    if not dropout:
        _same(H, model, F.cross_entropy, _data())
    with pytest.raises(MeasurementError, match="chunk=10 cuts a loss"):
        Hessian(model, F.cross_entropy, _data(), chunk=10).prepare()


def test_a_train_method_of_the_models_own_sets_the_modes() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(
                nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)
            )

        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self.inner[1].eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            return out

    torch.manual_seed(0)
    model = Frozen().double()
    model.eval()
    found = dense(Hessian(model, F.cross_entropy, _data(), mode="train"))
    assert not model.training
    _same(Hessian(model.train(), F.cross_entropy, _data()), model, F.cross_entropy, _data())
    torch.testing.assert_close(
        found, dense_hessian(model, F.cross_entropy, _data()), rtol=0, atol=100 * EPS
    )


def test_outputs_that_are_no_tensors_are_not_cut_where_it_cannot_be_told() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _mlp()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(x)}

    weights = torch.tensor([0.1, 1.0, 5.0]).double()

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs["logits"], targets, weight=weights)

    x, y = _data()
    data = x, y.sort().values
    model = Named()
    H = Hessian(model, loss, data, memory=4000)
    expected = dense_hessian(model.inner, lambda o, t: F.cross_entropy(o, t, weight=weights), data)
    torch.testing.assert_close(dense(H), expected, rtol=0, atol=100 * EPS)
    with pytest.raises(MeasurementError, match="pass weight="):
        Hessian(model, loss, data, chunk=8).prepare()


def test_counters_and_flags_start_anew_at_every_call() -> None:
    class Warming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.step, self.seen = _mlp(), 0, list[int]()
            self.generator = torch.Generator().manual_seed(3)

        def forward(self, x: Tensor) -> Tensor:
            self.step += 1
            self.seen.append(self.step)
            noise = torch.rand((), generator=self.generator, dtype=x.dtype)
            out: Tensor = self.inner(x) * self.step * (1 + noise)
            return out

    model, (x, y) = Warming(), _data()
    state = model.generator.get_state()
    one = dense(Hessian(model, F.cross_entropy, (x, y)))
    two = dense(Hessian(model, F.cross_entropy, [(x[:20], y[:20]), (x[20:], y[20:])]))
    again = dense(Hessian(model, F.cross_entropy, (x, y), strategy="recomputed"))
    torch.testing.assert_close(two, one, rtol=0, atol=100 * EPS)
    torch.testing.assert_close(again, one, rtol=0, atol=100 * EPS)
    assert (model.step, model.seen) == (0, []) and torch.equal(model.generator.get_state(), state)


def test_generators_of_batch_samplers_stay() -> None:
    x, y = _data()
    generator = torch.Generator().manual_seed(5)
    dataset = TensorDataset(x, y)
    sampler = BatchSampler(RandomSampler(dataset, generator=generator), 8, False)
    before = generator.get_state()
    _same(
        Hessian(_mlp(), F.cross_entropy, DataLoader(dataset, batch_sampler=sampler)),
        _mlp(),
        F.cross_entropy,
        (x, y),
    )
    assert torch.equal(generator.get_state(), before)


def test_a_cache_of_parametrized_weights_is_passed_by() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        parametrizations.orthogonal(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    expected = dense(Hessian(model, F.cross_entropy, _data()))
    with parametrize.cached():
        torch.testing.assert_close(
            dense(Hessian(model, F.cross_entropy, _data())), expected, rtol=0, atol=100 * EPS
        )
        F.cross_entropy(model(_data()[0]), LABELS).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_autocast_is_what_it_was_after_measurements_in_two_threads() -> None:
    found: list[Tensor] = []
    # drawn here: torch's seed is one for all threads
    models, data = ([_mlp() for _ in range(2)], _data())

    def measure(model: nn.Module) -> None:
        found.extend(dense(Hessian(model, F.cross_entropy, data)) for _ in range(3))

    threads = [threading.Thread(target=measure, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(
        torch.allclose(one, found[0], rtol=0, atol=100 * EPS) for one in found
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert nn.Linear(3, 2)(torch.ones(1, 3)).dtype == torch.bfloat16


class _Graph(nn.Module):
    """A graph network whose nodes are the batch: no part of it is a batch."""

    def __init__(self, N: int) -> None:
        super().__init__()
        self.inner = _mlp()
        self.adjacency: Tensor
        self.register_buffer("adjacency", (torch.rand(N, N) < 0.3).double())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(self.adjacency @ x)
        return out


@pytest.mark.parametrize("N", [6, 20, 40])
def test_a_batch_that_has_no_parts(N: int) -> None:
    torch.manual_seed(0)
    model = _Graph(N)
    _same(Hessian(model, F.cross_entropy, _data(N)), model, F.cross_entropy, _data(N))


def test_right_models_are_neither_refused_nor_warned_of() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(1, 9, (40, 6))
    tokens[:, 4:] = 0
    padded = nn.Sequential(
        nn.Embedding(9, 4, padding_idx=0), nn.Flatten(1), nn.Linear(24, 3)
    ).double()
    x, y = _data()

    def in_place(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.div_(2.0), targets)

    advantages = torch.randn(40).double()
    advantages = (advantages - advantages.mean()) / advantages.std()
    targets = torch.stack([y.double(), advantages], 1)

    def policy(outputs: Tensor, targets: Tensor) -> Tensor:
        chosen = outputs.log_softmax(1).gather(1, targets[:, :1].long()).squeeze(1)
        return -((chosen - chosen.detach()).exp() * targets[:, 1]).mean()

    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Hessian(padded, F.cross_entropy, (tokens, y)).prepare()
        for batches in ((x, y), loader):
            _same(
                Hessian(_mlp(), in_place, batches),
                _mlp(),
                lambda o, t: F.cross_entropy(o / 2, t),
                (x, y),
            )
        # of what is detached in it, rightly
        warnings.simplefilter("ignore", SecondDerivativeWarning)
        Hessian(_mlp(), policy, DataLoader(TensorDataset(x, targets), batch_size=16)).prepare()
        warnings.simplefilter("error")
        Hessian(_mlp(), F.cross_entropy, (x, y), params=(n for n in ["0.weight"])).prepare()
        Hessian(_mlp(), F.cross_entropy, (x, y), params="0.weight").prepare()
        ignored = torch.where(torch.arange(40) < 10, -100, y)
        H = Hessian(
            _mlp(), F.cross_entropy, (x, ignored), chunk=10, weight=lambda _, t: (t != -100).sum()
        )
        _same(H, _mlp(), F.cross_entropy, (x, ignored))


def test_a_term_over_the_batch_that_is_flat_at_the_start_is_not_missed() -> None:
    model, data = _mlp(), _data()
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + outputs.var(0).sum()

    _same(Hessian(model, loss, data, memory=4000), model, loss, data)
    with pytest.raises(MeasurementError, match="chunk=10"):
        Hessian(model, loss, data, chunk=10).prepare()


def test_batches_of_different_lengths_are_said() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)).double()
    batches = [
        (tokens, tokens) for tokens in (torch.randint(0, 9, (6, 5)), torch.randint(0, 9, (6, 9)))
    ]
    with pytest.warns(WeightingWarning):
        Hessian(
            model, lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()), batches
        ).prepare()
