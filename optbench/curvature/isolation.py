"""Contexts in which a measurement leaves no trace: random numbers, modes, autocast, kernels."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Mode = Literal["train", "eval"]
"""The mode a model is measured in."""


@contextlib.contextmanager
def kept_rng(device: torch.device) -> Iterator[None]:
    """Restore Python's, NumPy's and torch's global generators, also after an exception."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  the state to keep
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def seed_globals(device: torch.device, seed: int) -> None:
    """Seed the generators that `kept_rng` restores, and no others."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def differentiable(device: torch.device) -> Iterator[None]:
    """Gradients on, autocast off, attention through the math kernel: it has a double backward."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield


@contextlib.contextmanager
def in_mode(model: nn.Module, mode: Mode | None) -> Iterator[None]:
    """Put every module in the mode, and each back in its own afterwards; None leaves them."""
    before = [(module, module.training) for module in model.modules()]
    try:
        if mode is not None:
            _set_modes([(module, mode == "train") for module, _ in before])
        yield
    finally:
        _set_modes(before)


@contextlib.contextmanager
def kept_buffers(modules: list[nn.Module]) -> Iterator[None]:
    """Restore the buffers of batch norms: what a checkpoint runs again no longer sees the copies it ran with."""
    before = []
    for module in modules:
        if module.training:
            buffers = list(module.buffers(recurse=False))
            before.append((buffers, [b._version for b in buffers], [b.detach().clone() for b in buffers]))
    try:
        yield
    finally:
        with torch.no_grad():
            for buffers, versions, kept in before:
                # The statistics are written without a new version; the number of batches, beside them, has one.
                if versions != [b._version for b in buffers]:
                    torch._foreach_copy_(buffers, kept)


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if module.training != training:  # to set an attribute of a module is slow
            # The flag, not model.train(): a user's override of that may do more than set it.
            module.training = training
