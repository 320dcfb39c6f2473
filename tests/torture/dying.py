"""Moments to die at, chosen by counting what a run does: called in the process that is to die."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optbench.record.series import Series
from optbench.run.loop import Runner


def die_after_saves(number: int) -> None:
    """Die by SIGKILL once so many checkpoints have been written."""
    _after(Runner, "save", number, _kill_self)


def die_at_write(number: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Die, or be asked to, at the n-th of all writes: before it is done if n is even, after it if n is odd.

    A write is a line of a series, an fsync, a rename, or a removal.
    """
    left = [number]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and number % 2 == 0:
                os.kill(os.getpid(), by)
            result = call(*args, **options)
            if left[0] == 0 and number % 2:
                os.kill(os.getpid(), by)
            return result

        return instead

    _replace(os, "fsync", counted)
    for name in ("replace", "unlink", "rename"):
        _replace(Path, name, counted)
    _replace(Series, "write", counted)


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after(owner: type, name: str, number: int, act: Callable[[], None]) -> None:
    left = [number]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **options: Any) -> Any:
            result = call(*args, **options)
            left[0] -= 1
            if left[0] == 0:
                act()
            return result

        return instead

    _replace(owner, name, counted)


def _replace(
    owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))
