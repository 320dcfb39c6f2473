"""Fully connected networks."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from optbench.boundary.kinds import Size
from optbench.errors import UserError
from optbench.models import Activation, activation_layer


class _Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.inner(x)
        return output


class _MLP(nn.Sequential):
    """Sequential layers, with the learning-rate factors that μP asks for, by parameter name."""

    lr_factors: Mapping[str, float]


def mlp(
    input_shape: tuple[int, ...],
    output_width: int,
    widths: Sequence[Size] = (64, 64),
    activation: Activation = "tanh",
    bias: bool = True,
    norm: Literal["layer", "batch", "none"] = "none",
    residual: bool = False,
    scaling: Literal["standard", "mup_sgd", "mup_adam"] = "standard",
    base_width: Size = 64,
) -> nn.Module:
    """Flatten, then linear layers of the given hidden widths with an activation between them.

    No hidden width at all gives the linear model. Weights and biases as torch draws them:
    U(−1/√fan_in, 1/√fan_in).

    Args:
        input_shape: Shape of one example.
        output_width: Number of outputs.
        widths: Widths of the hidden layers.
        activation: Activation after each hidden layer.
        bias: Whether the linear layers have biases.
        norm: Normalisation after each hidden linear layer, before the activation: `layer`, `batch`
            or `none`.
        residual: Whether to add its input to the output of each hidden layer that is as wide as the
            one before.
        scaling: Parametrization: `standard`, `mup_sgd` or `mup_adam`. The last two are the maximal
            update parametrization for SGD-like (heavy ball, SAM, …) and for entrywise normalising
            (Adam, sign, …) optimizers: a learning rate that is best at one width is so at others.
            See `_mup`. At `base_width` they are the standard scaling.
        base_width: Width at which learning rates mean what they say.

    References:
        Yang et al. (2022), arXiv:2203.03466, table 3.
    """
    sizes = [math.prod(input_shape), *widths, output_width]
    net = _MLP(*([nn.Flatten()] if len(input_shape) > 1 else []))
    linears = [nn.Linear(fan_in, fan_out, bias=bias) for fan_in, fan_out in pairwise(sizes)]
    for linear in linears[:-1]:
        hidden = [linear, *_norms(norm, linear.out_features), activation_layer(activation)]
        if residual and linear.in_features == linear.out_features and linear is not linears[0]:
            net.append(_Residual(nn.Sequential(*hidden)))
        else:
            net.extend(hidden)
    net.append(linears[-1])
    if scaling != "standard":
        _mup(net, linears, scaling == "mup_adam", base_width)
    return net


def _norms(name: str, width: int) -> list[nn.Module]:
    if name == "none":
        return []
    if name == "layer":
        return [nn.LayerNorm(width)]
    if name == "batch":
        return [nn.BatchNorm1d(width)]
    raise UserError(f"model.norm must be layer, batch or none, got {name}")


@torch.no_grad()
def _mup(net: _MLP, linears: Sequence[nn.Linear], adam: bool, base_width: int) -> None:
    """Scale weights and biases; set `lr_factors`, what each learning rate is multiplied by.

    With m the fan_in and n the fan_out of a layer in units of base_width, where they are hidden
    widths:

        weights    input           hidden           output
        init var   1/fan_in        1/fan_in         1/(fan_in · m)
        SGD lr     n               n/m              1/m
        Adam lr    1               1/m              1/m

    and hidden biases, norms' gains and shifts as input weights, of fan_in 1: no bias's variance
    falls with the width. Table 3 of arXiv:2203.03466, relative to base_width.
    """
    factors: dict[int, float] = {}
    last = linears[-1]
    for linear in linears:
        m = 1.0 if linear is linears[0] else linear.in_features / base_width
        n = 1.0 if linear is last else linear.out_features / base_width
        factors[id(linear.weight)] = 1 / m if adam else n / m
        if linear is last:
            linear.weight.mul_(m**-0.5)
        if linear.bias is not None:
            linear.bias.mul_(m**0.5)  # torch draws it by the layer's fan_in
    for module in net.modules():
        scaled = not adam and module is not last
        for p in module.parameters(recurse=False):
            if p.ndim == 1:
                factors[id(p)] = len(p) / base_width if scaled else 1.0
    net.lr_factors = {name: factors[id(p)] for name, p in net.named_parameters()}
