"""Small models of timm: no weights are downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from perf.sweep.double import in_double
from perf.sweep.subject import CLASSES, Recipe, images, package, plainly


def timm(
    name: str, side: int = 32, *, training: bool = True, batch: int = 2, **options: Any
) -> Recipe:
    """Recipe of a model of timm by its name, made small by its own arguments."""
    options = {"num_classes": CLASSES} | options

    def make() -> nn.Module:
        found: nn.Module = package("timm").create_model(name, pretrained=False, **options)
        return found

    return images(make, 3, side, side, call=in_double(plainly), training=training, batch=batch)


def mixer(build: Callable[[Any], nn.Module]) -> Recipe:
    """Recipe of a model of timm.models.mlp_mixer, by its class."""
    return images(lambda: build(package("timm.models.mlp_mixer")), 3, 32, 32)


_VIT: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 16,
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 2,
}

_MIXER: dict[str, Any] = {"img_size": 32, "embed_dim": 8, "num_blocks": 1}

_TESTS = (
    "test_byobnet test_coatnet test_efficientnet test_efficientnet_evos test_efficientnet_gn "
    "test_mambaout test_nfnet test_vit2 test_vit4 test_vit_relpos"
)
"""Models that timm keeps for its own tests: small as they are."""


def _sized(name: str) -> dict[str, Any]:
    return {"img_size": 64} if name.startswith(("test_vit", "test_coatnet")) else {}


CASES: dict[str, Recipe] = {
    "vit": timm("vit_tiny_patch16_224", **_VIT),
    "vit qk_norm, drop_path": timm(
        "vit_tiny_patch16_224", **_VIT, qk_norm=True, drop_path_rate=0.3
    ),
    "deit3": timm("deit3_small_patch16_224", **_VIT),
    "beit": timm("beit_base_patch16_224", **_VIT),
    "eva": timm("eva02_tiny_patch14_224", **_VIT),
    "cait": timm("cait_xxs24_224", **_VIT),
    "xcit": timm("xcit_nano_12_p16_224", **_VIT, batch=4),
    "swin": timm(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(2, 2),
        window_size=4,
    ),
    "convnext": timm("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 4, 8, 8)),
    "convnextv2": timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(4, 4, 8, 8)),
    "mixer": mixer(lambda t: t.MlpMixer(CLASSES, **_MIXER)),
    "gmlp": mixer(
        lambda t: t.MlpMixer(
            CLASSES, **_MIXER, block_layer=t.SpatialGatingBlock, mlp_layer=t.GatedMlp, mlp_ratio=2
        )
    ),
    "resmlp": mixer(
        lambda t: t.MlpMixer(
            CLASSES, **_MIXER, mlp_ratio=4, block_layer=t.ResBlock, norm_layer=t.Affine
        )
    ),
    "poolformer": images(
        lambda: package("timm.models.metaformer").MetaFormer(
            num_classes=CLASSES, depths=(1, 1), dims=(4, 8)
        ),
        3,
        32,
        32,
    ),
    "resnet eval": timm("resnet10t", training=False, channels=(8, 8, 16, 16)),
    "resnet train": timm("resnet10t", channels=(8, 8, 16, 16), batch=4),
    "mobilenetv3": timm("mobilenetv3_small_050", batch=4),
    "lcnet": timm("lcnet_035", training=False),
    "ghostnet": timm("ghostnet_050", training=False),
    "hgnetv2": timm("hgnetv2_b0", training=False),
    "levit": timm(
        "levit_128s",
        img_size=32,
        embed_dim=(8, 8, 8),
        depth=(1, 1, 1),
        num_heads=(1, 1, 1),
        key_dim=4,
        batch=4,
    ),
} | {name: timm(name, 64, batch=4, **_sized(name)) for name in _TESTS.split()}
