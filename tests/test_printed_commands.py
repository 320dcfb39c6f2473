"""Every command that a program prints is one that it understands."""

import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import optbench
from optbench.configuration.compose import compose_config
from optbench.configuration.keys import check
from optbench.errors import UserError
from optbench.protocol import tuner as tune

PACKAGE = Path(optbench.__file__).parent
MODULES = ("tune", "leaderboard", "report", "study", "check", "new", "table", "record.wandb")


def _texts(tree: ast.AST) -> Iterator[str]:
    """String literals; in place of what an f-string fills in, a word."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "smoke"
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _commands(module: str) -> set[str]:
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for text in _texts(ast.parse(file.read_text())):
            pattern = rf"(?:next|first|run them):?,? python -m {re.escape(module)}((?: [-=./\w]+)*)"
            found |= {match.strip() for match in re.findall(pattern, text)}
    return found


@pytest.mark.parametrize("words", sorted(_commands("optbench.leaderboard")))
def test_what_is_said_of_the_leaderboard_can_be_said_to_it(
    words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").mkdir()
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(sys, "argv", ["leaderboard", *words.split()])
    with pytest.raises(SystemExit):
        runpy.run_module("optbench.leaderboard", run_name="__main__")
    assert "--help says" not in capsys.readouterr().err


def test_the_last_line_of_tune_is_understood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "my results"
    results.mkdir()
    monkeypatch.setattr(
        tune,
        "Tuner",
        lambda *_: SimpleNamespace(run=lambda points: None, failures=[], results=results),
    )
    assert tune._main(["optimizer=sgd"]) == 0
    words = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])
    assert words[:3] == ["python", "-m", "optbench.leaderboard"]
    monkeypatch.setattr(sys, "argv", words[2:])
    with pytest.raises(SystemExit):
        runpy.run_module("optbench.leaderboard", run_name="__main__")
    assert "--help says" not in capsys.readouterr().err


@pytest.mark.parametrize("words", sorted(_commands("optbench.tune")))
def test_what_is_said_of_tune_can_be_said_to_it(words: str) -> None:
    with pytest.raises(UserError, match="there is no optimizer called nobody"):
        tune._main([*words.split(), "optimizer=nobody"])


@pytest.mark.parametrize(
    "words", ["schedule=constant", "optimizer.lr=0.05 steps=20", "optimizer=sgd seed=0"]
)
def test_what_a_run_advises_can_be_said_to_it(words: str) -> None:
    check(compose_config(words.split()))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_every_command_says_its_version_and_its_help_and_does_nothing(
    name: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, flag])
    try:
        runpy.run_module(f"optbench.{name}", run_name="__main__", alter_sys=False)
    except SystemExit as stop:
        assert not stop.code or "usage" in str(stop.code)
        said = str(stop.code or "")
    else:
        said = ""
    said += capsys.readouterr().out
    assert (
        said.startswith(f"optbench {optbench.__version__}")
        if flag == "--version"
        else "python -m optbench" in said
    )


def test_the_table_is_not_written_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optbench import table

    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["table"])
    with pytest.raises(SystemExit) as stop:
        table.main()
    assert stop.value.code == 2 and "a checkout of optbench" in capsys.readouterr().err
