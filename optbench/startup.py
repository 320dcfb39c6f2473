"""How every command of ours begins: with a terminal that cannot stop it, and a Ctrl-C that takes one line.

A run that has trained for hours is worth more than the log of it. So what cannot be written to
standard output or standard error (a full disk, a broken pipe, a closed descriptor) is dropped, and
a character that the terminal does not have becomes a question mark.
"""

import codecs
import contextlib
import io
import os
import signal
import sys
from types import FrameType
from typing import TextIO

SPELLING = "optbench"  # the name of `_spell` among Python's ways to encode what cannot be encoded


def begin_command() -> None:
    """Do all of it, if Python has been started for a command of ours; `optbench/__init__.py` asks at its import."""
    if any(word.removeprefix("-m").partition(".")[0] == "optbench" for word in sys.orig_argv):
        begin()


def begin() -> None:
    """Secure the terminal; until `begun`, Ctrl-C ends the process at once, for imports do not survive exceptions."""
    secure_terminal()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def begun() -> None:
    """The imports are over: Ctrl-C is an exception again."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def secure_terminal(encoding: str | None = None) -> None:
    """Let no word to standard output or standard error ever raise.

    Args:
        encoding: Of what is written; None for what Python has found.
    """
    _open_closed()
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, _secured(getattr(sys, name), number, encoding))


class _Unfailing(io.FileIO):
    """A descriptor that takes everything, and drops what cannot be written."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        with contextlib.suppress(OSError):
            return super().write(data) or len(data)  # None where it would have to wait
        return len(data)


def _secured(stream: TextIO | None, number: int, encoding: str | None) -> TextIO:
    if isinstance(stream, io.TextIOWrapper):
        if stream.errors == SPELLING and encoding is None:
            return stream
        with contextlib.suppress(OSError):
            stream.flush()
        # a console, which no descriptor writes to in Unicode
        if sys.platform == "win32" and stream.isatty():
            stream.reconfigure(errors="replace")
            return stream
    found = encoding or getattr(stream, "encoding", None) or sys.getfilesystemencoding()
    return unfailing(number, found)


def unfailing(number: int, encoding: str = "utf-8") -> TextIO:
    """Return a text stream to a descriptor, flushed line by line, that never raises."""
    raw: io.FileIO = _Unfailing(number, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors=SPELLING, line_buffering=True)


def _open_closed() -> None:
    """Lead a standard descriptor that is closed to nowhere: else the next file opened would get its number."""
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)


def _spell(error: UnicodeError) -> tuple[bytes, int]:
    """Spell what an encoding lacks: a byte of a file's name that is no text as itself, all else as `?`."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    spelled = (bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else b"?" for c in missing)
    return b"".join(spelled), error.end


def _end_at_once(number: int, _: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"optbench: stopped before it began\n")
    os._exit(128 + number)


codecs.register_error(SPELLING, _spell)
