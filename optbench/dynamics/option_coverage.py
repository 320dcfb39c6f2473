"""Whether a rule describes everything that an optimizer was told."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from optbench.dynamics.black_box.twin import settings
from optbench.dynamics.optimizer_options import (
    HARMLESS,
    arguments,
    constructors,
    told,
    torch_attributes,
)

SCHEDULED = frozenset(
    {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "param_names"}
)
"""What torch's schedules and named parameters leave in groups, which no step reads."""


def misunderstood(optimizer: Optimizer, understood: Collection[str], off: Mapping[str, Any]) -> str:
    """Return the first option whose value a rule does not describe, such as "cautious=True", or "".

    - A constructor argument that is neither understood nor harmless has to have its default, and to
      be seen
      to: in the groups, or as an attribute of that name, with or without an underscore.
    - What a class took through **kwargs has to be what the class sets without them.

    Args:
        optimizer: Any.
        understood: Arguments that the rule describes at every value. The name of a **kwargs, such
            as "kwargs", for whatever comes through it.
        off: Value at which an option does nothing, where that is not its default.
    """
    for name, neutral in off.items():
        for value in _kept(optimizer, name):
            if told(value) != told(neutral):
                return f"{name}={value!r}"
    known = {*understood, *off}
    return _in_the_signature(optimizer, known) or _beyond_the_signature(optimizer, known)


def _in_the_signature(optimizer: Optimizer, understood: Collection[str]) -> str:
    for name, parameter in arguments(type(optimizer)).items():
        if name in HARMLESS or name in understood:
            continue
        values = list(_kept(optimizer, name))
        if not values:
            return f"{name}, which is kept neither in the groups nor as an attribute,"
        for value in values:
            if told(value) != told(parameter.default):
                return f"{name}={value!r}"
    return ""


def _beyond_the_signature(optimizer: Optimizer, understood: Collection[str]) -> str:
    cls = type(optimizer)
    open_ends = [
        p.name for parameters in constructors(cls) for p in parameters if p.kind is p.VAR_KEYWORD
    ]
    if all(name in understood for name in open_ends):
        return ""
    known = {
        *arguments(cls),
        *understood,
        *HARMLESS,
        *SCHEDULED,
        *torch_attributes(),
        "params",
        "step",
    }
    for group in optimizer.param_groups:
        held = {k: v for k, v in {**vars(optimizer), **group}.items() if k not in known and _on(v)}
        if not held:
            continue  # so that no copy need be asked what the class sets by itself
        for key, value in _set_by_the_user(optimizer, group, held).items():
            return f"{key}={value!r}"
    return ""


def _set_by_the_user(
    optimizer: Optimizer, group: dict[str, Any], held: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        set_ = settings(optimizer, group)
    # a class that cannot be copied does not tell, so that everything counts as set
    except Exception:
        return dict(held)
    return {k: v for k, v in held.items() if k in set_}


def _on(value: Any) -> bool:
    return told(value) not in (None, False, 0, "", [], {})


def _kept(optimizer: Optimizer, name: str) -> Iterator[Any]:
    yield from (group[name] for group in optimizer.param_groups if name in group)
    yield from (vars(optimizer)[key] for key in (name, f"_{name}") if key in vars(optimizer))
