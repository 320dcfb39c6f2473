"""Giving an optimizer its state back as it was.

torch's `Optimizer.load_state_dict` casts every tensor to its parameter's precision, and makes every
iterable again as `type(value)(items)`: text becomes the name of a generator, a NumPy array an
error.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

REMADE = (dict, list, tuple)  # what torch makes again as it was


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load an `optimizer.state_dict()`, every value in the type and precision that it had."""
    odd = dict(_odd_values(saved))
    optimizer.load_state_dict(_without(saved, odd))
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for (number, key), value in odd.items():
        optimizer.state[params[number]][key] = copy.deepcopy(value)
    for number, values in _by_parameter(saved):
        state = optimizer.state.get(params[number], {}) if number < len(params) else {}
        for key, value in values.items():
            loaded = state.get(key)
            if (
                isinstance(value, Tensor)
                and isinstance(loaded, Tensor)
                and loaded.dtype != value.dtype
            ):
                state[key] = value.to(loaded.device, copy=True)


def _by_parameter(saved: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield each parameter's place and state, of an optimizer that keeps torch's own layout."""
    groups, state = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not isinstance(state, Mapping):
        return
    order = {
        number: place for place, number in enumerate(n for group in groups for n in group["params"])
    }
    for number, values in state.items():
        if number in order and isinstance(values, Mapping):
            yield order[number], values


def _odd_values(saved: Mapping[str, Any]) -> Iterator[tuple[tuple[int, str], Any]]:
    for place, values in _by_parameter(saved):
        for key, value in values.items():
            if hasattr(value, "__iter__") and not isinstance(value, (Tensor, *REMADE)):
                yield (place, key), value


def _without(saved: dict[str, Any], odd: Mapping[tuple[int, str], Any]) -> dict[str, Any]:
    if not odd:
        return saved
    keys = {key for _, key in odd}
    kept = {
        number: {k: v for k, v in values.items() if k not in keys}
        for number, values in saved["state"].items()
    }
    return saved | {"state": kept}
