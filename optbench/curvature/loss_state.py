"""What a loss function reaches beside the model: modules, and objects and variables of its own that it may write to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optbench.curvature.isolation import kept_values, stand_in

KEPT = (
    bool,
    int,
    float,
    str,
    tuple,
    list,
    dict,
    type(None),
    Tensor,
    torch.Generator,
    np.random.Generator,
)
LARGEST = 2**22
OF_OTHERS = (
    FunctionType,
    MethodType,
    BuiltinFunctionType,
    ModuleType,
    partial,
    type,
    Tensor,
    nn.Module,
)
"""What has attributes that are nobody's state, or that are kept otherwise."""


def modules_of(loss: object, model: nn.Module) -> list[nn.Module]:
    """Modules that a loss reaches beside the model: in its closure, its globals, as an argument, or as its owner."""
    own = {id(module) for module in model.modules()}
    code = getattr(_function(loss), "__code__", None)
    names = code.co_names if code is not None else ()
    held = [*_own(loss), *(_function(loss).__globals__.get(name) for name in names)]
    found = {id(x): x for x in held if isinstance(x, nn.Module) and id(x) not in own}
    return [x for x in found.values() if not any(module is model for module in x.modules())]


@contextlib.contextmanager
def kept_state(loss: object) -> Iterator[None]:
    """Bring back what a loss writes to itself: attributes of its object, variables of the functions around it.

    Such as a count of its calls, or a running mean. Kept are numbers, text, tensors of up to
    `LARGEST` numbers, lists, dicts and generators; not what it writes to globals, or to objects
    further in.
    """
    tables = [vars(x) for x in _objects_of(loss)]
    own = [
        (table, name, value)
        for table in tables
        for name, value in table.items()
        if isinstance(value, KEPT)
    ]
    cells = [
        (cell, cell.cell_contents)
        for cell in _variables_of(loss)
        if isinstance(cell.cell_contents, KEPT)
    ]
    before = [set(table) for table in tables]
    values = [
        x for x in (*(value for *_, value in own), *(value for _, value in cells)) if _is_small(x)
    ]
    for table, name, value in own:
        table[name] = stand_in(value) if _is_small(value) else value
    for cell, value in cells:
        cell.cell_contents = stand_in(value) if _is_small(value) else value
    try:
        with kept_values(values):
            yield
    finally:
        for table, names in zip(tables, before, strict=True):
            for name in [n for n in table if n not in names and isinstance(table[n], KEPT)]:
                del table[name]
        for table, name, value in own:
            if table.get(name, ...) is not value:
                table[name] = value
        for cell, value in cells:
            if cell.cell_contents is not value:
                cell.cell_contents = value


def _is_small(value: object) -> bool:
    return not isinstance(value, Tensor) or value.numel() <= LARGEST


def state_of(loss: object) -> list[object]:
    """What `kept_state` brings back, as values that differ once it has changed, as far as torch and Python see it."""
    found: list[object] = [value for x in _objects_of(loss) for value in vars(x).values()]
    found += [cell.cell_contents for cell in _variables_of(loss)]
    return [value for value in found if isinstance(value, KEPT)]


def _objects_of(loss: object) -> list[object]:
    held = {id(x): x for x in _own(loss) if hasattr(x, "__dict__") and not isinstance(x, OF_OTHERS)}
    return list(held.values())


def _variables_of(loss: object) -> list[CellType]:
    return [
        cell for cell in getattr(_function(loss), "__closure__", None) or () if _is_filled(cell)
    ]


def _function(loss: object) -> Any:
    while isinstance(loss, partial):
        loss = loss.func
    return getattr(loss, "__func__", loss)


def _own(loss: object) -> list[object]:
    """The loss, what is partially applied to it, its owner, and what its closure holds."""
    held: list[object] = []
    while isinstance(loss, partial):
        held += [*loss.args, *loss.keywords.values()]
        loss = loss.func
    return [
        *held,
        loss,
        getattr(loss, "__self__", None),
        *(cell.cell_contents for cell in _variables_of(loss)),
    ]


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
