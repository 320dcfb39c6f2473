"""Options of an optimizer: names, signatures, comparable values, and methods that were replaced."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

HARMLESS = frozenset(
    {
        "foreach",
        "fused",
        "capturable",
        "differentiable",
        "triton",
        "use_triton",
        "kahan_sum",
        "verbose",
    }
)
"""Arguments that choose how the same update is computed, rounded or reported, never which one."""

AROUND = frozenset({"zero_grad", "state_dict", "load_state_dict", "add_param_group"})
"""Methods that may be replaced without changing the update."""


@cache  # not at import: torch's first optimizer loads its compiler, 1.5 s
def torch_attributes() -> frozenset[str]:
    """Attributes that torch.optim.Optimizer itself keeps, and the mark of torch's schedules."""
    return frozenset(vars(SGD([torch.zeros(1)]))) | {"_opt_called"}


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    """Constructor arguments by name, beside the parameters; through **kwargs the parents', too."""
    every = [p for parameters in constructors(cls) for p in parameters]
    found: dict[str, inspect.Parameter] = {}
    for p in every:
        if p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}:
            found.setdefault(p.name, p)
    return found


def constructors(cls: type) -> Iterator[list[inspect.Parameter]]:
    """Arguments after (self, params) of a constructor, and of its parents' with **kwargs."""
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        _, *parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()
        if parent is Optimizer or any(p.name == "defaults" for p in parameters):
            return  # a base of optimizers, to which a class hands its finished defaults
        if parameters and parameters[0].kind not in {
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        }:
            parameters = parameters[1:]
        yield parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return


def overridden(optimizer: Optimizer, cls: type[Optimizer]) -> list[str]:
    """Names of methods and constants of `cls` that a subclass, or this optimizer, replaces."""
    parents = type(optimizer).__mro__
    names = []
    for parent in parents[: parents.index(cls)]:
        for name, value in vars(parent).items():
            special = name.startswith("__") and name != "__call__"
            if special or name in AROUND or not hasattr(cls, name):
                continue
            if bottom(value) is not bottom(inspect.getattr_static(cls, name)):
                names.append(name)
    return names + patched(optimizer)


def patched(optimizer: Optimizer) -> list[str]:
    """Names of methods that were replaced on this optimizer, other than by torch's schedules."""
    cls = type(optimizer)
    methods = {
        n: v
        for n, v in vars(optimizer).items()
        if callable(getattr(cls, n, None)) and n not in AROUND
    }
    return [n for n, value in methods.items() if bottom(value) is not bottom(getattr(cls, n))]


def bottom(function: Any) -> Any:
    """The function below the wrappers that torch puts around it to count and profile."""
    while True:
        function = getattr(function, "__func__", function)
        # functools.wraps copies __module__, so that only the globals tell who wrote the layer
        home = getattr(function, "__globals__", {}).get("__name__", "").partition(".")[0]
        if home != "torch" or not hasattr(function, "__wrapped__"):
            return function
        function = function.__wrapped__


def foreign_hooks(optimizer: Optimizer) -> list[str]:
    """Names of step hooks that neither torch nor optbench registered on this optimizer."""
    tables = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    registered = [hook for table in tables for hook in getattr(optimizer, table, {}).values()]
    foreign = [
        hook
        for hook in registered
        if (getattr(hook, "__module__", None) or "").partition(".")[0] not in {"torch", "optbench"}
    ]
    return [getattr(hook, "__name__", type(hook).__name__) for hook in foreign]


def plain(value: Any, depth: int = 4) -> bool:
    """Whether a value is made of numbers, text and flags only, so that a copy of it is as good."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.requires_grad
    if isinstance(value, Number | str | bytes | Enum | torch.dtype | torch.device | None):
        return True
    if depth == 0 or callable(value) or isinstance(value, Optimizer | nn.Module):
        return False
    if isinstance(value, Mapping):
        return all(plain(v, depth - 1) for pair in value.items() for v in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return all(plain(v, depth - 1) for v in value)
    return hasattr(value, "__dict__") and plain(vars(value), depth - 1)


def told(value: Any) -> Any:
    """A value comparable by ==: tensors as numbers, tuples as lists, other objects by identity."""
    if isinstance(value, Tensor):
        return value.detach().tolist() if value.numel() <= 64 else [id(value), value._version]
    if isinstance(value, Mapping):
        return {k if isinstance(k, str) else id(k): told(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [told(v) for v in value]
    if isinstance(
        value, Number | str | bytes | Enum | torch.dtype | torch.device | set | frozenset | None
    ):
        return value
    return [type(value), told(vars(value))] if plain(value) else [type(value), id(value)]
