"""How a command of many runs ends: its own exit code, or one line that says why."""

import errno

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
            OSError(errno.ENAMETOOLONG, "too long", "a" * 300),
            1,
            f"optbench: too long at {'a' * 120}…: if it is for results, say --to DIR with another folder",
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


def test_a_traceback_is_there_for_who_asks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        exit_with(lambda: _raise(UserError("lr must be positive, got -1")), tracebacks=True)
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("\noptbench: lr must be positive, got -1\n")


def test_what_is_not_foreseen_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_with(lambda: 1 // 0)
