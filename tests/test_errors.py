"""How a command of many runs ends: its own exit code, or one line that says why."""

import errno
from pathlib import Path

import pytest

from optbench.errors import MachineError, UserError, exit_with


def _raise(error: BaseException) -> int:
    raise error


def test_the_exit_code_is_the_command_s_own() -> None:
    with pytest.raises(SystemExit) as stop:
        exit_with(lambda: 3)
    assert stop.value.code == 3


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("lr must be positive, got -1"), 2, "optbench: lr must be positive, got -1"),
        (MachineError("no network"), 1, "optbench: no network"),
        (
            PermissionError(errno.EACCES, "denied", "a/b"),
            1,
            "optbench: not allowed to read or write at a/b (denied): say --to DIR with a folder of yours",
        ),
        (
            OSError(errno.ENOENT, "none", "a/b"),  # of a file that somebody's code was to read
            1,
            f"optbench: [Errno {errno.ENOENT}] none: 'a/b'",
        ),
        (OSError(errno.EIO, "broken", "a/b"), 1, f"optbench: [Errno {errno.EIO}] broken: 'a/b'"),
        (KeyboardInterrupt(), 130, "stopped: the same command goes on"),
    ],
)
def test_what_stops_a_command_takes_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        exit_with(lambda: _raise(error), "--to DIR")
    assert stop.value.code == code
    assert capsys.readouterr().err == said + "\n"


def test_where_no_folder_can_be_made_the_way_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / ("a" * 300)
    with pytest.raises(SystemExit) as stop:
        exit_with(lambda: len([*long.iterdir()]), "--to DIR")
    said = capsys.readouterr().err
    assert stop.value.code == 1 and said.endswith(": say --to DIR with another one\n")
    assert "no folder can be made at" in said and "aaa… (" in said and len(said) < 250


def test_a_traceback_is_there_for_who_asks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        exit_with(lambda: _raise(UserError("lr must be positive, got -1")), tracebacks=True)
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("\noptbench: lr must be positive, got -1\n")


def test_what_is_not_foreseen_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_with(lambda: 1 // 0)
