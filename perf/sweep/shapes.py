"""Layers without weights: activations, pooling, padding, dropout, resampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perf.sweep.subject import Recipe, function, layer

_PLAIN = (
    "ELU Hardshrink Hardsigmoid Hardtanh Hardswish LeakyReLU LogSigmoid ReLU ReLU6 SELU CELU GELU "
    "Sigmoid SiLU Mish Softplus Softshrink Softsign Tanh Tanhshrink PReLU RReLU"
)


def named(name: str, *shape: int, **options: Any) -> Recipe:
    """Recipe of a layer of torch.nn by its name."""
    return layer(lambda: getattr(nn, name)(**options), *shape)


ACTIVATIONS: dict[str, Recipe] = {
    **{name: named(name, 6) for name in _PLAIN.split()},
    "RReLU eval": layer(nn.RReLU, 6, training=False),
    "PReLU by channel": layer(lambda: nn.PReLU(3), 3, 4),
    "GELU tanh": named("GELU", 6, approximate="tanh"),
    "Softplus beta=2": named("Softplus", 6, beta=2.0),
    "Threshold": named("Threshold", 6, threshold=0.1, value=0.5),
    "ReLU inplace": named("ReLU", 6, inplace=True),
    "SiLU inplace": named("SiLU", 6, inplace=True),
    "ELU inplace": named("ELU", 6, inplace=True),
    "Hardswish inplace": named("Hardswish", 6, inplace=True),
    "GLU": named("GLU", 6),
    "Softmin": named("Softmin", 6, dim=1),
    "Softmax": named("Softmax", 6, dim=1),
    "Softmax2d": named("Softmax2d", 3, 2, 2),
    "LogSoftmax": named("LogSoftmax", 6, dim=1),
    "MultiheadAttention weights": layer(
        lambda: nn.MultiheadAttention(4, 2, batch_first=True), 3, 4, call=lambda m, z: m(z, z, z)[1]
    ),
}


def _unpooled(pool: Callable[..., Any], unpool: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    def call(z: Tensor) -> Tensor:
        values, places = pool(z, 2, return_indices=True)
        back: Tensor = unpool(values.square(), places, 2)
        return back

    return call


POOLING: dict[str, Recipe] = {
    "MaxPool1d": named("MaxPool1d", 2, 6, kernel_size=2),
    "MaxPool2d": named("MaxPool2d", 2, 4, 4, kernel_size=3, stride=1, padding=1),
    "MaxPool2d dilation": named("MaxPool2d", 2, 5, 5, kernel_size=2, dilation=2),
    "MaxPool3d": named("MaxPool3d", 2, 4, 4, 4, kernel_size=2),
    "MaxUnpool1d": function(_unpooled(F.max_pool1d, F.max_unpool1d), 2, 6),
    "MaxUnpool2d": function(_unpooled(F.max_pool2d, F.max_unpool2d), 2, 4, 4),
    "MaxUnpool3d": function(_unpooled(F.max_pool3d, F.max_unpool3d), 2, 2, 2, 4),
    "AvgPool1d": named("AvgPool1d", 2, 6, kernel_size=3),
    "AvgPool2d": named("AvgPool2d", 2, 4, 4, kernel_size=2, padding=1, count_include_pad=False),
    "AvgPool3d": named("AvgPool3d", 2, 4, 4, 4, kernel_size=2),
    "FractionalMaxPool2d": named("FractionalMaxPool2d", 2, 6, 6, kernel_size=2, output_size=3),
    "FractionalMaxPool3d": named("FractionalMaxPool3d", 1, 5, 5, 5, kernel_size=2, output_size=3),
    "LPPool1d": named("LPPool1d", 2, 6, norm_type=2, kernel_size=2),
    "LPPool2d p=3": layer(lambda: nn.LPPool2d(3, 2), 2, 4, 4, call=lambda m, z: m(z.exp())),
    "LPPool3d": named("LPPool3d", 1, 4, 4, 4, norm_type=2, kernel_size=2),
    "AdaptiveMaxPool1d": named("AdaptiveMaxPool1d", 2, 7, output_size=3),
    "AdaptiveMaxPool2d": named("AdaptiveMaxPool2d", 2, 5, 5, output_size=2),
    "AdaptiveMaxPool3d": named("AdaptiveMaxPool3d", 1, 4, 4, 4, output_size=2),
    "AdaptiveAvgPool1d": named("AdaptiveAvgPool1d", 2, 7, output_size=3),
    "AdaptiveAvgPool2d": named("AdaptiveAvgPool2d", 2, 5, 5, output_size=2),
    "AdaptiveAvgPool3d": named("AdaptiveAvgPool3d", 1, 4, 4, 4, output_size=2),
}

_CUBE = {1: (2, 4), 2: (2, 4, 4), 3: (1, 3, 3, 3)}

PADDING: dict[str, Recipe] = {
    f"{kind}Pad{n}d": named(f"{kind}Pad{n}d", *_CUBE[n], padding=2)
    for kind in ("Reflection", "Replication", "Zero", "Circular")
    for n in (1, 2, 3)
} | {
    f"ConstantPad{n}d": named(f"ConstantPad{n}d", *_CUBE[n], padding=1, value=0.3)
    for n in (1, 2, 3)
}

DROPOUT: dict[str, Recipe] = {
    "Dropout": named("Dropout", 6, p=0.4),
    "Dropout eval": layer(nn.Dropout, 6, training=False),
    "Dropout inplace": named("Dropout", 6, p=0.4, inplace=True),
    "Dropout1d": named("Dropout1d", 4, 3),
    "Dropout2d": named("Dropout2d", 4, 2, 2),
    "Dropout3d": named("Dropout3d", 4, 2, 2, 2),
    "AlphaDropout": named("AlphaDropout", 6, p=0.3),
    "FeatureAlphaDropout": named("FeatureAlphaDropout", 4, 3),
    "bernoulli mask": function(lambda z: z * torch.bernoulli(torch.full_like(z, 0.6)), 6),
    "added noise": function(lambda z: (z + torch.randn_like(z)).sin(), 6),
}


def resized(*shape: int, **options: Any) -> Recipe:
    """Recipe of F.interpolate, in front of a bend."""
    return function(lambda z: F.interpolate(z, **options).sin(), *shape)


def sampled(grid_shape: tuple[int, ...], **options: Any) -> Recipe:
    """Recipe of F.grid_sample where the image and the places both depend on the parameters."""
    count = torch.Size(grid_shape).numel()

    def call(z: Tensor) -> Tensor:
        grid = z.flatten(1)[:, :count].tanh().view(len(z), *grid_shape)
        return F.grid_sample(z, grid, **{"align_corners": False} | options)

    shape = (2, 4, 4) if len(grid_shape) == 3 else (2, 3, 3, 3)
    return function(call, *shape)


def _affine(z: Tensor) -> Tensor:
    return F.affine_grid(z.view(-1, 2, 3), [len(z), 1, 3, 3], align_corners=False).sin()


RESAMPLING: dict[str, Recipe] = {
    "interpolate nearest 1d": resized(2, 4, scale_factor=2),
    "interpolate nearest 2d": resized(2, 3, 3, scale_factor=2),
    "interpolate nearest 3d": resized(1, 2, 2, 2, scale_factor=2),
    "interpolate nearest-exact": resized(2, 3, 3, size=5, mode="nearest-exact"),
    "interpolate linear": resized(2, 4, size=7, mode="linear"),
    "interpolate bilinear": resized(2, 3, 3, size=5, mode="bilinear"),
    "interpolate bilinear corners": resized(2, 3, 3, size=5, mode="bilinear", align_corners=True),
    "interpolate bilinear antialias": resized(2, 6, 6, size=3, mode="bilinear", antialias=True),
    "interpolate bicubic": resized(2, 3, 3, size=5, mode="bicubic"),
    "interpolate bicubic antialias": resized(2, 6, 6, size=3, mode="bicubic", antialias=True),
    "interpolate trilinear": resized(1, 2, 2, 2, size=3, mode="trilinear"),
    "interpolate area": resized(2, 4, 4, size=2, mode="area"),
    "Upsample": named("Upsample", 2, 3, 3, scale_factor=2, mode="bilinear"),
    "UpsamplingNearest2d": named("UpsamplingNearest2d", 2, 3, 3, scale_factor=2),
    "UpsamplingBilinear2d": named("UpsamplingBilinear2d", 2, 3, 3, scale_factor=2),
    "PixelShuffle": named("PixelShuffle", 4, 2, 2, upscale_factor=2),
    "PixelUnshuffle": named("PixelUnshuffle", 1, 4, 4, downscale_factor=2),
    "ChannelShuffle": named("ChannelShuffle", 4, 2, 2, groups=2),
    "grid_sample": sampled((3, 3, 2)),
    "grid_sample corners": sampled((3, 3, 2), align_corners=True),
    "grid_sample border": sampled((3, 3, 2), padding_mode="border"),
    "grid_sample reflection": sampled((3, 3, 2), padding_mode="reflection"),
    "grid_sample nearest": sampled((3, 3, 2), mode="nearest"),
    "grid_sample bicubic": sampled((3, 3, 2), mode="bicubic"),
    "grid_sample 3d": sampled((2, 2, 2, 3)),
    "grid_sample 3d nearest": sampled((2, 2, 2, 3), mode="nearest"),
    "affine_grid": function(_affine, 6),
}

CASES = ACTIVATIONS | POOLING | PADDING | DROPOUT | RESAMPLING
