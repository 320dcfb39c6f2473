"""A small decoder-only transformer for sequences of tokens."""

from typing import Literal

import torch
from torch import Tensor, nn

from optbench.boundary.kinds import Depth, Size
from optbench.errors import UserError
from optbench.models import Activation
from optbench.models.transformer import Block, token_norm


class _GPT(nn.Module):
    def __init__(
        self, tokens: int, vocabulary: int, width: int, norm: str, blocks: list[Block]
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(1, tokens, width))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = token_norm(norm, width), nn.Linear(width, vocabulary, bias=False)
        for table in (self.embedding.weight, self.position):
            nn.init.normal_(table, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.norm(self.blocks(self.embedding(x) + self.position)))
        return output


def gpt(
    input_shape: tuple[int, ...],
    output_width: int,
    width: Size = 64,
    depth: Depth = 2,
    heads: Size = 4,
    expansion: Size = 4,
    activation: Activation = "gelu",
    norm: Literal["layer", "none"] = "layer",
) -> nn.Module:
    """Tokens and learned positions, `depth` causal pre-norm blocks, an untied linear head.

    Integer inputs of shape (T,) below `output_width`, outputs (T, output_width). Embeddings are
    drawn with standard deviation width^-½, the linear layers as torch draws them. Radford et al.
    (2019), the GPT-2 report, without its dropout and its tied embedding.

    Args:
        input_shape: Shape of one example.
        output_width: Number of outputs.
        width: Width of a token; `heads` divides it.
        depth: Number of blocks.
        heads: Attention heads of each block.
        expansion: Width of a block's hidden layer, in units of `width`.
        activation: Activation of a block's hidden layer.
        norm: Normalisation before each part of a block: `layer` or `none`.

    Raises:
        UserError: If the input is no sequence, or the heads do not divide the width.
    """
    if len(input_shape) != 1:
        raise UserError(f"model=gpt needs sequences of tokens, got inputs of shape {input_shape}")
    blocks = [Block(width, heads, expansion, True, activation, norm) for _ in range(depth)]
    return _GPT(input_shape[0], output_width, width, norm, blocks)
