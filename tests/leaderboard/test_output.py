"""What is written and shown: three files or none, no control characters, infinite settings."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from optbench.launch.index import read_index
from optbench.leaderboard import write_together as write
from optbench.leaderboard.__main__ import main
from optbench.leaderboard.page import report_page, unpacked
from optbench.leaderboard.run_report import main as report
from optbench.leaderboard.tables import escape, plain
from optbench.leaderboard.write_together import write_together
from tests.leaderboard.fields import entrant, run, suite
from tests.leaderboard.hostile import write_folder

SUITE = suite()
NAMES = ("a.md", "a.csv", "a.html")


def _contents(folder: Path, text: str) -> dict[Path, str]:
    return {folder / name: f"{text} λ {name}" for name in NAMES}


def _read(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(folder.iterdir()) if path.is_file()]


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("failing", range(3))
def test_files_are_written_together_or_not_at_all(
    old: bool, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        write_together(_contents(tmp_path, "old"))
    before = _read(tmp_path)
    places, real = [path.name for path in _contents(tmp_path, "")], Path.replace

    def replace_or_fail(part: Path, target: Path) -> Path:
        if part.name.endswith(".part") and Path(target).name == places[failing]:
            raise OSError(28, "No space left on device")
        return real(part, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_or_fail)
        with pytest.raises(OSError, match="No space"):
            write_together(_contents(tmp_path, "new"))
    assert _read(tmp_path) == before
    with monkeypatch.context() as patch:
        patch.setattr(
            write,
            "_write",
            lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        with pytest.raises(OSError, match="No space"):
            write_together(_contents(tmp_path, "new"))
    assert _read(tmp_path) == before
    write_together(_contents(tmp_path, "new"))
    assert len(_read(tmp_path)) == 3 and all(text.startswith("new λ") for text in _read(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_in_the_place_of_one_leaves_the_others_as_they_were(
    name: str, tmp_path: Path
) -> None:
    write_together(
        {path: text for path, text in _contents(tmp_path, "old").items() if path.name != name}
    )
    (tmp_path / name).mkdir()
    before = _read(tmp_path)
    with pytest.raises(OSError, match="not a file"):
        write_together(_contents(tmp_path, "new"))
    assert _read(tmp_path) == before and (tmp_path / name).is_dir()


@pytest.mark.parametrize(
    "text", ["\x1b[31m", "a\0b", "\x9b2J", "\u202eabc", "a\r\nb", "\ud800", "a\tb"]
)
def test_no_control_character_reaches_a_cell(text: str) -> None:
    assert escape(text).isprintable() and plain(text).isprintable()
    odd = replace(
        run(SUITE, "a", "task0", "final", 1, 0, 0.1),
        settings={text: [text]},
        command=[text],
        device=text,
    )
    assert json.dumps(unpacked(report_page([odd])), ensure_ascii=False).isprintable()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\x1b=1"])
def test_no_name_is_a_formula(text: str) -> None:
    assert plain(text)[0] not in "=+-@\t\r"


def _call(command: object, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["optbench", *arguments])
    try:
        command()  # type: ignore[operator]
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _report_of(folder: Path, monkeypatch: pytest.MonkeyPatch, lr: str) -> str:
    write_folder(folder / "runs" / "mine", run(SUITE, "a", "task0", "final", 1, 0, 0.1))
    path = folder / "runs" / "mine" / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.2", f"lr: {lr}"))
    assert f"lr: {lr}" in path.read_text()
    out = folder / "deep" / "page.html"
    assert _call(report, monkeypatch, str(folder / "runs" / "mine"), f"out={out}") == 0
    return json.dumps(unpacked(out.read_text(encoding="utf-8")), ensure_ascii=False)


@pytest.mark.parametrize(("lr", "word"), [(".inf", "inf"), ("-.inf", "-inf"), (".nan", "nan")])
def test_a_run_with_an_infinite_setting_is_reported(
    lr: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f'"lr": "{word}"' in _report_of(tmp_path, monkeypatch, lr)


def test_a_report_that_cannot_be_written_takes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "mine", run(SUITE, "mine", "task0", "final", 1, 0, 0.1))
    (tmp_path / "taken").mkdir()
    monkeypatch.setattr(
        sys, "argv", ["report", str(tmp_path / "mine"), f"out={tmp_path / 'taken'}"]
    )
    with pytest.raises(SystemExit) as stop:
        report()
    assert stop.value.code == 2 and "out must be a file to write" in capsys.readouterr().err
    assert not list((tmp_path / "taken").iterdir())


def _shown(capsys: pytest.CaptureFixture[str]) -> Sequence[str]:
    out, err = capsys.readouterr()
    return [*out.splitlines(), *err.splitlines()]


def test_nothing_odd_reaches_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, own in enumerate(entrant(SUITE, "a", 0.2)):
        write_folder(tmp_path / "runs" / f"\x1b[31m{number}", own)
    (tmp_path / "runs" / "\x1b]0;owned\x07").write_text("")
    for arguments in (
        ["suite=smoke"],
        ["suite=\x1b[31m"],
        ["suite=smoke", "enter=\x1b[31m"],
        ["suite=smoke", "\x1b[31m"],
        ["suite=smoke", "\x1b[31m=1"],
        ["suite=smoke", "--\x1b[31m"],
    ):
        _call(main, monkeypatch, f"results_dir={tmp_path}", *arguments)
        shown = _shown(capsys)
        assert shown and all(line.isprintable() for line in shown)
    _call(main, monkeypatch, f"results_dir={tmp_path}/\x1b[31m")
    assert all(line.isprintable() for line in _shown(capsys))


def test_the_index_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert read_index(path) == ({}, [])
    bad = [
        "{",
        "[]",
        '{"command": "b"}',
        '{"command": "c", "folder": "../x"}',
        '{"command": "d", "folder": "\\u001b"}',
    ]
    path.write_text(
        "\n".join(['{"command": "a", "folder": "one"}', *bad, '{"command": "cut", "fol'])
    )
    folders, passed_over = read_index(path)
    assert folders == {"a": "one"} and len(passed_over) == 5
    assert all(line.startswith("runs.jsonl, line ") and line.isprintable() for line in passed_over)
    path.unlink()
    path.mkdir()
    assert read_index(path) == ({}, ["runs.jsonl: is a folder, not a regular file"])
