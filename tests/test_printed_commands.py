"""Every command that a program prints is one that it understands."""

import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import optbench
from docs import build, edge_picture, tool_pictures
from optbench import metrics
from optbench.boundary.command_line import Command
from optbench.check import __main__ as check_command
from optbench.check import scaffold
from optbench.configuration.compose import compose_config
from optbench.configuration.keys import check
from optbench.errors import UserError
from optbench.lab import landscape_command, lr_range_command, measure_command
from optbench.leaderboard import __main__ as leaderboard
from optbench.leaderboard import run_report
from optbench.protocol import tuner
from optbench.record import tensorboard, trackio, wandb, workspace
from optbench.studies import atlas_multipliers
from optbench.studies import command as study

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(optbench.__file__).parent
MODULES = (
    "tune",
    "leaderboard",
    "report",
    "study",
    "measure",
    "landscape",
    "lr_range",
    "check",
    "new",
)
MIRRORS = ("record.wandb", "record.tensorboard", "record.trackio", "record.workspace")


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
            pattern = rf"python -m {re.escape(module)}((?: \w[.\w]*=[-./\w]+)*)"
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
    assert not _refused(capsys.readouterr().err)


def _refused(said: str) -> bool:
    """Whether the words themselves were not understood."""
    return "--help lists" in said or "KEY=VALUE" in said


def test_the_last_line_of_tune_is_understood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "my results"
    results.mkdir()
    monkeypatch.setattr(tuner.Tuner, "run", lambda *_: None)
    assert tuner.tune(tuner.COMMAND.read(["optimizer=sgd", f"results_dir={results}"])) == 0
    words = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])
    assert words[:3] == ["python", "-m", "optbench.leaderboard"]
    monkeypatch.setattr(sys, "argv", words[2:])
    with pytest.raises(SystemExit):
        runpy.run_module("optbench.leaderboard", run_name="__main__")
    assert not _refused(capsys.readouterr().err)


@pytest.mark.parametrize("words", sorted(_commands("optbench.tune")))
def test_what_is_said_of_tune_can_be_said_to_it(words: str) -> None:
    with pytest.raises(UserError, match="there is no optimizer called nobody"):
        others = [word for word in words.split() if not word.startswith("optimizer=")]
        tuner.tune(tuner.COMMAND.read([*others, "optimizer=nobody"]))


@pytest.mark.parametrize(
    "words", ["schedule=constant", "optimizer.lr=0.05 steps=20", "optimizer=sgd seed=0"]
)
def test_what_a_run_advises_can_be_said_to_it(words: str) -> None:
    check(compose_config(words.split()))


@pytest.mark.parametrize("name", (*MODULES, *MIRRORS))
@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_every_command_says_its_version_and_its_help_and_does_nothing(
    name: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "nonsense", flag])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"optbench.{name}", run_name="__main__", alter_sys=False)
    assert not stop.value.code
    said = capsys.readouterr().out
    first = {
        "--version": f"optbench {optbench.__version__}",
        "--help": f"usage: python -m optbench.{name} ",
    }
    assert said.startswith(first[flag])


COMMANDS: list[Command[Any]] = [
    tuner.COMMAND,
    leaderboard.COMMAND,
    run_report.COMMAND,
    study.COMMAND,
    atlas_multipliers.COMMAND,
    measure_command.COMMAND,
    landscape_command.COMMAND,
    lr_range_command.COMMAND,
    check_command.COMMAND,
    scaffold.COMMAND,
    wandb.COMMAND,
    tensorboard.COMMAND,
    trackio.COMMAND,
    workspace.COMMAND,
    build.COMMAND,
    edge_picture.COMMAND,
    tool_pictures.COMMAND,
    metrics.COMMAND,
]
EXAMPLES = [(command, words) for command in COMMANDS for words in command.examples]


@pytest.mark.parametrize(
    ("command", "words"), EXAMPLES, ids=lambda part: getattr(part, "program", part)
)
def test_every_example_of_a_help_is_understood(command: Command[Any], words: str) -> None:
    command.read(words.split())


def _spoken(text: str) -> Iterator[tuple[str, str]]:
    """The program and the words of each command in a page that people copy from."""
    for line in text.splitlines():
        line = line.partition("  #")[0].partition("`, ")[0]
        yield from re.findall(r"python -m (optbench\.[\w.]+)([^`&;()]*)", line)


PAGES = ["README.md", "CONTRIBUTING.md", "results/README.md"]
PAGES += [str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")]
SPOKEN = sorted({spoken for page in PAGES for spoken in _spoken((ROOT / page).read_text())})


@pytest.mark.parametrize(("program", "words"), SPOKEN)
def test_every_command_in_a_page_is_understood(program: str, words: str) -> None:
    command = next(command for command in COMMANDS if command.program == program)
    spoken = shlex.split(words.strip().rstrip(".:,"))
    if not spoken and any("..." in word for word in command.help().splitlines()[0].split()):
        return  # named, not given
    command.read(spoken)


@pytest.mark.parametrize(
    "words",
    [
        command.removeprefix("python -m optbench ")
        for drawing in tool_pictures.DRAWINGS
        for command in drawing.commands
        if command.startswith("python -m optbench ")
    ],
)
def test_every_run_of_the_gallery_is_understood(words: str) -> None:
    one_run = [word.partition(",")[0] for word in words.split() if word != "--multirun"]
    check(compose_config(one_run))
