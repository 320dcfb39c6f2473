"""State of a loss function beside the model: modules, attributes and closure variables."""

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
"""Types of the values that are restored."""
LARGEST = 2**22
"""Most numbers in a tensor that is restored: a larger one may be a data set."""
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
"""Types whose attributes are not the loss's state, or are restored elsewhere (modules)."""


def modules_of(loss: object, model: nn.Module) -> list[nn.Module]:
    """Modules beside the model that a loss uses, each once.

    They are found in its closure, among the globals it names, as a partial argument, or as the
    object that it is a method of. Modules that contain the model are left out.
    """
    in_model = {id(module) for module in model.modules()}
    code = getattr(_function(loss), "__code__", None)
    names = code.co_names if code is not None else ()
    reached = [*_reached_by(loss), *(_function(loss).__globals__.get(name) for name in names)]
    others = {id(x): x for x in reached if isinstance(x, nn.Module) and id(x) not in in_model}
    return [x for x in others.values() if not any(module is model for module in x.modules())]


@contextlib.contextmanager
def kept_state(loss: object) -> Iterator[None]:
    """Context that restores what a loss writes to its own attributes and closure variables.

    Examples are a count of its calls and a running mean. Restored are numbers, text, tensors of up
    to `LARGEST` numbers, lists, dicts and generators. Globals are not restored, nor are objects
    inside of other objects.
    """
    tables = [vars(x) for x in _objects_of(loss)]
    attributes = _attributes_in(tables)
    variables: list[tuple[CellType, object]] = [
        (cell, cell.cell_contents)
        for cell in _variables_of(loss)
        if isinstance(cell.cell_contents, KEPT)
    ]
    names_before = [set(table) for table in tables]
    values = [*(value for *_, value in attributes), *(value for _, value in variables)]
    for table, name, value in attributes:
        table[name] = _small_stand_in(value)
    for cell, value in variables:
        cell.cell_contents = _small_stand_in(value)
    try:
        with kept_values(value for value in values if _is_small(value)):
            yield
    finally:
        _delete_new(tables, names_before)
        _put_back(attributes, variables)


Attribute = tuple[dict[str, Any], str, object]
"""An object's `__dict__`, an attribute's name and its value."""


def _attributes_in(tables: list[dict[str, Any]]) -> list[Attribute]:
    return [
        (table, name, value)
        for table in tables
        for name, value in table.items()
        if isinstance(value, KEPT)
    ]


def _small_stand_in(value: object) -> object:
    """A copy for the loss to write to; a tensor that is too large to copy stays itself."""
    return stand_in(value) if _is_small(value) else value


def _is_small(value: object) -> bool:
    return not isinstance(value, Tensor) or value.numel() <= LARGEST


def _delete_new(tables: list[dict[str, Any]], names_before: list[set[str]]) -> None:
    """Delete attributes that were not there before."""
    for table, names in zip(tables, names_before, strict=True):
        for name in [n for n in table if n not in names and isinstance(table[n], KEPT)]:
            del table[name]


def _put_back(attributes: list[Attribute], variables: list[tuple[CellType, object]]) -> None:
    """Set attributes and closure variables to the objects that they held before."""
    for table, name, value in attributes:
        if table.get(name, ...) is not value:
            table[name] = value
    for cell, value in variables:
        if cell.cell_contents is not value:
            cell.cell_contents = value


def state_of(loss: object) -> list[object]:
    """Values that `kept_state` restores; comparing them shows whether the loss has changed."""
    values: list[object] = [value for x in _objects_of(loss) for value in vars(x).values()]
    values += [cell.cell_contents for cell in _variables_of(loss)]
    return [value for value in values if isinstance(value, KEPT)]


def _objects_of(loss: object) -> list[object]:
    """Objects of the loss whose attributes are its state, each once."""
    objects = {
        id(x): x
        for x in _reached_by(loss)
        if hasattr(x, "__dict__") and not isinstance(x, OF_OTHERS)
    }
    return list(objects.values())


def _variables_of(loss: object) -> list[CellType]:
    """Closure variables of the loss that have a value."""
    return [
        cell for cell in getattr(_function(loss), "__closure__", None) or () if _is_filled(cell)
    ]


def _function(loss: object) -> Any:
    """The plain function below partial applications and a bound method."""
    while isinstance(loss, partial):
        loss = loss.func
    return getattr(loss, "__func__", loss)


def _reached_by(loss: object) -> list[object]:
    """The loss, its partial arguments, the object it is a method of, and its closure's values."""
    arguments: list[object] = []
    while isinstance(loss, partial):
        arguments += [*loss.args, *loss.keywords.values()]
        loss = loss.func
    return [
        *arguments,
        loss,
        getattr(loss, "__self__", None),
        *(cell.cell_contents for cell in _variables_of(loss)),
    ]


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
