"""How the processes of a run meet and part: what goes wrong in one, all say.

1. Each connects to a store, which torchrun or process 0 holds, before it reads its command.
2. One that fails leaves word in the store, and only then closes its connections to the others.
3. Whoever waits for it finds that word, and fails for the same reason.
4. Those that do not lead stay until the leader has ended, since torchrun ends all when one has
   failed, and the leader may still be writing. Then they print what the leader has not said.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TextIO

from optbench.errors import GO_ON, MachineError, UserError, one_line, printable, who_ended
from optbench.processes import Place

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed.distributed_c10d import Store

POLL = 0.02  # seconds between two looks at the store
PATIENCE = 10.0  # seconds that a leader which has failed waits for the others to have heard it

Explain = Callable[[BaseException], tuple[str | None, int]]
"""Error → (line, exit code); the line is None for what only a traceback explains."""


@dataclass(frozen=True)
class Word:
    """What a process leaves behind.

    Attributes:
        rank: Its number.
        code: Its exit code; 0: nothing went wrong.
        line: What went wrong, in one line.
        text: What it prints of that: the line, and a traceback where there is one.
    """

    rank: int
    code: int
    line: str = ""
    text: str = ""

    @property
    def line_elsewhere(self) -> str:
        """What went wrong, as the other processes say it."""
        return f"process {self.rank}: {self.line}" if self.rank else self.line

    def error(self) -> UserError:
        """What it is to the other processes."""
        said = UserError(self.line_elsewhere)
        said.exit_code = self.code
        return said

    def is_said_by(self, leader: Word | None) -> bool:
        """Whether the leader has said it: the line, but no traceback of another process."""
        if leader is None or self.line not in leader.line:
            return False
        brought_here_alone = leader.line == self.line_elsewhere
        return not (brought_here_alone and len(self.text.splitlines()) > 1)


@dataclass
class Meeting:
    """The processes of a run and what they leave for each other, seen from one of them.

    Attributes:
        here: Which of them this is.
        store: What all of them read and write.
        explain: Says what went wrong.
        stays: Whether it may wait for the leader's end after an error.
        lost: Whether another process has ended without a word.
    """

    here: Place
    store: Store
    explain: Explain = one_line
    stays: bool = True
    lost: bool = False
    _own: Word | None = field(default=None, init=False)

    def gather(self) -> None:
        """Wait until all processes are here.

        Raises:
            UserError: If one of them has failed, with what it says.
        """
        self._write("here", "")
        everyone = [f"here/{rank}" for rank in range(self.here.size)]
        while not self.store.check(everyone):
            if (word := self.word_of_another()) is not None:
                raise word.error()
            time.sleep(POLL)

    def word_of_another(self) -> Word | None:
        """The word of another process that has failed; None where there is none."""
        for rank in range(self.here.size):
            word = self._read("word", rank) if rank != self.here.rank else None
            if word is not None and word.code:
                return word
        return None

    def leave_word(self, error: BaseException, text: str | None = None) -> None:
        """Tell the others, before they find that this process is gone, what went wrong.

        Args:
            error: What ends this process.
            text: What is printed of it; None for one line.
        """
        try:
            said, code = self._explained(error)
        except Exception:  # errors are anybody's: one may fail to say what it is
            said, code = f"{type(error).__name__}, which does not say what it is", 1
        self._own = Word(self.here.rank, code, said, text or f"optbench: {said}")
        self._write("word", _content(self._own))

    def _explained(self, error: BaseException) -> tuple[str, int]:
        if isinstance(error, KeyboardInterrupt):
            return GO_ON, 130
        if isinstance(error, SystemExit):
            error = UserError(who_ended(error))
        line, code = self.explain(error)
        return printable(line or f"{type(error).__name__}: {error}"), code

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints."""
        return self.here.rank == 0

    def part(self, code: int, errors: TextIO) -> None:
        """Let the leader end first, then say what it has not said.

        Args:
            code: Exit code of this process.
            errors: Where it prints what the leader has not said.
        """
        own = self._own if self._own is not None and code else Word(self.here.rank, code)
        self._write("word", _content(own))
        if self.leads:
            self._write("end", _content(own))
            others = [f"gone/{rank}" for rank in range(1, self.here.size)]
            if code and not self.lost:
                self._wait(others, PATIENCE)
            return
        if code and self.stays:
            self._wait(["end/0"], None)
        leader = self._read("end", 0)
        if own.text and not own.is_said_by(leader):
            print(own.text.replace("optbench: ", f"optbench: process {own.rank}: ", 1), file=errors)
        self._write("gone", "")

    def _write(self, key: str, content: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store has gone: nobody reads it
            self.store.set(f"{key}/{self.here.rank}", content)

    def _read(self, key: str, rank: int) -> Word | None:
        name = f"{key}/{rank}"
        with contextlib.suppress(RuntimeError):
            if self.store.check([name]):
                return Word(**json.loads(self.store.get(name)))
        return None

    def _wait(self, keys: list[str], seconds: float | None) -> None:
        """Wait until all of it is written, or the store has gone, for so long at most."""
        until = None if seconds is None else time.monotonic() + seconds
        with contextlib.suppress(RuntimeError):
            while not self.store.check(keys) and (until is None or time.monotonic() < until):
                time.sleep(POLL)


def first_line(why: Exception) -> str:
    """What torch says of the others, without the advice and the stack below it."""
    return next(iter(str(why).strip().splitlines()), type(why).__name__)


def _content(word: Word) -> str:
    return json.dumps(asdict(word))


_met: list[Meeting] = []  # of this process, which meets once


def meet(here: Place, explain: Explain = one_line) -> Meeting:
    """Meet the other processes of the run; once, however often it is called.

    Raises:
        MachineError: If they do not find each other.
    """
    if not _met:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        try:
            store, _, _ = next(rendezvous("env://", here.rank, here.size))
        except (RuntimeError, ValueError) as why:
            raise MachineError(
                f"the processes of this run do not find each other ({first_line(why)}): torchrun "
                "says where in MASTER_ADDR and MASTER_PORT"
            ) from why
        # torchrun may start them again (--max-restarts), in a store that holds the last words
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        _met.append(Meeting(here, PrefixStore(f"optbench{attempt}", store), explain))
    return _met[0]
