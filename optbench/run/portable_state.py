"""State in a form that `torch.load(weights_only=True)`, which runs no code, reads back.

Tensors, numbers, text and containers of these are held as they are. Some others are held as a mark:
a mapping `{MARK: kind, ...}` from which they are made again, NumPy's scalars and arrays with the
same dtype.
"""

import copy
import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

MARK = "optbench.run.portable_state"
PLAIN = (
    *(type(None), bool, int, float, complex, str),
    *(torch.Size, torch.dtype, torch.device, torch.layout),
)
DICTS = (dict, OrderedDict, Counter)
KINDS_OF_ARRAY = "biufcSU"  # NumPy's letters for truth values, numbers and text


class NotPortableError(TypeError):
    """Something in the state can be held by no checkpoint; says where and what."""


def to_portable(state: Any, where: str = "") -> Any:
    """Return the state with marks for what weights_only refuses; other objects stay.

    Args:
        state: Tensors, numbers, text, NumPy's scalars and arrays, and containers of these.
        where: Its name in the message.

    Raises:
        NotPortableError: If there is anything else in it.
    """
    if isinstance(state, Tensor):
        return _alone(state)
    if type(state) in PLAIN:
        return state
    if isinstance(state, (np.generic, np.ndarray)):
        return _marked_array(state, where)
    if type(state) in (bytes, bytearray):
        return _marked_bytes(state)
    return _portable_container(state, where)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor, copied where it is a small part of a storage: torch.save writes all of that."""
    if tensor.is_sparse or tensor.layout != torch.strided:
        return tensor
    whole = tensor.untyped_storage().nbytes()
    return tensor.clone() if whole > tensor.numel() * tensor.element_size() else tensor


def _portable_container(state: Any, where: str) -> Any:
    if type(state) in DICTS:
        return _same_or(
            state, {_key(key, where): to_portable(x, _part(where, key)) for key, x in state.items()}
        )
    if type(state) in (list, tuple):
        return _same_or(
            state, type(state)(to_portable(x, _part(where, i)) for i, x in enumerate(state))
        )
    if type(state) in (set, frozenset):
        items = sorted((to_portable(x, where) for x in state), key=repr)
        return {MARK: type(state).__name__, "items": items}
    if type(state) is deque:
        items = [to_portable(x, _part(where, i)) for i, x in enumerate(state)]
        return {MARK: "deque", "items": items, "maxlen": state.maxlen}
    raise NotPortableError(f"{where} is a {type(state).__module__}.{type(state).__qualname__}")


def from_portable(state: Any) -> Any:
    """Return what `to_portable` was given.

    Raises:
        ValueError: If a mark in it is of no kind that `to_portable` gives.
    """
    if type(state) in DICTS:
        if MARK in state:
            return _unmarked(state)
        return _same_or(state, {key: from_portable(x) for key, x in state.items()})
    if type(state) in (list, tuple):
        return _same_or(state, type(state)(from_portable(x) for x in state))
    return state


def digest(state: Any) -> str:
    """Return the SHA-256 of every type, key, value, shape and bit of a portable state.

    Raises:
        NotPortableError: If there is anything in it that a checkpoint cannot hold.
    """
    found = hashlib.sha256()
    for piece in _pieces(to_portable(state)):
        found.update(piece)
    return found.hexdigest()


def _same_or(state: Any, changed: Any) -> Any:
    """Return the container itself where its content is unchanged, so that sharing survives."""
    if type(state) in DICTS:
        if all(key in state and state[key] is x for key, x in changed.items()):
            return state
        renewed = copy.copy(state)  # with what torch hangs on a module's state_dict
        renewed.clear()
        for key, x in changed.items():
            renewed[key] = x
        return renewed
    return state if all(a is b for a, b in zip(state, changed, strict=True)) else changed


def _key(key: Any, where: str) -> Any:
    if type(key) in PLAIN or (type(key) is tuple and all(type(part) in PLAIN for part in key)):
        return key
    raise NotPortableError(
        f"a key of {where or 'it'}, {key!r}, is a {type(key).__module__}.{type(key).__qualname__}"
    )


def _part(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _marked_array(array: Any, where: str) -> dict[str, Any]:
    if array.dtype.kind not in KINDS_OF_ARRAY or type(array).__module__ != "numpy":
        raise NotPortableError(
            f"{where} is a {type(array).__module__}.{type(array).__qualname__} of {array.dtype}"
        )
    kind = "array" if isinstance(array, np.ndarray) else "scalar"
    content = _marked_bytes(np.ascontiguousarray(array).tobytes())
    return content | {MARK: kind, "dtype": array.dtype.str, "shape": tuple(array.shape)}


def _marked_bytes(content: bytes | bytearray) -> dict[str, Any]:
    bits = np.frombuffer(bytearray(content), np.uint8) if content else np.zeros(0, np.uint8)
    return {MARK: type(content).__name__, "bits": torch.from_numpy(bits)}


def _unmarked(mark: dict[str, Any]) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "array": lambda: _array(mark).copy(),
        "scalar": lambda: _array(mark)[()],
        "bytes": lambda: mark["bits"].numpy().tobytes(),
        "bytearray": lambda: bytearray(mark["bits"].numpy().tobytes()),
        "set": lambda: set(from_portable(mark["items"])),
        "frozenset": lambda: frozenset(from_portable(mark["items"])),
        "deque": lambda: deque(from_portable(mark["items"]), mark["maxlen"]),
    }
    if mark[MARK] not in makers:
        raise ValueError(f"there is no {mark[MARK]!r} that a checkpoint can hold")
    return makers[mark[MARK]]()


def _array(mark: dict[str, Any]) -> "np.ndarray[Any, Any]":
    dtype = np.dtype(mark["dtype"])
    if dtype.kind not in KINDS_OF_ARRAY:
        raise ValueError(f"there is no array of {dtype} that a checkpoint can hold")
    return np.ndarray(mark["shape"], dtype, mark["bits"].numpy().tobytes())


def _pieces(state: Any) -> Iterator[bytes]:
    if isinstance(state, Tensor):
        yield f"tensor {state.dtype} {tuple(state.shape)}".encode()
        yield _bits(state)
    elif isinstance(state, dict):
        yield f"{type(state).__name__} {len(state)}".encode()
        for key in sorted(state, key=repr):
            yield repr(key).encode(errors="surrogatepass")
            yield from _pieces(state[key])
    elif type(state) in (list, tuple):
        yield f"{type(state).__name__} {len(state)}".encode()
        for x in state:
            yield from _pieces(x)
    else:
        yield f"{type(state).__name__} {state!r}".encode(errors="surrogatepass")


def _bits(tensor: Tensor) -> Any:
    whole = tensor.detach().cpu()
    if whole.layout is not torch.strided:
        whole = whole.to_dense()
    return whole.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
