"""Device and precision of a run."""

import os
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from optbench.errors import UserError

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.float32}
"""Precision of weights and data; bf16 casts inside of the forward pass alone."""


@dataclass(frozen=True)
class Numerics:
    """Where a run computes, and in which precision.

    Attributes:
        device: Device of weights and data.
        dtype: Precision of weights and data.
        autocast: Whether forward passes are in bfloat16.
    """

    device: torch.device
    dtype: torch.dtype
    autocast: bool


def resolve_device(name: str) -> torch.device:
    """Return the device; `auto` is the GPU where there is one.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as why:
        raise UserError(
            f"device={name} is not to be had here ({str(why).splitlines()[0]}): say device=cpu"
        ) from why
    return torch.device(name)


def numerics(config: DictConfig) -> Numerics:
    """Device and precision that a configuration asks for.

    Raises:
        UserError: If this machine has no such device, or the device no such precision.
    """
    device = resolve_device(config.device)
    if config.dtype == "bf16" and device.type != "cuda":
        raise UserError(f"dtype=bf16 needs a GPU, and device is {device.type}: say dtype=float32")
    if config.dtype == "float64" and device.type == "mps":
        raise UserError("dtype=float64 is not to be had on mps: say device=cpu")
    if device.type == "cuda":
        _make_reproducible()
    return Numerics(device, DTYPES[config.dtype], config.dtype == "bf16")


def _make_reproducible() -> None:
    """Have a GPU give the same bits each time, and float32 where float32 is asked for."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
        False  # 10 bits of mantissa
    )
