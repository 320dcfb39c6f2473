"""Small models of torchvision: no weights are downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from perf.sweep.subject import CLASSES, Recipe, images, package


def torchvision(build: Callable[[Any], nn.Module], side: int = 32, **options: Any) -> Recipe:
    """Recipe of a classifier built from torchvision.models."""
    return images(lambda: build(package("torchvision.models")), 3, side, side, **options)


def _efficient(t: Any) -> list[Any]:
    block = t.efficientnet.MBConvConfig
    return [block(1, 3, 1, 32, 16, 1, 0.25, 1.0), block(4, 5, 2, 16, 24, 1, 0.25, 1.0)]


def _inception() -> nn.Module:
    found: nn.Module = package("torchvision.models.googlenet").Inception(3, 4, 4, 4, 4, 4, 4)
    return found


def _headed(features: nn.Module, width: int) -> nn.Module:
    """Features with a mean over places and a linear layer on top."""
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


CASES: dict[str, Recipe] = {
    "AlexNet features": torchvision(lambda t: _headed(t.alexnet().features[:6], 192), 64),
    "VGG features": torchvision(
        lambda t: _headed(t.vgg.make_layers([8, "M", 16, "M"], batch_norm=True), 16), batch=4
    ),
    "ResNet basic": torchvision(
        lambda t: t.ResNet(t.resnet.BasicBlock, [1, 1, 1, 1], CLASSES), batch=4
    ),
    "ResNet basic eval": torchvision(
        lambda t: t.ResNet(t.resnet.BasicBlock, [1, 1, 1, 1], CLASSES), training=False
    ),
    "ResNet bottleneck": torchvision(
        lambda t: t.ResNet(t.resnet.Bottleneck, [1, 1, 1, 1], CLASSES, width_per_group=4), batch=4
    ),
    "SqueezeNet": torchvision(lambda t: t.squeezenet1_1(num_classes=CLASSES), training=False),
    "MobileNet v2": torchvision(
        lambda t: t.mobilenet_v2(num_classes=CLASSES, width_mult=0.25), batch=4
    ),
    "MobileNet v3": torchvision(
        lambda t: t.mobilenet_v3_small(num_classes=CLASSES, width_mult=0.25), batch=4
    ),
    "MobileNet v3 eval": torchvision(
        lambda t: t.mobilenet_v3_small(num_classes=CLASSES, width_mult=0.25), training=False
    ),
    "EfficientNet": torchvision(
        lambda t: t.EfficientNet(_efficient(t), 0.2, 0.2, num_classes=CLASSES), batch=4
    ),
    "EfficientNet eval": torchvision(
        lambda t: t.EfficientNet(_efficient(t), 0.2, num_classes=CLASSES), training=False
    ),
    "MnasNet": torchvision(lambda t: t.MNASNet(0.1, num_classes=CLASSES), batch=4),
    "DenseNet": torchvision(
        lambda t: t.DenseNet(4, (2, 2), 8, num_classes=CLASSES, drop_rate=0.1), batch=4
    ),
    "DenseNet checkpointed": torchvision(
        lambda t: t.DenseNet(4, (2, 2), 8, num_classes=CLASSES, memory_efficient=True), batch=4
    ),
    "ShuffleNet": torchvision(
        lambda t: t.ShuffleNetV2([1, 1, 1], [8, 8, 16, 16, 32], CLASSES), batch=4
    ),
    "RegNet": torchvision(
        lambda t: t.RegNet(
            t.regnet.BlockParams([1, 1], [8, 16], [4, 8], [1.0, 1.0], [2, 2], 0.25), CLASSES
        ),
        batch=4,
    ),
    "ConvNeXt": torchvision(
        lambda t: t.ConvNeXt(
            [t.convnext.CNBlockConfig(8, 16, 1), t.convnext.CNBlockConfig(16, None, 1)],
            stochastic_depth_prob=0.2,
            layer_scale=0.5,
            num_classes=CLASSES,
        )
    ),
    "VisionTransformer": torchvision(
        lambda t: t.VisionTransformer(32, 16, 1, 2, 8, 16, dropout=0.1, num_classes=CLASSES)
    ),
    "SwinTransformer": torchvision(
        lambda t: t.SwinTransformer([4, 4], 8, [2, 2], [1, 2], [2, 2], num_classes=CLASSES)
    ),
    "SwinTransformer v2": torchvision(
        lambda t: t.SwinTransformer(
            [4, 4],
            8,
            [2, 2],
            [1, 2],
            [2, 2],
            num_classes=CLASSES,
            block=t.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=t.swin_transformer.PatchMergingV2,
        )
    ),
    "MaxViT": torchvision(
        lambda t: t.MaxVit((32, 32), 8, 4, [8, 8], [1, 1], 4, 0.1, num_classes=CLASSES),
        batch=4,
    ),
    "GoogLeNet inception": torchvision(lambda t: _headed(_inception(), 16), 16, batch=4),
    "FCN head": torchvision(
        lambda t: _headed(nn.Sequential(nn.Conv2d(3, 8, 1), t.segmentation.fcn.FCNHead(8, 4)), 4),
        8,
        batch=4,
    ),
    "ASPP": torchvision(
        lambda t: _headed(t.segmentation.deeplabv3.ASPP(3, [2, 3], 4), 4), 8, batch=4
    ),
}
