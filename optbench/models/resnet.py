"""The CIFAR family of residual networks: ResNet-20, 32, 44, 56, 110."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from optbench.boundary.kinds import Depth, Size
from optbench.errors import UserError
from optbench.models import image_shape, norm_layer


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters (option A of the paper)."""

    def __init__(self, depth: int, maps: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(depth, maps, 3, stride=stride, padding=1, bias=norm != "batch")
        self.norm1 = norm_layer(norm, maps)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=norm != "batch")
        self.norm2 = norm_layer(norm, maps)
        self.stride, self.new_maps = stride, maps - depth

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        before = self.new_maps // 2
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, before, self.new_maps - before)))


def resnet(
    input_shape: tuple[int, ...],
    output_width: int,
    depth: Depth = 20,
    width: Size = 16,
    norm: Literal["batch", "group", "none"] = "batch",
) -> nn.Module:
    """ResNet-(6n+2) with stages of `width`, 2·`width` and 4·`width` feature maps, and mean pooling.

    He et al. (2016), arXiv:1512.03385, section 4.2. Convolutions start from Kaiming's normal,
    fan_out. With `norm=none` the second convolution of each block starts at zero, without which it
    would diverge.

    Args:
        input_shape: Shape of one example.
        output_width: Number of outputs.
        depth: Number of layers with weights, 6n + 2: 20, 32, 44, 56, 110.
        width: Feature maps of the first stage; the next two have two and four times as many.
        norm: Normalisation after each convolution: `batch`, `group` or `none`.

    Raises:
        UserError: If depth is not 6n + 2, or the input is no image.
    """
    channels, _, _ = image_shape(input_shape, "resnet")
    if depth < 8 or (depth - 2) % 6:
        raise UserError(f"model.depth must be 6n+2 (8, 14, 20, 32, 44, 56, 110), got {depth}")
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=norm != "batch"),
        norm_layer(norm, width),
        nn.ReLU(),
    ]
    maps = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            out = width << stage
            layers.append(_Block(maps, out, 2 if stage and not block else 1, norm))
            maps = out
    net = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(maps, output_width)
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if norm == "none":
        for module in net.modules():
            if isinstance(module, _Block):
                nn.init.zeros_(module.conv2.weight)
    return net
