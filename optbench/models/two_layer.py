"""Two-layer ReLU networks without an output bias, as theory has them."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from optbench.boundary.kinds import Positive, Size
from optbench.errors import UserError


class _OverNorm(nn.Module):
    """h / max(‖h‖, ε), one example at a time."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, h: Tensor) -> Tensor:
        # from primitive operations: torch's own layer norm has wrong third derivatives
        squares = h.square().sum(-1, keepdim=True)
        return h * torch.rsqrt(squares.clamp(min=self.eps**2))


def two_layer(
    input_shape: tuple[int, ...],
    output_width: Size,
    width: Size = 100,
    bias: bool = True,
    norm: Literal["simple", "none"] = "none",
    eps: Positive = 1e-3,
) -> nn.Module:
    """f(x) = W₂ h, or W₂ h / max(‖h‖, ε), with h = relu(W₁ x + b₁).

    Weights and biases as torch draws them: U(−1/√fan_in, 1/√fan_in).

    Args:
        input_shape: Shape of one example; it is flattened.
        output_width: Rows of W₂.
        width: Number of hidden units.
        bias: Whether the hidden layer has a bias b₁.
        norm: Normalisation of the hidden layer: `simple` divides it by its norm (no mean is taken
            off, nothing is learnt about it); or `none`.
        eps: Smallest norm ε that the hidden layer is divided by.

    References:
        Wen, Li & Ma (2023), arXiv:2307.11007: with b₁ or without, and with this simplified layer
        norm, the flattest solutions generalize, or they do not.
    """
    if norm not in ("simple", "none"):
        raise UserError(f"model.norm must be simple or none, got {norm}")
    return nn.Sequential(
        *([nn.Flatten()] if len(input_shape) > 1 else []),
        nn.Linear(math.prod(input_shape), width, bias=bias),
        nn.ReLU(),
        *([_OverNorm(eps)] if norm == "simple" else []),
        nn.Linear(width, output_width, bias=False),
    )
