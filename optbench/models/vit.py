"""A small vision transformer."""

import torch
from torch import Tensor, nn

from optbench.boundary.kinds import Depth, Size
from optbench.errors import UserError
from optbench.models import image_shape
from optbench.models.transformer import Block


class _ViT(nn.Module):
    def __init__(
        self,
        channels: int,
        tokens: int,
        output_width: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        expansion: int,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads, expansion) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, output_width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        output: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return output


def vit(
    input_shape: tuple[int, ...],
    output_width: int,
    patch: Size = 4,
    width: Size = 64,
    depth: Depth = 4,
    heads: Size = 4,
    expansion: Size = 2,
) -> nn.Module:
    """Patches, learned positions, `depth` pre-norm blocks, mean over tokens, linear head.

    Dosovitskiy et al. (2021), arXiv:2010.11929, with mean pooling in place of the class token.

    Args:
        input_shape: Shape of one example.
        output_width: Number of outputs.
        patch: Side of a patch in pixels; it divides the image.
        width: Width of a token; `heads` divides it.
        depth: Number of blocks.
        heads: Attention heads of each block.
        expansion: Width of a block's hidden layer, in units of `width`.

    Raises:
        UserError: If the patch does not divide the image, or the heads the width.
    """
    channels, height, image_width = image_shape(input_shape, "vit")
    if height % patch or image_width % patch:
        raise UserError(
            f"model.patch must divide the image ({height}×{image_width} pixels), got {patch}"
        )
    tokens = (height // patch) * (image_width // patch)
    return _ViT(channels, tokens, output_width, patch, width, depth, heads, expansion)
