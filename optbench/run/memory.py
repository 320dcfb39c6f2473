"""What a run holds in memory, and keeping it there."""

import ctypes
import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

GIB = 2**30
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER = 2**31 - 1  # bytes; the largest that mallopt takes


def state_gib(optimizer: Optimizer) -> float:
    """Return the size of an optimizer's state in GiB: what it keeps beside the weights."""
    seen = {id(tensor): tensor for tensor in _tensors(optimizer.state_dict())}
    return sum(tensor.numel() * tensor.element_size() for tensor in seen.values()) / GIB


def peak_gib(device: torch.device) -> float:
    """Return the most memory held so far: torch's on a GPU, the whole process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _tensors(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _tensors(value)


def keep_freed_memory() -> bool:
    """Tell the C library to hold on to what is freed, and return whether it does.

    A training step on a CPU allocates and frees the same few large tensors; glibc hands such back
    to the system at once, which then clears every page again (about a quarter of a step of a small
    CNN). The peak stays as it was. Where the C library is another, nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(what, _NEVER) == 1 for what in (_MMAP_THRESHOLD, _TRIM_THRESHOLD)
    )
