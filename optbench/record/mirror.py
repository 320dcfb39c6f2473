"""Mirrors of the run folder, each in a process of its own: training never waits for one.

A mirror reads the folder's series as they grow and gives each step once to a `Sink`: W&B,
TensorBoard, trackio, or a module of anybody's. Killed or restarted, it goes on after the last step
given; run by hand later, it gives what never arrived. One mirror of a kind works on a folder at a
time.

A new one is one file: a function `open_sink(folder, config, state) -> Sink`, and a `main` that
calls `main_of`. `mirrors=[my_package.my_mirror]` starts it with every run.
"""

import json
import os
import re
import select
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from filelock import FileLock, Timeout

from optbench.boundary import UnreadableError, read_yaml
from optbench.boundary.command_line import Command, Key
from optbench.errors import MachineError, UserError, nearest
from optbench.processes import environment_alone
from optbench.record.folder import (
    CONFIG,
    METRICS,
    MIRRORS,
    SUMMARY,
    TIMINGS,
    mirror_log,
    mirror_state,
    read_json,
    write_whole,
)
from optbench.record.last_lines import Tail

SERIES = (METRICS, TIMINGS)
POLL_SECONDS = 0.5
LOCK_SECONDS = 60.0  # how long a mirror whose training has ended waits for the one before it
Row = dict[str, Any]


@dataclass
class State:
    """What one mirror of a run folder leaves to the next.

    A step is the only mark that lasts: a resumed run writes `timings.jsonl` again with other bytes.

    Attributes:
        id: The sink's name of the run.
        step: Last step given.
        offline: Folders that are left to be sent by hand, oldest first, relative to the run folder.
        url: Address of the run, None where it has none.
        why: Why the last part is offline.
        damaged: Lines that could not be given.
        told: Whether the run's end has been told.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    step: int = -1
    offline: list[str] = field(default_factory=list)
    url: str | None = None
    why: str = ""
    damaged: int = 0
    told: bool = False

    @classmethod
    def read(cls, file: Path) -> "State":
        """Return the state kept in a file; a new one if there is none that can be read."""
        try:
            state = cls(**(read_json(file) or {}))
        except (TypeError, RecursionError):  # keys that no mirror wrote, or nested without end
            return cls()
        return state if state._is_sound() else cls()

    def _is_sound(self) -> bool:
        return (
            isinstance(self.id, str)
            and bool(re.fullmatch(r"\w{1,64}", self.id))
            and isinstance(self.offline, list)
            and all(type(number) is int for number in (self.step, self.damaged))
            and type(self.told) is bool
            and all(isinstance(text, str) for text in (self.why, self.url or "", *self.offline))
        )

    def write(self, file: Path) -> None:
        """Write the state whole.

        Without room for it, sending goes on: a step may arrive twice, none is lost.
        """
        try:
            write_whole(file, json.dumps(asdict(self)))
        except OSError as why:
            print(f"cannot write {file.name} ({why})", flush=True)


class Sink(Protocol):
    """Where a mirror sends a run."""

    def log(self, step: int, row: Row, is_last: bool) -> None:
        """Take one step's values: numbers, and lists of numbers.

        Args:
            step: Updates done.
            row: Values by the metrics' names.
            is_last: Whether no step follows, so that pictures and tables can go with it.

        Raises:
            TypeError, ValueError, ArithmeticError, RecursionError: Where it cannot; the line is
                counted as damaged.
        """

    def end(self, summary: Mapping[str, Any], is_news: bool) -> None:
        """Finish.

        Args:
            summary: The folder's summary.
            is_news: Whether the run has ended, and no mirror before has told so.
        """

    def where(self) -> str:
        """Return a line on where the run is now, and what is left to do."""


T = TypeVar("T")

OpenSink = Callable[[Path, Mapping[str, Any], State], Sink]


class Rows:
    """The lines of several growing series as one row a step, each step once and in order.

    The newest row is held back, since a line of it may still come.
    """

    def __init__(self, files: Sequence[Path], last: int) -> None:
        self._tails = [Tail(file, last) for file in files]
        self._waiting: dict[int, Row] = {}

    @property
    def damaged(self) -> int:
        """Lines that were no records."""
        return sum(tail.damaged for tail in self._tails)

    def read(self) -> list[tuple[int, Row]]:
        """Return the rows that are whole by now."""
        first, *others = self._tails
        # A run writes a step's lines one after the other in the order of the tails: what the first
        # has gone beyond, the others hold by the time that they are read.
        self._take(first)
        for tail in others:
            self._take(tail)
        return self._rows(sorted(step for step in self._waiting if step < first.last))

    def rest(self) -> list[tuple[int, Row]]:
        """Return the rows that were held back, once no more comes."""
        return self._rows(sorted(self._waiting))

    def _take(self, tail: Tail) -> None:
        for line in tail.read():
            step = line.pop("step")
            self._waiting.setdefault(step, {}).update(line)

    def _rows(self, steps: Sequence[int]) -> list[tuple[int, Row]]:
        return [(step, self._waiting.pop(step)) for step in steps]


class Mirrors:
    """The training process's side: starts the mirrors and, at the end, says how they went.

    Args:
        folder: The run folder.
        names: Modules to start: of this package where they have no dot.
        wandb_mode: `wandb.mode`; W&B is started too unless it is disabled.
    """

    def __init__(self, folder: Path, names: Sequence[str], wandb_mode: str) -> None:
        off = wandb_mode == "disabled" or (
            wandb_mode == "auto" and os.environ.get("WANDB_MODE") == "disabled"
        )
        self._off = off
        self._all = [_Process(folder, name) for name in (*(() if off else ("wandb",)), *names)]

    def close(self, patience_seconds: float) -> str:
        """Let the mirrors finish, for so long at most; return a line on each."""
        for process in self._all:
            process.end_of_training()
        deadline = time.monotonic() + patience_seconds
        said = [process.said(deadline) for process in self._all]
        return "\n".join([*(["W&B: disabled"] if self._off else []), *said])


def pictures(folder: Path, load: Callable[[Path], T]) -> dict[str, T]:
    """Return what `load` makes of each picture in a run folder, by its name; tell of the rest."""
    found = {}
    for file in sorted(file for file in folder.glob("*.png") if file.is_file()):
        try:
            found[file.stem] = load(file)
        except (OSError, ValueError, SyntaxError) as why:  # Pillow's, for a damaged picture
            print(f"{file.name} was not sent: {why}", flush=True)
    return found


def check_mirrors(names: Sequence[str]) -> None:
    """Raise a UserError unless each is a mirror that can run here."""
    for name in names:
        if "." not in name and name not in MIRRORS:
            known = ", ".join(other for other in MIRRORS if other != "wandb")
            near = nearest(name, MIRRORS)
            raise UserError(
                f"mirrors: there is no {name}.{near} There are {known}, and modules of yours, such "
                "as my_package.my_mirror"
            )
        if "." not in name and name != "wandb" and find_spec(name) is None:
            raise UserError(
                f"mirrors: {MIRRORS[name]} is not installed: pip install 'optbench[{name}]'"
            )
        if "." in name and not _is_there(name):
            raise UserError(f"mirrors: there is no module {name} to import")


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False


class _Process:
    """One mirror's process."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble = ""
        try:
            self._process = _start(folder, name)
        except OSError as why:  # no room, no processes left: the mirror's trouble, not training's
            self._trouble = f" ({why})"

    def end_of_training(self) -> None:
        """Tell it that nothing more comes."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def said(self, deadline: float) -> str:
        """Wait for its end; return what it had to say."""
        title = MIRRORS.get(self._name, self._name)
        log = self._folder / mirror_log(self._name)
        folder = shlex.quote(str(self._folder.absolute()))
        again = f"try again: python -m {_module(self._name)} {folder}"
        if self._process is None:
            return f"{title}: nothing was sent{self._trouble}; {again}"
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return f"{title}: still sending, on its own; see {log}"
        if code:
            return f"{title}: nothing was sent, see {log}; {again}"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line]
        lines = [line for line in lines if line.startswith(f"{title}: ")]
        if not lines:
            return f"{title}: nothing was sent, see {log}; {again}"
        return lines[-1].replace(str(self._folder.absolute()), str(self._folder))


def _module(name: str) -> str:
    return name if "." in name else f"optbench.record.{name}"


def _start(folder: Path, name: str) -> "subprocess.Popen[bytes]":
    environment = environment_alone() | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # a FIFO in its place is an error, not a wait
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
    log = os.open(folder / mirror_log(name), flags, 0o644)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", _module(name), str(folder.absolute()), "follow=true"],
            # its end tells the mirror that this process has ended, however it did
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the training
            env=environment,
        )
    finally:
        os.close(log)


class _Keeper:
    """Keeps the state in its file, unless the folder was cleared for a new run."""

    def __init__(self, file: Path, state: State) -> None:
        self._file, self._state, self._kept = file, state, False
        self.keep()

    def keep(self) -> None:
        """Write the state.

        Raises:
            MachineError: If it is gone: with the run that it was of.
        """
        if self._kept and not self._file.exists():
            raise MachineError(
                f"{self._file.parent} has been cleared: the mirror of what was there ends"
            )
        self._state.write(self._file)
        self._kept = self._file.exists()


def mirror(folder: Path, name: str, open_sink: OpenSink, follow: bool) -> str:
    """Give the run in a folder to a sink; follow it while standard input stays open if `follow`.

    Returns:
        A line on where it is.
    """
    config = _config(folder)
    state = State.read(folder / mirror_state(name))
    keeper = _Keeper(folder / mirror_state(name), state)
    sink = open_sink(folder, config, state)
    keeper.keep()
    rows, refused = Rows([folder / file for file in SERIES], state.step), 0

    def give(step: int, row: Row, is_last: bool = False) -> None:
        nonlocal refused
        try:
            sink.log(step, row, is_last)
        except (TypeError, ValueError, ArithmeticError, RecursionError) as why:
            print(f"a line of step {step} was not sent: {why}", flush=True)
            refused += 1
            if is_last and row:
                sink.log(step, {}, True)  # what goes with it
        state.step = step

    ended = not follow
    while True:
        before = asdict(state)
        for step, row in rows.read():
            give(step, row)
        state.damaged = refused + rows.damaged
        if asdict(state) != before:
            keeper.keep()
        if ended:
            break
        ended = standard_input_ended(POLL_SECONDS)
    rest = rows.rest() or ([(0, {})] if state.step < 0 else [])
    for step, row in rest:
        give(step, row, step == rest[-1][0])
    state.damaged = refused + rows.damaged
    keeper.keep()
    summary = read_json(folder / SUMMARY) or {}
    is_over = summary.get("status") in ("done", "diverged")
    sink.end(summary, is_over and not state.told)
    state.told = state.told or is_over
    keeper.keep()
    lost = f"; {state.damaged} damaged lines were not sent" if state.damaged else ""
    return sink.where() + lost


def standard_input_ended(patience_seconds: float) -> bool:
    """Whether standard input has ended, waiting for so long at most."""
    ready, _, _ = select.select([sys.stdin], [], [], patience_seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1024)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = read_yaml(folder / CONFIG)
        for key in ("mode", "project", "entity", "group", "tags"):
            config["wandb"][key]
    except (UnreadableError, TypeError, LookupError) as why:
        line = " ".join(str(why).split())
        raise MachineError(
            f"cannot read what to send from {folder / CONFIG} ({line}): give the run's command "
            "again to write it"
        ) from why
    return config


def short_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as a person filters by them: `optimizer: adam`, `lr: 0.001`, `seed: 3`.

    What was chosen of each group by its name, the learning rate, and every key of the core that is
    one value. The whole configuration is under `settings`.
    """
    short: dict[str, Any] = dict(config.get("choices") or {})
    optimizer = config.get("optimizer")
    if isinstance(optimizer, Mapping) and isinstance(optimizer.get("lr"), int | float):
        short["lr"] = optimizer["lr"]
    plain = {k: v for k, v in config.items() if isinstance(v, bool | int | float | str)}
    return plain | short


def hold(folder: Path, name: str, follow: bool) -> FileLock:
    """Take the folder for this mirror alone.

    The mirror of a run just killed may still be finishing: one that follows waits for it while its
    own training goes on, and a little longer. One started by hand ends at once.
    """
    lock = FileLock(folder / f"{name}.lock")
    last_moment = float("inf") if follow else 0.0
    while True:
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout as why:
            if time.monotonic() > last_moment:
                raise MachineError(
                    f"another mirror is at work on {folder}: wait until it has ended"
                ) from why
        if last_moment < float("inf"):
            time.sleep(POLL_SECONDS)
        elif standard_input_ended(POLL_SECONDS):
            last_moment = time.monotonic() + LOCK_SECONDS


@dataclass(frozen=True)
class Settings:
    """Send a run folder: what of it has not been sent before."""

    folder: Annotated[Path, Key("the run folder", placeholder="RUN_FOLDER", positional=True)]
    follow: Annotated[bool, Key("go on until standard input ends, as a run has its mirror do")] = (
        False
    )


def main_of(command: Command[Settings], name: str, open_sink: OpenSink) -> None:
    """Be a mirror's command: mirror the run folder that the command line names."""

    def send(settings: Settings) -> int:
        folder = settings.folder
        if not (folder / CONFIG).exists():
            raise UserError(f"{folder} is no run folder: it has no {CONFIG}")
        with hold(folder, name, settings.follow):
            print(mirror(folder, name, open_sink, settings.follow), flush=True)
        return 0

    # a signal ends W&B's own process, too: it is not held up by an exception here
    command.run(send, heed_signals=False)
