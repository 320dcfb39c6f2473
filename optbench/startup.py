"""How every command begins: no terminal can stop it, and a Ctrl-C takes one line.

A run that has trained for hours is worth more than the log of it. So what cannot be written to
standard output or standard error (a full disk, a broken pipe, a closed descriptor) is dropped, and
a character that the terminal does not have becomes a question mark.
"""

import codecs
import contextlib
import gc
import io
import os
import signal
import sys
from types import FrameType
from typing import TextIO

SPELLING = "optbench"  # the name of `_spell` among Python's ways to encode what cannot be encoded


def begin_command() -> None:
    """Call `begin` if Python was started for a command; `optbench/__init__.py` asks."""
    if any(word.removeprefix("-m").partition(".")[0] == "optbench" for word in sys.orig_argv):
        begin()


_LATER = [False]  # whether garbage is sought from `imported` on


def importing() -> None:
    """Seek no garbage until `imported`.

    Imports make half a million objects that live on, which to look through again and again is a
    sixth of their time.
    """
    if gc.isenabled():
        gc.disable()
        _LATER[0] = True


def imported() -> None:
    """Seek garbage again if it was sought before, but not in what was imported."""
    if _LATER[0]:
        _LATER[0] = False
        gc.freeze()
        gc.enable()


def begin() -> None:
    """Secure the terminal; until `begun`, Ctrl-C ends the process and no garbage is sought.

    Imports do not survive an exception in their middle.
    """
    secure_terminal()
    importing()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def begun() -> None:
    """The imports are over: Ctrl-C is an exception again, garbage is sought outside of them."""
    imported()
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def secure_terminal(encoding: str | None = None) -> None:
    """Let no word to standard output or standard error ever raise.

    Args:
        encoding: Encoding of what is written; None for the one that Python has chosen.
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
    name = encoding or getattr(stream, "encoding", None) or sys.getfilesystemencoding()
    return unfailing(number, name)


def unfailing(number: int, encoding: str = "utf-8") -> TextIO:
    """Return a text stream to a descriptor, flushed line by line, that never raises."""
    raw: io.FileIO = _Unfailing(number, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors=SPELLING, line_buffering=True)


def _open_closed() -> None:
    """Lead a closed standard descriptor to nowhere: the next open file would get its number."""
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)


def _spell(error: UnicodeError) -> tuple[bytes, int]:
    """Spell what an encoding lacks: a byte of a file's name as itself, all else as `?`."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    spelled = (bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else b"?" for c in missing)
    return b"".join(spelled), error.end


def _end_at_once(number: int, _: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"optbench: stopped before it began\n")
    os._exit(128 + number)


codecs.register_error(SPELLING, _spell)
