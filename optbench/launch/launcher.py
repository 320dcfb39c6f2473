"""The contract of an engine: it takes commands, makes their runs, and says how each ended."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

RUN_SECONDS = 86400.0
"""A day: the time limit of a run where a command is given none."""

Say = Callable[[str], None]
"""Takes a line for the person who waits."""


@dataclass(frozen=True)
class Finished:
    """How a run of the main job ended.

    Attributes:
        overrides: Overrides that it was given.
        folder: Its run folder; None if it failed.
        why: Last line that it said, if it failed.
    """

    overrides: tuple[str, ...]
    folder: Path | None
    why: str = ""


class Launcher(Protocol):
    """An engine with its settings: where runs compute and go, how many at a time, for how long."""

    def launch(
        self, commands: Iterable[Sequence[str]], say: Say
    ) -> Generator[Finished, None, None]:
        """Run the main job once for each list of overrides, and yield each run as it ends.

        A generator that is closed early stops the runs at work: each writes its checkpoint, and
        goes on from it when it is given again. A run that somebody else is at work on is waited
        for, not made twice.
        """
