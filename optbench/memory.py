"""Keep freed memory in the process, so that each step does not ask the system for the same pages anew."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER = 2**31 - 1  # bytes; the largest that mallopt takes


def keep_freed_memory() -> bool:
    """Tell the C library to hold on to what is freed, and return whether it does.

    A training step on a CPU allocates and frees the same few large tensors; glibc hands such back to the system
    at once, which then clears every page again (about a quarter of a step of a small CNN). The peak stays as it
    was. Where the C library is another, nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(what, _NEVER) == 1 for what in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
