"""Everything that a measurement must leave as it was."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perf.sweep.subject import Subject


def state_of(subject: Subject) -> dict[str, Any]:
    """Weights, buffers, gradients, modes, data and generators, by what a reader calls them."""
    model = subject.model
    state: dict[str, Any] = {
        f"parameter {n}": p.detach().clone() for n, p in model.named_parameters()
    }
    state |= {f"buffer {n}": b.detach().clone() for n, b in model.named_buffers()}
    state |= {
        f"grad of {n}": p.grad if p.grad is None else p.grad.clone()
        for n, p in model.named_parameters()
    }
    state |= {f"mode of {n or 'the model'}": m.training for n, m in model.named_modules()}
    state["inputs"], state["targets"] = subject.inputs.clone(), subject.targets.clone()
    state["torch's generator"] = torch.get_rng_state()
    state["NumPy's generator"] = repr(np.random.get_state())  # noqa: NPY002  the state to keep
    state["Python's generator"] = random.getstate()
    state["default dtype"] = torch.get_default_dtype()
    return state


def same(before: Any, after: Any) -> bool:
    """Whether two values of a state are alike, numbers to the bit."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return (
            before.shape == after.shape
            and before.dtype == after.dtype
            and _bits_alike(before, after)
        )
    return type(before) is type(after) and bool(before == after)


def _bits_alike(a: Tensor, b: Tensor) -> bool:
    return a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
