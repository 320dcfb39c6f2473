"""The contract of an engine: it takes commands, makes their runs, and says how each ended."""

import hashlib
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

RUN_SECONDS = 86400.0
"""A day: the time limit of a run where a command is given none."""

MOST_LOSSES = 3
"""How often a run may die with what it ran on; then it is taken to be the cause."""

Say = Callable[[str], None]
"""Takes a line for the person who waits."""


def once(say: Say) -> Say:
    """Return what says each line only the first time."""
    return cache(say)


def digest(command: Sequence[str]) -> str:
    """Return a name for a command, 64 hexadecimal digits, the same in every process."""
    return hashlib.sha256("\0".join(command).encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Order:
    """What all runs of a command share, whatever makes them.

    Attributes:
        results: Results folder of the command; None where the commands say it.
        state: Folder of what engines remember; commands that share it share the runs.
        where: More overrides for all runs, which move no result: how to run.
        jobs: Runs at a time; None: as many as the engine has room for.
        threads: Threads of each run, where the command needs a number; None: the engine's setting.
        seconds: Time limit of a run; one that takes longer is stopped, and has failed.
        device: Device that the runs are told to use.
    """

    results: Path | None
    state: Path | None = None
    where: Sequence[str] = ()
    jobs: int | None = None
    threads: int | None = None
    seconds: float = RUN_SECONDS
    device: str = "cpu"

    @property
    def claims(self) -> Path | None:
        """Folder of the claims: locks that are held by whoever is at work on a run."""
        return None if self.state is None else self.state / "claims"

    def gpu_share(self, said: float | None) -> float:
        """Share of a GPU that a run needs: as said; else a quarter on a GPU, and none on a CPU."""
        return said if said is not None else 0.25 if self.device.startswith("cuda") else 0.0


@dataclass(frozen=True)
class Finished:
    """How a run of the main job ended.

    Attributes:
        overrides: Overrides that it was given.
        folder: Its run folder; None if it failed.
        why: Last line that it said, if it failed.
        code: Exit code, if it failed.
    """

    overrides: tuple[str, ...]
    folder: Path | None
    why: str = ""
    code: int = 1


class Launcher(Protocol):
    """An engine with its settings: where runs compute and go, how many at a time, for how long.

    The YAML of an engine, conf/launcher/NAME.yaml, holds `_target_` and settings. The target is
    called with an `Order` and the settings, and returns a launcher.
    """

    def launch(
        self, commands: Iterable[Sequence[str]], say: Say
    ) -> Generator[Finished, None, None]:
        """Run the main job once for each list of overrides, and yield each run as it ends.

        A generator that is closed early stops the runs at work: each writes its checkpoint, and
        goes on from it when it is given again. A run that somebody else is at work on is waited
        for, not made twice.
        """
