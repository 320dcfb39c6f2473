"""Errors that the user can mend: one line with the value and the way out, never a traceback."""

import difflib
import errno
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import NoReturn

from optbench.startup import begun

GO_ON = "stopped: the same command goes on"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
_LONGEST_PATH = 120  # characters of a path that are shown


class UserError(Exception):
    """What was asked for cannot be done as it was asked (exit code 2)."""

    exit_code = 2


class MachineError(UserError):
    """The machine is in the way, not the command: no data, room or permission (exit code 1)."""

    exit_code = 1


def printable(text: str) -> str:
    """Return the text on one line; `?` stands for what a terminal would act on or cannot encode."""
    return visible(" ".join(text.split()))


def visible(text: str) -> str:
    """Return the text with `?` for what a terminal would act on or cannot encode; spaces stay."""
    if text.isprintable():  # nearly always, and a hundred times as fast
        return text
    return "".join(
        "?" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean a, b?`, or an empty string where nothing known is near."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""


def who_ended(ended: SystemExit) -> str:
    """Name the line that wanted to end the process.

    A run that ends so has trained nothing, whatever the exit code.
    """
    # W&B puts its own in its place
    replaced = getattr(getattr(sys.exit, "__code__", None), "co_filename", None)
    frames = traceback.extract_tb(ended.__traceback__)
    last = [frame for frame in frames if frame.filename != replaced][-1]
    where = f"{last.filename}, line {last.lineno}"
    return f"{where}, calls for the end of the process ({last.line}): take that out"


def file_trouble(error: OSError, elsewhere: str = "results_dir=DIR") -> str | None:
    """Return what keeps results from being written, and the setting that puts them elsewhere.

    None if the error is of another kind.
    """
    path = str(error.filename or "")
    shown = path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}…"
    where = f" at {shown}" if path else ""
    if error.errno in _NO_ROOM:
        return (
            f"no room left on the disk{where}. Nothing recorded so far is lost: make room and give "
            "the same command again to go on from the last checkpoint, or say "
            f"{elsewhere} on another disk"
        )
    if error.errno in _NO_PERMISSION:
        what = f"not allowed to read or write{where} ({error.strerror})"
        return f"{what}: say {elsewhere} with a folder of yours"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"a file is in the way{where} ({error.strerror}): say {elsewhere} with a folder"
    if error.errno in _NO_PATH or (error.errno == errno.ENOENT and _is_of_a_new_folder(error)):
        return f"no folder can be made{where} ({error.strerror}): say {elsewhere} with another one"
    return None


def _is_of_a_new_folder(error: OSError) -> bool:
    """Whether it arose where a folder was to be made, not where, say, a file was to be read.

    There is no such place below /proc, for instance.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].name in ("mkdir", "makedirs")


def mark_origin(error: Exception, rank: int) -> None:
    """Note in an error where process `rank` has raised it: a traceback cannot be sent."""
    frames = traceback.extract_tb(error.__traceback__)
    error.__dict__["origin"] = rank, [(frame.filename, frame.lineno) for frame in frames]


def origin(error: BaseException) -> tuple[str, list[tuple[str, int | None]]]:
    """Where an error was raised: `process 1: ` if that sent it; (file, line), outermost first."""
    if noted := error.__dict__.get("origin"):
        rank, frames = noted
        return f"process {rank}: " if rank else "", frames
    return "", [
        (frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
    ]


class Stopped(KeyboardInterrupt):
    """A signal asks a command of many runs to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


Explain = Callable[[BaseException, str], tuple[str | None, int]]
"""Error and the setting of another place → (line, exit code); the line is None for a traceback."""


def one_line(error: BaseException, elsewhere: str = "results_dir=DIR") -> tuple[str | None, int]:
    """Explain what the user can mend, and what the machine has against it."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return file_trouble(error, elsewhere) or str(error), 1
    return None, 1


def exit_with(
    main: Callable[[], int],
    elsewhere: str = "results_dir=DIR",
    explain: Explain = one_line,
    heed_signals: bool = True,
    tracebacks: bool = False,
) -> NoReturn:
    """Exit with what a command returns, or with one line where it cannot go on.

    Args:
        main: The command; it finds what an earlier call of it has run.
        elsewhere: Its setting for another results folder.
        explain: Says what went wrong in one line; what it cannot explain keeps its traceback.
        heed_signals: Whether SIGTERM and SIGHUP end the command as Ctrl-C does.
        tracebacks: Whether an error that one line explains gets its traceback, too.
    """
    try:
        begun()
        with stopping_on_signals() if heed_signals else nullcontext():
            code = main()
    except Stopped as stop:
        print(GO_ON.replace("stopped", str(stop)), file=sys.stderr)
        code = stop.exit_code
    except KeyboardInterrupt:
        print(GO_ON, file=sys.stderr)
        code = 130
    except Exception as error:
        line, code = explain(error, elsewhere)
        if line is None:
            raise
        if tracebacks:
            traceback.print_exception(error)
        print(f"optbench: {printable(line)}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Context that turns the first SIGTERM or SIGHUP into an exception.

    A second one acts at once. A signal that was ignored stays ignored.
    """
    # not on Windows
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    plain = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in plain:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in plain:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)
