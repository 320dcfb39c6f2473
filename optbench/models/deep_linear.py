"""Products of matrices: the simplest networks with non-linear learning dynamics."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from optbench.boundary.kinds import Depth, NotNegative, Size


def deep_linear(
    input_shape: tuple[int, ...],
    output_width: Size,
    width: Size = 16,
    depth: Depth = 2,
    init: Literal["orthogonal", "gaussian"] = "orthogonal",
    scale: NotNegative = 0.01,
) -> nn.Module:
    """f(x) = W_depth … W_1 x with `depth` − 1 hidden layers, no biases and no activation.

    Args:
        input_shape: Shape of one example; it is flattened.
        output_width: Rows of the last matrix.
        width: Width of every hidden layer; at least the smaller of inputs and outputs, or the map
            cannot be learnt.
        depth: Number of matrices; 1 is the linear model.
        init: Distribution of the initial weights: `orthogonal`, every singular value of every
            matrix equal to `scale`, hence balanced where the matrices are square; or `gaussian`,
            entries of standard deviation scale/√fan_in.
        scale: Size of the initial weights; small for saddle-to-saddle dynamics, 1 for none of them.

    References:
        Saxe et al. (2014), arXiv:1312.6120.
    """
    sizes: Sequence[int] = [math.prod(input_shape), *[width] * (depth - 1), output_width]
    layers = [nn.Linear(fan_in, fan_out, bias=False) for fan_in, fan_out in pairwise(sizes)]
    for layer in layers:
        if init == "orthogonal":
            nn.init.orthogonal_(layer.weight, gain=scale)
        else:
            nn.init.normal_(layer.weight, std=scale / layer.in_features**0.5)
    return nn.Sequential(*([nn.Flatten()] if len(input_shape) > 1 else []), *layers)
