"""How far work is: one live line on a terminal, plain lines elsewhere.

     34%  680/2,000 steps  0:21 left  loss 0.1706  edge 0.58  λ₁ 11.6  test error 0.088

Percent, count and time left come first. What no longer fits the width is dropped from the right, a
number at a time, so that a line never wraps. Without a terminal (a file, a pipe, a notebook) a line
comes at the start, at each further tenth, and after ever longer pauses: no control codes, and some
hundred lines in a week.

Whatever takes long says so by `work`, wherever it is called: in a display that is shown already it
is what is done now; alone it gets a display of its own, once it has taken `DELAY` seconds.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.live import Live
    from rich.text import Text

TENTHS = 10  # plain lines of work that has no pauses
PAUSE = 30.0  # seconds after which a plain line comes, however little was done
PATIENCE = 0.05  # the same as a share of the time since the start: pauses grow with it
SPACING = 1.0  # least seconds between two tenths that are told
DELAY = 2.0  # seconds that work by itself may take before a word of it
PATIENT = 5  # times as long where there is no terminal, since the word stays there
NOTICED = 1.0  # seconds from which on what is done now is worth its place on the line
WIDE, WIDER = 100, 120  # columns from which on there is room for a bar, and for a longer one

Left = Callable[[], float | None]
"""Seconds that are left; None while nobody knows."""


@dataclass(frozen=True)
class News:
    """How far a display is, for another process to show.

    Attributes:
        done: Parts done.
        total: Parts in all.
        left: Seconds left; None while unknown.
        doing: What is done now.
        numbers: Numbers, each with its name, the most important first.
    """

    done: int
    total: int
    left: float | None
    doing: str
    numbers: tuple[str, ...]


@dataclass
class Work:
    """Part of a whole that takes long by itself.

    Attributes:
        what: What it is.
        total: Its parts; 0 where nobody knows how many.
        done: Those that are done.
    """

    what: str
    total: int
    unit: str = ""
    done: int = 0
    _changed: Callable[[], None] | None = None

    def advance(self, count: int = 1) -> None:
        """Count so many parts more."""
        self.done += count
        if self._changed is not None:
            self._changed()

    def __str__(self) -> str:
        far = f"{self.done / self.total:.0%}" if self.total else f"{self.done:,} {self.unit}"
        return f"{self.what} {far}".strip()


_displays: list[Progress] = []  # those that are shown, the last one within the others
_sink: list[Callable[[News], None]] = []  # who is told in place of a terminal
_hidden = 0  # how many contexts want no display of `work`


class Progress:
    """Shows how far work is, as a context.

    Args:
        total: Parts in all; 0 where nobody knows how many.
        unit: What a part is, in the plural, such as "runs".
        doing: What is done at first.
        console: Where to; None for standard error.
        delay: Seconds that the work may take before it is shown.
        heading: Words before everything else, such as "run 3 of 9".
    """

    def __init__(
        self,
        total: int,
        unit: str = "",
        doing: str = "",
        console: Console | None = None,
        delay: float = 0.0,
        heading: str = "",
    ) -> None:
        self.total, self.done, self.heading = total, 0, heading
        self._unit, self._console, self._delay = unit, console, delay
        self._numbers: tuple[str, ...] = ()
        self._doing, self._since = doing, time.monotonic()
        self._works: list[Work] = []
        self._left: Left = self._own_estimate
        # seconds of what comes after the whole of this, from the seconds of this
        self.beyond: Callable[[float], float] = lambda this_one: 0.0
        self._began, self._found = time.monotonic(), 0
        self._estimate: tuple[float | None, float] = (None, 0.0)  # seconds left, and when
        self._live: Live | None = None
        self._shown = False
        self._next_tenth, self._last_line = 0, -math.inf
        self._said = ""

    def __enter__(self) -> Progress:
        self._began = self._since = time.monotonic()
        _displays.append(self)
        if not self._delay:
            self._show()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        tb: TracebackType | None = None,
    ) -> None:
        _displays.remove(self)
        if self._live:
            self._live.stop()
            self._live = None

    @property
    def console(self) -> Console:
        """Where it is shown."""
        if self._console is None:
            from rich.console import Console  # so that who shows nothing does not wait for it

            self._console = Console(stderr=True)
        return self._console

    def say(self, line: str) -> None:
        """Print a line."""
        soft = not self.console.is_terminal  # a terminal breaks lines between words
        self.console.print(line, highlight=False, markup=False, soft_wrap=soft)

    def begin(self, doing: str, line: bool = True) -> None:
        """Say what is done now.

        Args:
            doing: What; empty for nothing in particular.
            line: Whether it is worth a plain line.
        """
        if doing != self._doing:
            self._doing, self._since = doing, time.monotonic()
        if line:
            self.tick(line=True)

    def quiet_for(self, seconds: float) -> bool:
        """Whether no plain line came for so long."""
        return time.monotonic() - self._last_line >= seconds

    def update(
        self, done: int, numbers: Sequence[str] | None = None, left: Left | None = None
    ) -> None:
        """Say how far it is, with what numbers, and how to tell the seconds that are left."""
        self.done = done
        if numbers is not None:
            self._numbers = tuple(numbers)
        if left is not None:
            self._left = left
        self.tick()

    def advance(self, count: int = 1, found: bool = False) -> None:
        """Count so many parts more; those that were found done already tell nothing of the time."""
        self.done += count
        self._found += count * found
        if count:
            self.tick()

    @contextmanager
    def within(self, work: Work) -> Iterator[Work]:
        """Context of work that is part of this."""
        work._changed = self.tick
        self._works.append(work)
        if len(self._works) == 1 and not self._doing:
            self._since = time.monotonic()
        try:
            yield work
        finally:
            self._works.remove(work)

    def tick(self, line: bool = False) -> None:
        """Show what has changed, if it is time; a terminal is redrawn by a thread of its own."""
        now = time.monotonic()
        if _sink:
            if line or self.done >= self.total or now - self._last_line > 0.2:
                self._last_line = now
                _sink[-1](self.news())
            return
        if not self._shown:
            if now - self._began < self._delay * (1 if self.console.is_terminal else PATIENT):
                return
            self._show()
        if self._live:
            return
        quiet = max(PAUSE, PATIENCE * (now - self._began))
        is_tenth = self.total and self.done >= self._next_tenth
        is_tenth = is_tenth and (now - self._last_line >= SPACING or self.done >= self.total)
        if line or is_tenth or now - self._last_line > quiet:
            self._tell(now)

    def news(self) -> News:
        """Return how far it is."""
        return News(self.done, self.total, self.left(), self._now(), self._numbers)

    def left(self) -> float | None:
        """Seconds left, as they are now; None while nobody knows."""
        now = time.monotonic()
        seconds, when = self._estimate
        if seconds is None or now - when > 1.0:
            self._estimate = (self._left(), now)
        seconds, when = self._estimate
        return None if seconds is None else max(0.0, seconds - (now - when))

    def _own_estimate(self) -> float | None:
        made = self.done - self._found
        if made <= 0:
            return None
        return (time.monotonic() - self._began) / made * (self.total - self.done)

    def _show(self) -> None:
        self._shown = True
        if _sink:
            return
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            self._next_tenth = self.done
            return
        from rich.live import Live

        if any(display._live for display in _displays):
            return  # a terminal has room for one
        self._live = Live(
            _Line(self),
            console=self.console,
            refresh_per_second=4,
            transient=True,
            # what is written to a file or a pipe stays there
            redirect_stdout=sys.stdout.isatty(),
        )
        self._live.start(refresh=True)

    def _tell(self, now: float) -> None:
        self._next_tenth = self.done + max(1, (self.total - self.done) // TENTHS)
        if self.total > TENTHS:
            self._next_tenth = (self.done * TENTHS // self.total + 1) * self.total // TENTHS
        self._last_line = now
        said = self.line(None)
        if said != self._said:  # a step that is shown twice, at an end
            self._said = said
            self.say(said)

    def _now(self) -> str:
        """What is done now."""
        deep = str(self._works[-1]) if self._works else ""
        return ": ".join(filter(None, (self._doing, deep)))

    def line(self, width: int | None) -> str:
        """Return the line for so many columns; None for as many as it takes."""
        share = self.done / self.total if self.total else 0.0
        count = f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"
        percent = f"{math.floor(100 * share):3d}%" * bool(self.total)
        first = [self.heading, percent, f"{count} {self._unit}".strip()]
        first = [part for part in first if part]
        left = self.left() if self.done < self.total else None  # of no total, none is known
        if left is not None:
            beyond = self.beyond(time.monotonic() - self._began + left)
            first.append(f"{clock(left)} left" + f", {clock(left + beyond)} in all" * bool(beyond))
        doing, busy = self._now(), time.monotonic() - self._since
        if doing and (self._works or busy > NOTICED or not self._numbers or width is None):
            timed = self._live is not None and busy > NOTICED and self.done != self.total
            first.append(doing + f" ({clock(busy)})" * timed)
        if width is None:
            return "  ".join([*first, *self._numbers])
        bar = 0 if width < WIDE else 10 if width < WIDER else 20
        bar *= bool(self.total)
        line = _fitting([*first, *self._numbers], width - 1 - (bar + 2) * bool(bar))
        return f"{'━' * round(share * bar):╌<{bar}}  {line}" if bar else line


class _Line:
    """A display's line as rich draws it: as wide as the terminal is at that moment."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        yield Text(self._progress.line(console.width), no_wrap=True, overflow="ellipsis")


def _fitting(parts: Sequence[str], width: int) -> str:
    """The first parts that fit into the width; the very first ones are cut if they must be."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line or "  ".join(parts)[:width]


def clock(seconds: float) -> str:
    """A time as 0:07, 1:02:03 or 3 d 4 h."""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    hours, minutes = divmod(rest // 60, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours}:{minutes:02d}:{rest % 60:02d}"
    return f"{minutes}:{rest % 60:02d}"


@contextmanager
def work(what: str, total: int = 0, unit: str = "") -> Iterator[Work]:
    """Context of work that may take long, for whoever looks.

    Within a display it is what is done now. Alone, it is shown by itself once it has taken `DELAY`
    seconds: not within `hidden`, in a thread, or in a process that another one started.

    Args:
        what: What it is, such as "spectral density".
        total: Its parts; 0 where nobody knows how many.
        unit: What a part is, in the plural.
    """
    mine = Work(what, total, unit)
    if threading.current_thread() is not threading.main_thread():
        yield mine
    elif _displays:
        with _displays[-1].within(mine):
            yield mine
    elif _hidden or parent_process() is not None:
        yield mine
    else:
        with Progress(total, unit, doing=what, delay=DELAY) as shown:
            mine._changed = lambda: shown.update(mine.done)
            yield mine


@contextmanager
def hidden() -> Iterator[None]:
    """Context in which `work` by itself is not shown, such as in a loop that has a bar already."""
    global _hidden
    _hidden += 1
    try:
        yield
    finally:
        _hidden -= 1


@contextmanager
def sent_to(sink: Callable[[News], None]) -> Iterator[None]:
    """Context in which displays are told to a function, not shown."""
    _sink.append(sink)
    try:
        yield
    finally:
        _sink.pop()
