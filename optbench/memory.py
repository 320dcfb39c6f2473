"""What a run holds in memory."""

import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

GIB = 2**30


def state_gib(optimizer: Optimizer) -> float:
    """Return the bytes of every tensor in an optimizer's state, in GiB: what it keeps beside the weights."""
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
