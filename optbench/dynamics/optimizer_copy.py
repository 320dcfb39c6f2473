"""A copy of a model and its optimizer in another precision, whatever the optimizer's class."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench.curvature.errors import MeasurementError
from optbench.dynamics.optimizer_options import foreign_hooks, patched
from optbench.optimizers.nested import nested

Memo = dict[int, Any]


def copied(
    model: nn.Module, optimizer: Optimizer, dtype: torch.dtype
) -> tuple[nn.Module, Optimizer]:
    """Return a copy of both, in which every real tensor has this precision.

    Wrappers (SAM, Lookahead, ByShape) are copied with what they hold. torch's own `deepcopy` of an
    optimizer keeps its state and groups only, not its attributes; this one keeps all of them.

    Raises:
        MeasurementError: If a step hook, a replaced method or a function with variables of its own
            would lead from the copy back to the original.
    """
    _refuse_ways_back(optimizer)
    memo: Memo = {}
    parts = list(nested(optimizer))
    try:
        twin_model, twins = copy.deepcopy(model, memo), _copied_parts(parts, memo)
        twin_model.to(dtype)
        for t in [t for twin in twins for t in tensors(vars(twin))]:
            if t.is_floating_point() and t.dtype != dtype:
                t.data = t.data.to(dtype)
    except (RuntimeError, TypeError) as why:  # no float64 on MPS; tensors with a graph
        raise MeasurementError(f"model or optimizer cannot be copied in {dtype}: {why}") from why
    _restore_views(model, parts, memo)
    return twin_model, twins[0]


def _copied_parts(parts: list[Optimizer], memo: Memo) -> list[Optimizer]:
    """Copies of an optimizer and of those that it holds, which hold each other."""
    twins = [part.__class__.__new__(part.__class__) for part in parts]
    # empty shells first, so that parts that hold each other find each other's copies
    memo |= {id(part): twin for part, twin in zip(parts, twins, strict=True)}
    for part, twin in zip(parts, twins, strict=True):
        own = {k: v for k, v in vars(part).items() if not _replaces_a_method(part, k)}
        vars(twin).update(copy.deepcopy(own, memo))
    return twins


def _replaces_a_method(part: Optimizer, name: str) -> bool:
    """Whether an attribute is a method that was set anew, as torch's schedules do with `step`."""
    return callable(getattr(type(part), name, None))


def _restore_views(model: nn.Module, parts: list[Optimizer], memo: Memo) -> None:
    """Let what was a view of a parameter, such as a convolution as Muon's matrix, be one again."""
    of_storage = {p.untyped_storage().data_ptr(): p for p in model.parameters()}
    for view in [t for part in parts for t in tensors(vars(part))]:
        p = of_storage.get(view.untyped_storage().data_ptr())
        if p is None or view is p:
            continue
        twin = memo[id(p)].data
        offset = twin.storage_offset() + view.storage_offset() - p.storage_offset()
        memo[id(view)].data = torch.as_strided(twin, view.shape, view.stride(), offset)


def _refuse_ways_back(optimizer: Optimizer) -> None:
    for part in nested(optimizer):
        name = type(part).__name__
        if hooks := foreign_hooks(part):
            raise MeasurementError(f"the step hook {hooks[0]} of {name} may act outside of a copy")
        if methods := patched(part):
            raise MeasurementError(f"{methods[0]} was replaced on this {name} itself")
        for key, value in vars(part).items():
            cells = getattr(value, "__closure__", None) or ()
            if isinstance(value, FunctionType) and not _replaces_a_method(part, key) and cells:
                raise MeasurementError(f"the function .{key} of {name} has variables of its own")


def tensors(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor in nested dicts, lists and tuples, and every key that is one, each once."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(key, seen)
            yield from tensors(inner, seen)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors(inner, seen)
