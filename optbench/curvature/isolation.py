"""Contexts in which a measurement leaves no trace: random numbers, modes, weights, autocast, kernels."""

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
"""The mode a model is measured in."""


@contextlib.contextmanager
def kept_rng(device: torch.device) -> Iterator[None]:
    """Restore Python's, NumPy's and torch's global generators, also after an exception."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  the state to keep
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def seed_globals(device: torch.device, seed: int) -> None:
    """Seed the generators that `kept_rng` restores, and no others."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def differentiable(device: torch.device) -> Iterator[None]:
    """Gradients on; autocast and compiled code off, in the model as well; attention that has a double backward."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        without_autocast(device),
        eager(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield


class _Off(threading.local):
    """How often autocast is held off in this thread."""

    depth = 0


_off = _Off()
_ENTER = torch.autocast.__enter__


def _enter_unless_held_off(self: Any) -> Any:
    """`autocast.__enter__`; where it is held off, of one that is off, whatever it was made as."""
    wanted = self._enabled
    self._enabled = wanted and not _off.depth
    try:
        return _ENTER(self)  # type: ignore[no-untyped-call]
    finally:
        self._enabled = wanted


@contextlib.contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Autocast off, also where the model itself or a wrapper around its forward switches it on.

    torch's `autocast.__enter__` is replaced at the first use, once, by one that asks whether it is
    held off in its own thread: to put it back would race with other threads that measure.
    """
    if torch.autocast.__enter__ is _ENTER:
        torch.autocast.__enter__ = _enter_unless_held_off  # type: ignore[method-assign]
    with torch.autocast(device.type, enabled=False):
        _off.depth += 1
        try:
            yield
        finally:
            _off.depth -= 1


def without_parametrization_cache() -> contextlib.AbstractContextManager[Any]:
    """Parametrized weights computed anew, from the weights put in, also inside of `parametrize.cached()`."""
    if not getattr(parametrize, "_cache_enabled", 0):
        return contextlib.nullcontext()
    return patch.multiple(parametrize, _cache_enabled=0, _cache={})


def eager() -> contextlib.AbstractContextManager[Any]:
    """Compiled models, parts of models and losses run as they were written: compiled graphs have one derivative.

    Nothing can have been compiled before the compiler was imported, which takes seconds.
    """
    if "torch._dynamo.eval_frame" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _Kept:
    """A tensor of a model, and the numbers in it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.storage, self.copy = tensor, tensor.data, tensor.detach().clone()

    def restore(self) -> bool:
        """Put storage and numbers back; returns whether anything had been written."""
        moved = (
            self.tensor.data_ptr() != self.storage.data_ptr()
            or self.tensor.shape != self.storage.shape
        )
        if moved:
            self.tensor.data = self.storage
        changed = not _identical(self.tensor, self.copy)
        if changed:
            with torch.no_grad():
                self.tensor.copy_(self.copy)
        return moved or changed


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has numbers in one place, which sparse and lazy ones have not."""
    return not nn.parameter.is_lazy(tensor) and tensor.layout == torch.strided


def _identical(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):
        return True
    nan = a.is_floating_point() or a.is_complex()
    return nan and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@contextlib.contextmanager
def untouched(model: nn.Module, *others: object) -> Iterator[list[str]]:
    """Bring weights, buffers and attributes of every module back, bit for bit, whatever a forward pass writes.

    Such as an embedding with `max_norm`, a clamp in place, a counter of calls. Yields a list that
    holds, at the end, the names of the parameters that had been written to. Costs one copy of
    weights and buffers, and reads them once. For the others see `kept_attributes`.
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
    """Bring what every module holds beside weights and buffers back: numbers, tensors, lists, dicts and generators.

    And what other objects hold, but for numbers in their tensors: these may be a whole data set.
    """
    owners = [(owner, _attributes(owner)) for owner in (*model.modules(), *others)]
    own = [
        (vars(module), name)
        for module in model.modules()
        for name in vars(module)
        if name not in USUAL
    ]
    values = [table[name] for table, name in own]
    values += [x for other in others for x in vars(other).values() if not isinstance(x, Tensor)]
    for table, name in own:
        table[name] = stand_in(table[name])
    try:
        with kept_values(values):
            yield
    finally:
        for owner, attributes in owners:
            _put_back(owner, attributes)


def stand_in(value: Any) -> Any:
    """A copy of a tensor that takes what is written to it: writing numbers back would spoil a graph that needs them."""
    return (
        value.clone()
        if isinstance(value, Tensor) and _is_plain(value) and not value.requires_grad
        else value
    )


@contextlib.contextmanager
def kept_values(values: Iterable[object]) -> Iterator[None]:
    """Bring what is in them back: numbers in tensors, entries of lists and dicts, states of generators."""
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
"""Attributes that every module has."""
TABLES = ("_parameters", "_buffers", "_modules")
"""Dictionaries of a module that hold its tensors and parts, and are themselves kept."""


def _attributes(owner: object) -> dict[str, Any]:
    found = dict(vars(owner))
    return found | {name: dict(found[name]) for name in TABLES if type(found.get(name)) is dict}


def _put_back(owner: object, attributes: dict[str, Any]) -> None:
    now = vars(owner)
    # compiled modules of torch.jit have others
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
    """Put every module in the mode, and each back in its own afterwards; None leaves them.

    Where a class has a `train` of its own, which may hold a batch norm in eval mode, the modes are
    those that it sets.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        if mode is not None:
            _set_modes([(module, mode == "train") for module, _ in before])
            if any(type(module).train is not nn.Module.train for module, _ in before):
                with kept_attributes(model):  # it may do more than set modes
                    model.train(mode == "train")
                    wanted = [(module, module.training) for module, _ in before]
                _set_modes(wanted)
        yield
    finally:
        _set_modes(before)


@contextlib.contextmanager
def kept_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Give copies of their buffers to batch norms in train mode: what a checkpoint runs again writes to its own."""
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
        if module.training != training:  # to set an attribute of a module is slow
            # The flag, not model.train(): a user's override of that may do more than set it.
            module.training = training
