"""Contexts in which a measurement leaves no trace.

They restore random numbers, modes, weights and attributes, and switch autocast, compiled code and
fused kernels off.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

Mode = Literal["train", "eval"]
"""Mode that a model is measured in."""


@contextlib.contextmanager
def kept_rng(device: torch.device) -> Iterator[None]:
    """Restore Python's, NumPy's and torch's global generators, also after an exception."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  the state to restore
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def seed_globals(device: torch.device, seed: int) -> None:
    """Seed the generators that `kept_rng` restores: Python's, NumPy's and torch's global ones."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)  # of this device only: `kept_rng` restores no other


@contextlib.contextmanager
def differentiable(device: torch.device) -> Iterator[None]:
    """Context with gradients on, autocast and compiled code off, also inside the model.

    Attention is computed by torch's plain kernel, the only one with a double backward.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        without_autocast(device),
        eager(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield


class _AutocastBan(threading.local):
    """Number of `without_autocast` contexts that this thread is in."""

    depth = 0


_ban = _AutocastBan()
_ENTER = torch.autocast.__enter__


def _enter_unless_banned(self: Any) -> Any:
    """`autocast.__enter__`, which has no effect inside of `without_autocast`."""
    wanted = self._enabled
    self._enabled = wanted and not _ban.depth
    try:
        return _ENTER(self)  # type: ignore[no-untyped-call]
    finally:
        self._enabled = wanted


@contextlib.contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Context with autocast off, also where the model or a wrapper of its forward switches it on.

    torch's `autocast.__enter__` is replaced at the first use and never put back, which would race
    with other threads that measure. The replacement asks whether its own thread is in this context.
    """
    if torch.autocast.__enter__ is _ENTER:
        torch.autocast.__enter__ = _enter_unless_banned  # type: ignore[method-assign]
    with torch.autocast(device.type, enabled=False):
        _ban.depth += 1
        try:
            yield
        finally:
            _ban.depth -= 1


def without_parametrization_cache() -> contextlib.AbstractContextManager[Any]:
    """Context in which parametrized weights are computed anew, even in `parametrize.cached()`."""
    if not getattr(parametrize, "_cache_enabled", 0):
        return contextlib.nullcontext()
    return patch.multiple(parametrize, _cache_enabled=0, _cache={})


def eager() -> contextlib.AbstractContextManager[Any]:
    """Context in which compiled code runs uncompiled: compiled graphs have no double backward."""
    # Importing the compiler takes seconds, and nothing is compiled before it is imported.
    if "torch._dynamo.eval_frame" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _Kept:
    """A tensor with its storage and a copy of its numbers, to be restored."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.storage, self.copy = tensor, tensor.data, tensor.detach().clone()

    def restore(self) -> bool:
        """Restore storage and numbers; return whether anything had been written."""
        moved = (
            self.tensor.data_ptr() != self.storage.data_ptr()
            or self.tensor.shape != self.storage.shape
        )
        # A write through `.data` may have replaced the storage, or reshaped the tensor.
        if moved:
            self.tensor.data = self.storage
        changed = not _identical(self.tensor, self.copy)
        if changed:
            with torch.no_grad():
                self.tensor.copy_(self.copy)
        return moved or changed


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense and has data; sparse and lazy ones do not."""
    return not nn.parameter.is_lazy(tensor) and tensor.layout == torch.strided


def _identical(a: Tensor, b: Tensor) -> bool:
    """Whether all numbers are equal, where NaN equals NaN."""
    if torch.equal(a, b):
        return True
    may_hold_nan = a.is_floating_point() or a.is_complex()
    return (
        may_hold_nan
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(), b.nan_to_num())
    )


@contextlib.contextmanager
def untouched(model: nn.Module, *others: object) -> Iterator[list[str]]:
    """Context that restores weights, buffers and attributes of every module, bit for bit.

    A forward pass may write to them: an embedding with `max_norm`, a clamp in place, a counter of
    calls. Costs one copy of weights and buffers, and reads them once.

    Args:
        model: The model.
        others: Other objects whose attributes are restored; see `kept_attributes`.

    Yields:
        A list which holds, at the end, the names of the parameters that had been written to.
    """
    written: list[str] = []
    named = [*model.named_parameters(), *model.named_buffers()]
    parameters = {name for name, _ in model.named_parameters()}
    kept = {name: _Kept(tensor) for name, tensor in named if _is_plain(tensor)}
    try:
        with kept_attributes(model, *others):
            yield written
    finally:
        written += [name for name, each in kept.items() if each.restore() and name in parameters]


@contextlib.contextmanager
def kept_attributes(model: nn.Module, *others: object) -> Iterator[None]:
    """Context that restores the attributes of every module beside weights and buffers.

    Restored are numbers, tensors, lists, dicts and generators. Attributes of the other objects are
    restored too, except the numbers in their tensors, which may be a whole data set.
    """
    owners = [(owner, _attributes(owner)) for owner in (*model.modules(), *others)]
    module_attributes = [
        (vars(module), name)
        for module in model.modules()
        for name in vars(module)
        if name not in USUAL
    ]
    values = [table[name] for table, name in module_attributes]
    values += [x for other in others for x in vars(other).values() if not isinstance(x, Tensor)]
    for table, name in module_attributes:
        table[name] = stand_in(table[name])
    try:
        with kept_values(values):
            yield
    finally:
        for owner, attributes in owners:
            _put_back(owner, attributes)


def stand_in(value: Any) -> Any:
    """A copy of a tensor, for a forward pass to write to; any other value itself.

    If the pass wrote to the tensor itself, restoring its numbers afterwards would change a tensor
    that the graph has saved.
    """
    return (
        value.clone()
        if isinstance(value, Tensor) and _is_plain(value) and not value.requires_grad
        else value
    )


@contextlib.contextmanager
def kept_values(values: Iterable[object]) -> Iterator[None]:
    """Context that restores numbers in tensors, entries of lists and dicts, generator states."""
    held = list(values)
    plain = [_Kept(x) for x in held if isinstance(x, Tensor) and _is_plain(x)]
    generators = [(x, x.get_state()) for x in held if isinstance(x, torch.Generator)]
    numpys = [(x, x.bit_generator.state) for x in held if isinstance(x, np.random.Generator)]
    lists = [(x, list(x)) for x in held if type(x) is list]
    tables = [(x, dict(x)) for x in held if type(x) is dict]
    try:
        yield
    finally:
        for each in plain:
            each.restore()
        for generator, state in generators:
            generator.set_state(state)
        for numpy_generator, numpy_state in numpys:
            numpy_generator.bit_generator.state = numpy_state
        for sequence, items in lists:
            sequence[:] = items
        for table, entries in tables:
            table.clear()
            table.update(entries)


USUAL = frozenset(vars(nn.Module()))
"""Names of the attributes that every module has."""
TABLES = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that are dicts of tensors and submodules; their entries are restored."""


def _attributes(owner: object) -> dict[str, Any]:
    """Attributes of an object by name, with copies of a module's tables."""
    values = dict(vars(owner))
    return values | {name: dict(values[name]) for name in TABLES if type(values.get(name)) is dict}


def _put_back(owner: object, attributes: dict[str, Any]) -> None:
    """Restore the attributes of an object; delete those that are new."""
    now = vars(owner)
    # In modules of torch.jit the tables are not dicts.
    tables = [name for name in TABLES if type(now.get(name)) is dict]
    for name in tables:
        if not _same_values(now[name], attributes[name]):
            now[name].clear()
            now[name].update(attributes[name])
    others = {name: value for name, value in attributes.items() if name not in tables}
    for name in now.keys() - attributes.keys():
        del now[name]
    for name, value in others.items():
        if now.get(name, ...) is not value:
            now[name] = value


def _same_values(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[key] is b[key] for key in a)


@contextlib.contextmanager
def in_mode(model: nn.Module, mode: Mode | None) -> Iterator[None]:
    """Context with every module in the mode; None leaves each in its own.

    A class may override `train`, for instance to keep a batch norm in eval mode. The modes are then
    those that its `train` sets.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        if mode is not None:
            _set_modes([(module, mode == "train") for module, _ in before])
            if any(type(module).train is not nn.Module.train for module, _ in before):
                with kept_attributes(model):  # an overridden `train` may do more than set modes
                    model.train(mode == "train")
                    wanted = [(module, module.training) for module, _ in before]
                _set_modes(wanted)
        yield
    finally:
        _set_modes(before)


@contextlib.contextmanager
def kept_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Context in which batch norms in train mode have copies of their buffers.

    A checkpointed layer runs again in the backward pass, and writes to its buffers then.
    """
    training = [(module, dict(module._buffers)) for module in modules if module.training]
    try:
        for module, buffers in training:
            module._buffers.update(
                {name: b if b is None else b.detach().clone() for name, b in buffers.items()}
            )
        yield
    finally:
        for module, buffers in training:
            module._buffers.update(buffers)


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if module.training != training:  # setting an attribute of a module is slow
            # The flag, not model.train(): a user's override of that may do more than set it.
            module.training = training
