"""What progress looks like: on narrow and wide terminals, in a file, within other work."""

import io
import time

import pytest
from rich.console import Console

from optbench.boundary.counting import agreeing, counted
from optbench.record import progress
from optbench.record.progress import News, Progress, clock, hidden, sent_to, work
from optbench.record.terminal import ManyRuns, Terminal, series


def _console(width: int, is_terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=is_terminal)


NUMBERS = [
    "loss 0.1706",
    "edge 0.5820",
    "λ₁ 11.64",
    "test error 0.088",
    "preconditioned λ₁ 1.1e+04",
]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 160])
def test_a_line_never_wraps_and_begins_with_percent_count_and_time_left(width: int) -> None:
    shown = Progress(2000, "steps", console=_console(width))
    shown.update(680, NUMBERS, lambda: 21.0)
    line = shown.line(width)
    assert len(line) < width
    assert width < 40 or " 34%  680/2,000 steps  0:21 left" in line
    assert width < 80 or all(number in line for number in NUMBERS[:3])
    assert ("━" in line) == (width >= 100)


def test_a_file_has_no_control_codes_and_few_lines() -> None:
    console = _console(80)
    with Terminal(10_000, console) as terminal:
        for step in range(10_001):
            with terminal.measuring(step, "sharpness"):
                pass
            terminal.update(step, {"batch/loss": 1.0, "test/error": 0.5})
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "\x1b" not in said and "\r" not in said
    lines = said.splitlines()
    assert 2 <= len(lines) <= 20
    assert "measuring sharpness" in lines[0] and "test error 0.5" in lines[-1]
    assert lines[-1].startswith("100%  10,000/10,000 steps")


def test_the_time_left_of_runs_is_weighed_by_what_each_kind_costs() -> None:
    shown = ManyRuns(4, _console(80), {"quick": 2, "slow": 2})
    with shown:
        shown.run_ended("slow", 30.0, found=True)
        assert shown.left() is None  # nothing was made here: who knows this machine?
        shown.making()
        shown._making = time.monotonic() - 1.0
        shown.run_ended("quick", 1.0)
        shown._estimate = (None, 0.0)
        assert shown.left() == pytest.approx(31.0, rel=0.05)  # a quick one and a slow one


def test_work_within_a_display_is_told_in_it() -> None:
    with Progress(10, "steps", "measuring spectrum", _console(120)) as shown:
        with work("spectral density", 50) as told:
            told.advance(20)
            assert "measuring spectrum: spectral density 40%" in shown.line(None)
        assert "density" not in shown.line(None)


def test_work_alone_is_shown_once_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with work("trace", 2) as quick:
        quick.advance(2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "DELAY", 1e-9)
    with work("trace", 2) as slow:
        time.sleep(0.001)
        slow.advance(2)
    assert "100%  2/2  trace" in capsys.readouterr().err
    with hidden(), work("trace", 2) as unseen:
        unseen.advance(2)
    assert capsys.readouterr().err == ""


def test_another_process_is_told_news_in_place_of_a_line() -> None:
    heard: list[News] = []
    console = _console(80)
    with sent_to(heard.append), Progress(2, "steps", console=console) as shown:
        shown.update(2, ["loss 1"])
    assert heard[-1] == News(2, 2, heard[-1].left, "", ("loss 1",))
    assert isinstance(console.file, io.StringIO) and console.file.getvalue() == ""


def test_a_run_of_a_series_says_where_it_stands() -> None:
    from optbench.record.terminal import next_of_series

    console = _console(80)
    with series(9):
        next_of_series()
        next_of_series()
        with Terminal(10, console) as terminal:
            terminal.update(0, {"batch/loss": 1.0})
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().startswith("run 2/9    0%")


def test_words_agree_with_their_number() -> None:
    assert [counted(n, "entry") for n in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]
    assert counted(1126, "run") == "1,126 runs" and counted(2, "process") == "2 processes"
    assert (agreeing(1, "is", "are"), agreeing(0, "is", "are")) == ("is", "are")
    assert [clock(s) for s in (7, 3723, 273600)] == ["0:07", "1:02:03", "3 d 4 h"]
