"""One seed, many independent streams.

Every consumer of randomness has a named stream of its own, so that changing one consumer moves no
other, and two optimizers at one seed share initial weights and data order.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive(seed: int, stream: str) -> int:
    """Return the 63-bit seed of a named stream: the first bytes of SHA-256(`seed/stream`)."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, stream: str) -> torch.Generator:
    """Return a CPU generator at the start of a named stream, the same for every device."""
    return torch.Generator().manual_seed(derive(seed, stream))


def start_global_streams(seed: int, stream: str) -> None:
    """Put torch's, Python's and NumPy's global generators at the start of a named stream."""
    torch.manual_seed(derive(seed, stream))
    random.seed(derive(seed, f"{stream}/python"))
    np.random.seed(derive(seed, f"{stream}/numpy") % 2**32)  # noqa: NPY002  the one that users' code draws from


@contextmanager
def global_stream(seed: int, stream: str) -> Iterator[None]:
    """Put the global generators on a named stream, and back where they were on leaving."""
    before = global_state()
    try:
        start_global_streams(seed, stream)
        yield
    finally:
        set_global_state(before)


def global_state() -> dict[str, Any]:
    """Return where the global generators stand."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()  # noqa: NPY002
    return {
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "random_python": [version, torch.tensor(words), gauss],
        "random_numpy": [legacy[0], torch.from_numpy(legacy[1].astype(np.int64)), *legacy[2:]],
    }


def set_global_state(state: Mapping[str, Any]) -> None:
    """Restore the global generators; a checkpoint of an earlier version holds torch's alone."""
    torch.set_rng_state(state["random"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random_cuda"])
    if "random_python" in state:
        version, words, gauss = state["random_python"]
        random.setstate((version, tuple(words.tolist()), gauss))
        kind, keys, *rest = state["random_numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
