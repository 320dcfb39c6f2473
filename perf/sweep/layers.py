"""Layers with weights: linear, convolutions, norms, reparametrized weights, embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from perf.sweep.subject import Make, Recipe, Subject, layer, squared, tokens

weight_norm, spectral_norm = parametrizations.weight_norm, parametrizations.spectral_norm
orthogonal = parametrizations.orthogonal

LINEAR: dict[str, Recipe] = {
    "Linear": layer(lambda: nn.Linear(3, 2), 3),
    "Linear without bias": layer(lambda: nn.Linear(3, 2, bias=False), 3),
    "LazyLinear": layer(lambda: _ready(nn.LazyLinear(2), 3), 3),
    "Identity": layer(nn.Identity, 3),
    "Bilinear": layer(lambda: nn.Bilinear(3, 3, 2), 3, call=lambda m, z: m(z, z.flip(1).tanh())),
    "Flatten, Unflatten": layer(lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 2))), 2, 3),
    "CosineSimilarity": layer(nn.CosineSimilarity, 4, call=lambda m, z: m(z, z.flip(1).sin())),
    "PairwiseDistance": layer(nn.PairwiseDistance, 4, call=lambda m, z: m(z, z.flip(1).sin())),
    "PairwiseDistance p=3": layer(
        lambda: nn.PairwiseDistance(3.0), 4, call=lambda m, z: m(z, z.flip(1).sin())
    ),
}

CONVOLUTIONS: dict[str, Recipe] = {
    "Conv1d": layer(lambda: nn.Conv1d(2, 3, 3), 2, 7),
    "Conv1d stride, dilation": layer(lambda: nn.Conv1d(2, 3, 3, stride=2, dilation=2), 2, 9),
    "Conv2d": layer(lambda: nn.Conv2d(2, 3, 3), 2, 5, 5),
    "Conv2d stride, padding": layer(lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), 2, 5, 5),
    "Conv2d groups": layer(lambda: nn.Conv2d(4, 4, 3, groups=2), 4, 5, 5),
    "Conv2d depthwise": layer(lambda: nn.Conv2d(3, 3, 3, groups=3, bias=False), 3, 5, 5),
    "Conv2d same": layer(lambda: nn.Conv2d(2, 2, 3, padding="same", dilation=2), 2, 5, 5),
    "Conv2d reflect": layer(lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), 2, 5, 5),
    "Conv2d circular": layer(
        lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), 2, 5, 5
    ),
    "Conv2d replicate": layer(
        lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"), 2, 5, 5
    ),
    "Conv3d": layer(lambda: nn.Conv3d(2, 2, 2), 2, 3, 3, 3),
    "ConvTranspose1d": layer(lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), 2, 4),
    "ConvTranspose2d": layer(
        lambda: nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1, output_padding=1), 2, 3, 3
    ),
    "ConvTranspose2d groups": layer(lambda: nn.ConvTranspose2d(4, 4, 2, groups=2), 4, 3, 3),
    "ConvTranspose3d": layer(lambda: nn.ConvTranspose3d(2, 2, 2), 2, 2, 2, 2),
    "LazyConv2d": layer(lambda: _ready(nn.LazyConv2d(2, 3), 2, 5, 5), 2, 5, 5),
    "Unfold": layer(lambda: nn.Unfold(2), 2, 4, 4),
    "Fold": layer(lambda: nn.Fold((4, 4), 2), 8, 9),
}

NORMS: dict[str, Recipe] = {
    "BatchNorm1d train": layer(lambda: nn.BatchNorm1d(3), 3),
    "BatchNorm1d eval": layer(lambda: nn.BatchNorm1d(3), 3, training=False),
    "BatchNorm1d over length": layer(lambda: nn.BatchNorm1d(3), 3, 4),
    "BatchNorm2d train": layer(lambda: nn.BatchNorm2d(3), 3, 2, 2),
    "BatchNorm2d eval": layer(lambda: nn.BatchNorm2d(3), 3, 2, 2, training=False),
    "BatchNorm2d momentum=None": layer(lambda: nn.BatchNorm2d(3, momentum=None), 3, 2, 2),
    "BatchNorm2d without statistics": layer(
        lambda: nn.BatchNorm2d(3, track_running_stats=False), 3, 2, 2
    ),
    "BatchNorm2d no statistics eval": layer(
        lambda: nn.BatchNorm2d(3, track_running_stats=False), 3, 2, 2, training=False
    ),
    "BatchNorm2d without affine": layer(lambda: nn.BatchNorm2d(3, affine=False), 3, 2, 2),
    "BatchNorm3d train": layer(lambda: nn.BatchNorm3d(2), 2, 2, 2, 2),
    "SyncBatchNorm eval": layer(lambda: nn.SyncBatchNorm(3), 3, 2, 2, training=False),
    "InstanceNorm1d": layer(lambda: nn.InstanceNorm1d(3, affine=True), 3, 4),
    "InstanceNorm2d": layer(lambda: nn.InstanceNorm2d(3), 3, 2, 2),
    "InstanceNorm2d statistics": layer(
        lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), 3, 2, 2
    ),
    "InstanceNorm2d statistics eval": layer(
        lambda: nn.InstanceNorm2d(3, track_running_stats=True), 3, 2, 2, training=False
    ),
    "InstanceNorm3d": layer(lambda: nn.InstanceNorm3d(2, affine=True), 2, 2, 2, 2),
    "LayerNorm": layer(lambda: nn.LayerNorm(4), 3, 4),
    "LayerNorm two dimensions": layer(lambda: nn.LayerNorm((3, 4)), 3, 4),
    "LayerNorm without bias": layer(lambda: nn.LayerNorm(4, bias=False), 3, 4),
    "LayerNorm without affine": layer(lambda: nn.LayerNorm(4, elementwise_affine=False), 3, 4),
    "GroupNorm": layer(lambda: nn.GroupNorm(2, 4), 4, 3),
    "GroupNorm one group": layer(lambda: nn.GroupNorm(1, 4, affine=False), 4, 3),
    "RMSNorm": layer(lambda: nn.RMSNorm(4), 3, 4),
    "RMSNorm without affine": layer(lambda: nn.RMSNorm(4, elementwise_affine=False), 3, 4),
    "LocalResponseNorm": layer(lambda: nn.LocalResponseNorm(2), 4, 3),
    "CrossMapLRN2d": layer(lambda: nn.CrossMapLRN2d(2), 4, 3, 3),
}


def on_linear(wrap: Callable[..., Any], *, training: bool = True, **options: Any) -> Recipe:
    """Recipe of a square linear layer whose weight is computed by `wrap`."""

    def make() -> nn.Module:
        module: nn.Module = wrap(nn.Linear(3, 3).double(), **options)
        return module

    return layer(make, 3, training=training)


def on_convolution(wrap: Callable[..., Any], **options: Any) -> Recipe:
    """Recipe of a convolution whose weight is computed by `wrap`."""
    return layer(lambda: wrap(nn.Conv2d(2, 3, 2).double(), **options), 2, 3, 3)


class Squared(nn.Module):
    """A parametrization of one's own: W ↦ W² + W."""

    def forward(self, weight: Tensor) -> Tensor:
        """W² + W."""
        return weight * weight + weight


def _squared() -> nn.Module:
    module = nn.Linear(3, 2).double()
    parametrize.register_parametrization(module, "weight", Squared())
    return module


REPARAMETRIZED: dict[str, Recipe] = {
    "weight_norm, old": on_linear(old_weight_norm),
    "weight_norm, old dim=1": on_linear(old_weight_norm, dim=1),
    "weight_norm, old dim=None": on_linear(old_weight_norm, dim=None),
    "weight_norm, old convolution": on_convolution(old_weight_norm),
    "weight_norm": on_linear(weight_norm),
    "weight_norm dim=1": on_linear(weight_norm, dim=1),
    "weight_norm dim=None": on_linear(weight_norm, dim=None),
    "weight_norm convolution": on_convolution(weight_norm),
    "spectral_norm, old train": on_linear(old_spectral_norm),
    "spectral_norm, old eval": on_linear(old_spectral_norm, training=False),
    "spectral_norm train": on_linear(spectral_norm),
    "spectral_norm eval": on_linear(spectral_norm, training=False),
    "spectral_norm convolution": on_convolution(spectral_norm),
    "orthogonal matrix_exp": on_linear(orthogonal, orthogonal_map="matrix_exp"),
    "orthogonal cayley": on_linear(orthogonal, orthogonal_map="cayley"),
    "orthogonal householder": on_linear(orthogonal, orthogonal_map="householder"),
    "orthogonal no trivialization": on_linear(orthogonal, use_trivialization=False),
    "parametrization of one's own": layer(_squared, 3),
}

bag = nn.EmbeddingBag


def _weighted_bag(m: nn.Module, x: Tensor) -> Any:
    weights = torch.tensor([0.5, 1.5, -1.0]).double().expand(len(x), 3).contiguous()
    return m(x, per_sample_weights=weights).tanh()


def curved(make: Make) -> Recipe:
    """Recipe of an embedding of tokens, bent by tanh so that its Hessian is not diagonal."""
    return tokens(make, 6, 3, call=lambda m, x: m(x).cumsum(-1).tanh())


EMBEDDINGS: dict[str, Recipe] = {
    "Embedding": curved(lambda: nn.Embedding(6, 3)),
    "Embedding padding_idx": curved(lambda: nn.Embedding(6, 3, padding_idx=1)),
    "Embedding max_norm": curved(lambda: nn.Embedding(6, 3, max_norm=0.7)),
    "Embedding sparse": curved(lambda: nn.Embedding(6, 3, sparse=True)),
    "EmbeddingBag sum": curved(lambda: bag(6, 3, mode="sum")),
    "EmbeddingBag mean": curved(lambda: bag(6, 3, mode="mean")),
    "EmbeddingBag max": curved(lambda: bag(6, 3, mode="max")),
    "EmbeddingBag padding_idx": curved(lambda: bag(6, 3, mode="sum", padding_idx=1)),
    "EmbeddingBag sparse": curved(lambda: bag(6, 3, mode="sum", sparse=True)),
    "EmbeddingBag max_norm": curved(lambda: bag(6, 3, max_norm=0.7)),
    "EmbeddingBag weighted": tokens(lambda: bag(6, 3, mode="sum"), 6, 3, call=_weighted_bag),
}


def _ready(module: nn.Module, *shape: int) -> nn.Module:
    """A lazy layer after its first call, which makes its weights."""
    module(torch.randn(2, *shape))
    return module


def _tied() -> Subject:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    return squared(model, torch.randn(4, 3, dtype=torch.float64))


def _frozen() -> Subject:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    model[0].weight.requires_grad_(False)
    return squared(model, torch.randn(4, 3, dtype=torch.float64))


SHARED: dict[str, Recipe] = {"tied weights": _tied, "frozen weights": _frozen}

CASES = LINEAR | CONVOLUTIONS | NORMS | REPARAMETRIZED | EMBEDDINGS | SHARED
