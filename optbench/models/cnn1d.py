"""A small convolutional network over signals."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from optbench.boundary.kinds import Size
from optbench.errors import UserError
from optbench.models import Activation, activation_layer


def cnn1d(
    input_shape: tuple[int, ...],
    output_width: int,
    channels: Sequence[Size] = (25, 25, 25),
    kernels: Sequence[Size] = (5, 3, 3),
    activation: Activation = "relu",
) -> nn.Module:
    """Convolutions of stride 2, each with an activation; then linear.

    Each takes T points, padded by one on either side, to ⌊(T + 2 − kernel)/2⌋ + 1.

    Args:
        input_shape: Shape of one example, (channels, points).
        output_width: Width of the model's output.
        channels: Feature maps of each convolution.
        kernels: Width of each convolution, in points.
        activation: Activation after each convolution.

    References:
        Greydanus & Kobak (2020), arXiv:2011.14439: its CNN is the default.
    """
    if len(input_shape) != 2:
        raise UserError(
            f"model=cnn1d needs signals (channels, points), got inputs of shape {input_shape}"
        )
    if len(channels) != len(kernels):
        raise UserError(
            f"model.kernels must have one entry for each of the {len(channels)} model.channels, "
            f"got {len(kernels)}"
        )
    maps, points = input_shape
    layers: list[nn.Module] = []
    for (before, after), kernel in zip(pairwise([maps, *channels]), kernels, strict=True):
        if kernel > points + 2:
            raise UserError(
                f"model.kernels has a width of {kernel}, and {points} points are left there: give "
                "fewer or narrower ones"
            )
        layers += [
            nn.Conv1d(before, after, kernel, stride=2, padding=1),
            activation_layer(activation),
        ]
        points = (points + 2 - kernel) // 2 + 1
    features = [maps, *channels][-1] * points
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, output_width))
