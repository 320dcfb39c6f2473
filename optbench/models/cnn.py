"""A plain convolutional network, small enough for a laptop."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from optbench.boundary.kinds import Size
from optbench.errors import UserError
from optbench.models import Activation, activation_layer, image_shape, norm_layer


def cnn(
    input_shape: tuple[int, ...],
    output_width: int,
    channels: Sequence[Size] = (32, 64, 128),
    activation: Activation = "relu",
    norm: Literal["batch", "group", "none"] = "none",
) -> nn.Module:
    """Per channel entry: 3×3 convolution, normalisation, 2×2 max-pool, activation; then linear.

    Pooling before a monotone activation gives what the usual order gives, at a quarter of its cost.

    Args:
        input_shape: Shape of one example.
        output_width: Number of outputs.
        channels: Feature maps of each convolution; each pooling halves the image.
        activation: Activation after each pooling.
        norm: Normalisation after each convolution: `batch`, `group` or `none`.
    """
    depth, height, width = image_shape(input_shape, "cnn")
    halvings = len(channels)
    if min(height, width) < 2**halvings:
        raise UserError(
            f"model.channels has {halvings} entries, each halving the image, but it is "
            f"{height}×{width} pixels: "
            "give fewer"
        )
    layers: list[nn.Module] = []
    for maps in channels:
        layers += [
            nn.Conv2d(depth, maps, 3, padding=1, bias=norm != "batch"),
            norm_layer(norm, maps),
            nn.MaxPool2d(2),
            activation_layer(activation),
        ]
        depth = maps
    features = depth * (height >> halvings) * (width >> halvings)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, output_width))
