"""Normalization layers from primitive operations: derivatives of all orders are correct.

    y = w (x − E x) / √(Var x + ε) + b,

with mean and variance over the entries that are normalized together.

torch's third derivatives of layer norm and of batch norm in train mode are wrong, without an error
(pytorch issues 175754 and 186256). Each function takes torch's function first, which updates
running statistics, and then torch's arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Original = Callable[..., Any]


def layer_norm(
    _: Original,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """F.layer_norm: statistics over the last dimensions."""
    return _affine(_normalized(input, _last(input, normalized_shape), eps), weight, bias)


def rms_norm(
    _: Original,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """F.rms_norm: y = w x / √(E x² + ε) over the last dimensions, not centred."""
    square = input.square().mean(_last(input, normalized_shape), keepdim=True)
    return _affine(
        input * (square + (torch.finfo(input.dtype).eps if eps is None else eps)).rsqrt(),
        weight,
        None,
    )


def group_norm(
    _: Original,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """F.group_norm: statistics over the channels of one group and all positions of an example."""
    groups = input.reshape(len(input), num_groups, -1)
    return _of_channels(_normalized(groups, [2], eps).reshape(input.shape), weight, bias)


def instance_norm(
    original: Original,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.instance_norm: statistics over all positions of one channel of an example."""
    if not use_input_stats:
        return _from_running(input, running_mean, running_var, weight, bias, eps)
    if running_mean is not None:
        with torch.no_grad():
            original(input, running_mean, running_var, None, None, True, momentum, eps)
    return _of_channels(_normalized(input, list(range(2, input.ndim)), eps), weight, bias)


def batch_norm(
    original: Original,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm: statistics of a channel over all examples and positions.

    In eval mode the running statistics are used.
    """
    if not training:
        return _from_running(input, running_mean, running_var, weight, bias, eps)
    # The running statistics are the measurement's copies. They are updated because the forward pass
    # may read them.
    if running_mean is not None:
        with torch.no_grad():
            original(input, running_mean, running_var, None, None, True, momentum, eps)
    dims = [i for i in range(input.ndim) if i != 1]
    return _of_channels(_normalized(input, dims, eps), weight, bias)


def _from_running(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Normalization with given statistics: affine in x."""
    assert mean is not None and variance is not None
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return _of_channels((x - mean.view(shape)) * (variance.view(shape) + eps).rsqrt(), weight, bias)


def _last(x: Tensor, shape: Sequence[int]) -> list[int]:
    """The last dimensions of x, as many as the shape has."""
    return list(range(x.ndim - len(shape), x.ndim)) if math.prod(shape) else []


def _normalized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """(x − E x) / √(Var x + ε), with the biased variance."""
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _of_channels(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Affine map w x + b with one gain and shift per channel, dimension 1."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return _affine(
        x,
        weight if weight is None else weight.view(shape),
        bias if bias is None else bias.view(shape),
    )


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
