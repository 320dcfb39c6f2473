"""The block that vision and language transformers are made of."""

import torch.nn.functional as F
from torch import Tensor, nn

from optbench.errors import UserError
from optbench.models import activation_layer


class Block(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron, each beside a shortcut.

    Args:
        width: Size of a token's vector.
        heads: Attention heads; they divide the width.
        expansion: Hidden width of the perceptron, in widths.
        causal: Whether a token sees only itself and those before it.
        activation: Of the perceptron.
        norm: `layer` or `none`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        expansion: int,
        causal: bool = False,
        activation: str = "gelu",
        norm: str = "layer",
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"model.heads must divide model.width ({width}), got {heads}")
        self.norm1, self.norm2 = token_norm(norm, width), token_norm(norm, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width),
            activation_layer(activation),
            nn.Linear(expansion * width, width),
        )
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, T, width) in and out."""
        B, T, D = x.shape
        q, k, v = (
            self.qkv(self.norm1(x))
            .reshape(B, T, 3, self.heads, D // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def token_norm(name: str, width: int) -> nn.Module:
    """Return a new normalisation of a token's vector: `layer` or `none`.

    Raises:
        UserError: If the name is neither.
    """
    if name not in ("layer", "none"):
        raise UserError(f"model.norm must be layer or none, got {name}")
    return nn.LayerNorm(width) if name == "layer" else nn.Identity()
