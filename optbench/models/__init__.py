"""Models, one file each: a factory from (input shape, output width) to an `nn.Module`.

Weights are drawn from torch's global generator, which the runner puts on the run's `init` stream.
"""

from typing import Literal

from torch import nn

from optbench.errors import UserError, nearest

Activation = Literal["tanh", "relu", "gelu", "silu", "elu", "softplus", "identity"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def activation_layer(name: str) -> nn.Module:
    """Return a new activation layer.

    Raises:
        UserError: If the name is not one of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise UserError(
            f"model.activation must be one of {', '.join(ACTIVATIONS)}, got "
            f"{name}.{nearest(name, ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]()


def image_shape(input_shape: tuple[int, ...], model: str) -> tuple[int, int, int]:
    """Return (channels, height, width).

    Raises:
        UserError: If the input is no image.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"model={model} needs images (channels, height, width), got inputs of shape "
            f"{input_shape}"
        )
    channels, height, width = input_shape
    return channels, height, width


def norm_layer(name: str, channels: int) -> nn.Module:
    """Return a new normalisation layer over `channels` feature maps: `batch`, `group` or `none`.

    `group` has 8 groups where they divide the channels, else one.

    Raises:
        UserError: If the name is none of these.
    """
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)
    if name == "none":
        return nn.Identity()
    raise UserError(f"model.norm must be batch, group or none, got {name}")
