"""A new optimizer with the hyperparameters of another and, on request, its state."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch.optim import Optimizer

from optbench.dynamics.black_box.responses import UnclearError, feed
from optbench.dynamics.optimizer_options import (
    HARMLESS,
    arguments,
    constructors,
    patched,
    plain,
    told,
    torch_attributes,
)

Group = dict[str, Any]

STEPS = 12
"""Steps of a trial copy, after which what its class keeps beside hyperparameters has changed."""


@dataclass(frozen=True)
class Own:
    """What a class sets by itself, beyond the arguments of its constructor.

    Attributes:
        keys: Value of each key of a group, as it is before the first step, to be compared.
        attributes: Likewise of each attribute of the optimizer.
        moving_keys: Keys that its own step adds or changes: state, such as a counter.
        moving_attributes: Likewise.
    """

    keys: Mapping[str, Any]
    attributes: Mapping[str, Any]
    moving_keys: frozenset[str]
    moving_attributes: frozenset[str]


def own(optimizer: Optimizer, group: Group) -> Own:
    """Find what a class sets by itself, from some steps of a copy over one number.

    What a class's own step adds to a group or changes there is its state, however it is called; a
    fresh copy has to start from the class's own value of it. Everything else is a hyperparameter.

    Raises:
        Exception: Whatever the class raises, if it can be built and stepped neither without the
            further keys of the group nor with them.
    """
    beyond = {
        k: v for k, v in group.items() if k != "params" and k not in arguments(type(optimizer))
    }
    try:
        return _trial(optimizer, group, {})
    except Exception:  # a class may ask for keys of a group that its constructor does not know
        return _trial(optimizer, group, beyond)


def hyperparameters(optimizer: Optimizer, group: Group) -> dict[str, Any]:
    """What decides a group's updates beside its state: arguments, keys, attributes."""
    found = own(optimizer, group)
    values = {k: told(v) for k, v in group.items() if k not in {"params", *found.moving_keys}}
    for name, value in vars(optimizer).items():
        if name not in torch_attributes() and name not in found.moving_attributes:
            values[f".{name}"] = told(value)
    return values


def settings(optimizer: Optimizer, group: Group) -> dict[str, Any]:
    """Keys and attributes beyond the constructor's arguments that differ from defaults."""
    found = own(optimizer, group)
    known = {"params", *arguments(type(optimizer))}
    unset = object()
    keys = {
        k: v
        for k, v in group.items()
        if told(v) != found.keys.get(k, unset) and k not in found.moving_keys
    }
    attributes = {
        k: v
        for k, v in vars(optimizer).items()
        if k not in torch_attributes()
        and told(v) != found.attributes.get(k, unset)
        and k not in found.moving_attributes
    }
    return {k: v for k, v in (keys | attributes).items() if k not in known}


def fresh(optimizer: Optimizer, groups: list[Group]) -> Optimizer:
    """A new optimizer of the same class and hyperparameters, over other parameters, without a step.

    Constructor arguments come from the first group, the defaults, then attributes of the same name.
    Keys of groups and attributes beyond them are copied, save those that the class's own step adds
    or changes, which start from the class's own defaults.

    Raises:
        UnclearError: If an argument without default is found nowhere, or if an attribute is a
            function that holds what a copy cannot take along.
    """
    found = own(optimizer, groups[0])
    harmless = HARMLESS & arguments(type(optimizer)).keys()
    lists = [{k: v for k, v in g.items() if k not in found.moving_keys | harmless} for g in groups]
    twin = _build(optimizer, groups[0], lists)
    for name, value in vars(optimizer).items():
        method = callable(getattr(type(optimizer), name, None))
        if not method and name not in torch_attributes() | found.moving_attributes | harmless:
            _carry(optimizer, twin, name, value)
    return twin


def resumed(optimizer: Optimizer, groups: list[Group]) -> Optimizer:
    """As `fresh`, with the optimizer's state: of every parameter, of its groups and of itself.

    Args:
        optimizer: Any.
        groups: Its groups over other parameters, of the same shapes and in the same order.
    """
    twin = fresh(optimizer, groups)
    moving = own(optimizer, groups[0]).moving_attributes
    pairs = zip(optimizer.param_groups, groups, strict=True)
    others = {
        id(p): q for old, new in pairs for p, q in zip(old["params"], new["params"], strict=True)
    }
    for name in moving & vars(optimizer).keys():
        setattr(twin, name, copy.deepcopy(vars(optimizer)[name], {id(optimizer): twin, **others}))
    saved = copy.deepcopy(optimizer.state_dict())
    harmless = HARMLESS & arguments(type(optimizer)).keys()
    for group, of_twin in zip(saved["param_groups"], twin.param_groups, strict=True):
        group.update({k: of_twin[k] for k in harmless & group.keys() & of_twin.keys()})
    twin.load_state_dict(saved)
    return twin


def _trial(optimizer: Optimizer, group: Group, beyond: Group) -> Own:
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    twin = _build(optimizer, group, [{**copy.deepcopy(beyond), "params": [w]}])
    keys, attributes = _seen(twin)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for t in range(STEPS):
            feed(twin, [w], [torch.full_like(w, (-1.0) ** t)])
    keys_then, attributes_then = _seen(twin)
    known = arguments(type(optimizer))
    return Own(
        keys,
        attributes,
        frozenset(
            k for k in keys_then if k not in known and (k not in keys or keys[k] != keys_then[k])
        ),
        frozenset(
            k
            for k in attributes_then
            if k not in known and (k not in attributes or attributes[k] != attributes_then[k])
        ),
    )


def _seen(optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of the first group and attributes of an optimizer, to be compared."""
    keys = {k: told(v) for k, v in optimizer.param_groups[0].items() if k != "params"}
    return keys, {k: told(v) for k, v in vars(optimizer).items() if k not in torch_attributes()}


def _build(optimizer: Optimizer, group: Group, lists: list[Group]) -> Optimizer:
    known = {**vars(optimizer), **optimizer.defaults, **group}
    given = {}
    cls = type(optimizer)
    for parameter in next(constructors(cls), []):
        name = parameter.name
        if parameter.kind in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}:
            continue
        required = parameter.default is parameter.empty
        if name in known and (required or name not in HARMLESS):
            given[name] = copy.deepcopy(known[name])
        elif required:
            raise UnclearError(f"{cls.__name__} needs an argument {name!r} that is not kept")
    twin = cls(lists, **given)
    if callable(train := getattr(twin, "train", None)):
        train()
    return twin


def check_copyable(optimizer: Optimizer) -> None:
    """Refuse an optimizer that is more than its class and numbers.

    Raises:
        UnclearError: If it holds another optimizer, or if a method was replaced on it.
    """
    name = type(optimizer).__name__
    if names := patched(optimizer):
        raise UnclearError(
            f"{names[0]} was replaced on this {name} itself, which a copy of its class does not "
            "have"
        )
    for attribute, value in vars(optimizer).items():
        if attribute not in torch_attributes() and _holds_an_optimizer(value):
            raise UnclearError(
                f"{name} holds another optimizer as .{attribute}, and a copy cannot take it along: "
                f"ask for the edge of that one if {name} leaves its updates as they are"
            )


def _holds_an_optimizer(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, Optimizer) or (
        isinstance(value, list | tuple) and any(isinstance(v, Optimizer) for v in value)
    )


def _carry(optimizer: Optimizer, twin: Optimizer, name: str, value: Any) -> None:
    """Copy an attribute if it is plain, or a function of plain things and the optimizer."""
    there = vars(twin).get(name)
    if plain(value):
        setattr(twin, name, copy.deepcopy(value))
    elif isinstance(value, MethodType) and value.__self__ is optimizer:
        setattr(twin, name, MethodType(value.__func__, twin))
    elif isinstance(value, FunctionType) and _of_plain_things(value, {id(optimizer)}):
        cells = [
            CellType(twin if c.cell_contents is optimizer else c.cell_contents)
            for c in value.__closure__ or ()
        ]
        carried = FunctionType(
            value.__code__, value.__globals__, value.__name__, value.__defaults__, tuple(cells)
        )
        carried.__kwdefaults__ = value.__kwdefaults__
        setattr(twin, name, carried)
    elif isinstance(value, FunctionType | MethodType | partial) and _code(value) is not _code(
        there
    ):
        raise UnclearError(
            f"the function .{name} of {type(optimizer).__name__} holds what a copy cannot take "
            "along"
        )


def _of_plain_things(function: FunctionType, allowed: Collection[int]) -> bool:
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    return all(
        plain(v) or id(v) in allowed or (isinstance(v, FunctionType) and _of_plain_things(v, ()))
        for v in held
    )


def _code(function: Any) -> Any:
    function = getattr(function, "func", function)
    return getattr(getattr(function, "__func__", function), "__code__", function)
