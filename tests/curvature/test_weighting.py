"""Losses that are not means over examples: measured as written, or warned of, for any chunk."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optbench.curvature import (
    GaussNewton,
    Hessian,
    MeasurementError,
    WeightingWarning,
    loss_and_gradient,
    mean_loss,
    top_eigenpairs,
)
from optbench.curvature.chunk_loss import Criterion
from optbench.curvature.chunks import Pair

from .helpers import EPS, dense, dense_hessian

CLASSES = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _small_graphs_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bytes below which a graph is not cut, for fewer activations."""
    strategy = importlib.import_module("optbench.curvature.product_strategy")
    monkeypatch.setattr(strategy, "GRAIN", 200_000)


def _wide(inputs: int = 6) -> nn.Module:
    """Few parameters, many activations: the kept graph of 600 examples is cut in four parts."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 4), _Repeated(), nn.Linear(4, 3)).double()


class _Repeated(nn.Module):
    """Activations 30 times over: memory without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.unsqueeze(1) * torch.linspace(0.5, 1, 30).to(x).view(1, -1, 1)).mean(1)


class _OwnStatistics(nn.Module):
    """Centres with the batch's own mean, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def _data(N: int = 600) -> Pair:
    torch.manual_seed(1)
    return torch.randn(N, 6).double(), torch.randint(0, 3, (N,)).sort().values


def _ignoring(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, torch.where(torch.arange(len(targets)) < 350, -100, targets))


def _class_weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, weight=CLASSES.to(outputs.dtype))


def _contrastive(outputs: Tensor, _: Tensor) -> Tensor:
    unit = F.normalize(outputs, dim=1)
    return F.cross_entropy(unit @ unit.T / 0.5, torch.arange(len(outputs)).roll(1))


def _variance(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.var(0).sum()


def _root_mean_square(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.square().mean().sqrt()


@pytest.mark.parametrize("loss", [_class_weighted, _contrastive, _variance, _root_mean_square])
def test_one_pair_is_not_cut_where_parts_are_another_loss(loss: Criterion) -> None:
    model, data = _wide(), _data()
    H = Hessian(model, loss, data)
    # Sums of 600 terms in float64; seen: 1e-15.
    torch.testing.assert_close(dense(H), dense_hessian(model, loss, data), rtol=0, atol=1000 * EPS)
    assert H._plan is not None and H._plan.chunks == 1
    assert mean_loss(H) == pytest.approx(float(loss(model(data[0]), data[1]).detach()), rel=1e-12)


def test_a_mean_is_cut_and_ignored_targets_weigh_nothing() -> None:
    model, (inputs, targets) = _wide(), _data()
    H = Hessian(model, F.cross_entropy, (inputs, targets))
    expected = dense_hessian(model, F.cross_entropy, (inputs, targets))
    torch.testing.assert_close(dense(H), expected, rtol=0, atol=100 * EPS)
    assert H._plan is not None and H._plan.chunks == 4
    ignored = targets.clone()
    ignored[:350] = -100
    rest = (inputs[350:], targets[350:])
    whole = top_eigenpairs(
        Hessian(model, F.cross_entropy, (inputs, ignored)), accuracy=1e-8, tol=1e-8
    )
    alone = top_eigenpairs(Hessian(model, F.cross_entropy, rest), accuracy=1e-8, tol=1e-8)
    torch.testing.assert_close(whole.values, alone.values, rtol=1e-10, atol=0)


def test_layers_with_statistics_of_their_own_are_taken_whole() -> None:
    model, data = nn.Sequential(_wide(), _OwnStatistics()).double(), _data()
    for mode in ("train", "eval"):
        H = Hessian(model, F.cross_entropy, data, mode=mode)
        expected = dense_hessian(model, F.cross_entropy, data)
        torch.testing.assert_close(dense(H), expected, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_memory_does_not_cut_it_either(kind: type[Hessian]) -> None:
    model, data = _wide(), _data()
    tight, ample = (kind(model, _class_weighted, data, memory=m) for m in (1 << 17, 1 << 40))
    torch.testing.assert_close(dense(tight), dense(ample), rtol=0, atol=100 * EPS)
    assert tight.strategy == "recomputed" and ample.strategy == "cached"


def test_a_chunk_that_was_asked_for_is_refused_or_weighted() -> None:
    model, data = _wide(), _data()
    with pytest.raises(
        MeasurementError, match=r"chunk=100 cuts a loss .* pass weight=\(inputs, targets\)"
    ):
        Hessian(model, _class_weighted, data, chunk=100) @ torch.ones(43).double()
    H = Hessian(model, _class_weighted, data, chunk=100, weight=lambda _, t: CLASSES[t].sum())
    torch.testing.assert_close(
        dense(H), dense_hessian(model, _class_weighted, data), rtol=0, atol=100 * EPS
    )
    # each of the six cut in four, for its peak of memory
    assert H._plan is not None and H._plan.chunks == 24
    slope = loss_and_gradient(H)
    assert slope[0] == pytest.approx(
        float(_class_weighted(model(data[0]), data[1]).detach()), rel=1e-12
    )


def test_a_loader_whose_batches_weigh_otherwise_is_said() -> None:
    model, data = _wide(), _data()
    loader = DataLoader(TensorDataset(*data), batch_size=100)
    expected = dense_hessian(model, _class_weighted, data)
    with pytest.warns(WeightingWarning, match="pass weight="):
        H = Hessian(model, _class_weighted, loader)
        H.prepare()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weighted = Hessian(model, _class_weighted, loader, weight=lambda _, t: CLASSES[t].sum())
        torch.testing.assert_close(dense(weighted), expected, rtol=0, atol=100 * EPS)
        torch.testing.assert_close(
            dense(Hessian(model, F.cross_entropy, loader)),
            dense_hessian(model, F.cross_entropy, data),
            rtol=0,
            atol=100 * EPS,
        )
    assert float((dense(H) - expected).norm() / expected.norm()) > 0.1


def test_batches_of_different_lengths_are_looked_at_one_by_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)).double()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    batches = []
    for length in (5, 8):
        tokens = torch.randint(0, 9, (6, length))
        labels = torch.where(torch.rand(6, length) < 0.5, -100, tokens)
        batches.append((tokens, labels))
    with pytest.warns(WeightingWarning):
        Hessian(model, loss, batches).prepare()
    H = Hessian(model, loss, batches, weight=lambda _, t: (t != -100).sum())
    together = [
        torch.cat([F.pad(batch[i], (0, 8 - batch[i].shape[1]), value=v) for batch in batches])
        for i, v in ((0, 0), (1, -100))
    ]
    whole = Hessian(model, loss, (together[0], together[1]))
    torch.testing.assert_close(dense(H), dense(whole), rtol=0, atol=100 * EPS)


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (lambda *_: -1.0, "not negative, got -1"),
        (lambda *_: 0.0, "positive for some batch"),
        (lambda *_: torch.nan, "finite"),
    ],
)
def test_weights_that_are_none(weight: Callable[[Tensor, Tensor], float], match: str) -> None:
    model, data = _wide(), _data()
    with pytest.raises(MeasurementError, match=match):
        Hessian(model, F.cross_entropy, data, weight=weight).prepare()


def test_converged_and_single_precision_losses_are_still_cut() -> None:
    """Near a minimum gradients cancel to rounding; that is no reason to take a batch whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), _Repeated(), nn.Linear(4, 1))
    inputs = torch.randn(600, 6)
    with torch.no_grad():
        targets = model(inputs)
    for shift in (0.0, 1e-3):
        H = Hessian(model, lambda o, t: (o - t).square().mean(), (inputs, targets + shift))
        H.prepare()
        assert H._plan is not None and H._plan.chunks > 1
