"""The grammar of every command: one declaration gives help, values and refusals."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

import optbench
from optbench.boundary.command_line import WIDTH, Command, FilePath, Key, Names, Seconds
from optbench.boundary.kinds import Count
from optbench.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Do something.

    In a second paragraph: how.
    """

    kind: Annotated[Literal["old", "new"], Key("which", "KIND", positional=True)]
    folders: Annotated[tuple[Path, ...], Key("where", "FOLDER", positional=True)] = ()
    jobs: Annotated[Count, Key("runs at a time")] = 2
    seconds: Annotated[Seconds, Key("the limit")] = 60.0
    short: Annotated[bool, Key("whether it is short")] = False
    only: Annotated[Names | None, Key("what to keep", "NAMES", alone="all")] = None
    out: Annotated[FilePath | None, Key("file to write", "FILE")] = None
    mode: Annotated[str, Key("how", name="wandb.mode")] = "auto"
    optimizer: Annotated[tuple[str, ...], Key("settings", below=True, option="--set")] = ()


@dataclass(frozen=True)
class Plain:
    """Do something else."""

    results_dir: Annotated[FilePath, Key("where", was_positional=True)] = Path("results")
    run_seconds: Annotated[Seconds, Key("the limit")] = 60.0


COMMAND = Command("optbench.mine", Settings, examples=("old short=true",))
PLAIN = Command("optbench.plain", Plain)


def test_words_become_values_of_the_declared_types() -> None:
    words = [
        "new",
        "a",
        "b,c",
        "jobs=3",
        "seconds=1e2",
        "short=true",
        "only=x,y",
        "z",
        "out=2026",
        "wandb.mode=null",
    ]
    words[6:8] = ["only=x, y z"]
    words += ["optimizer.lr=0.1", "optimizer.betas=[0.9,0.99]"]
    settings = COMMAND.read(words)
    assert settings == Settings(
        "new",
        (Path("a"), Path("b,c")),
        jobs=3,
        seconds=100.0,
        short=True,
        only=("x", "y z"),
        out=Path("2026"),
        mode="null",
        optimizer=("lr=0.1", "betas=[0.9,0.99]"),
    )
    assert COMMAND.read(["old"]) == Settings("old")
    assert COMMAND.read(["old", "jobs=3", "jobs=4"]).jobs == 4  # as for a run
    assert COMMAND.read(["old", "./a=b"]).folders == (Path("a=b"),)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["old", "jobs=0"], "jobs must be a whole number, at least 1, got 0"),
        (["old", "jobs=1.5"], "jobs must be a whole number, at least 1, got 1.5"),
        (["old", "jobs=²"], "jobs must be a whole number, at least 1, got ²"),
        (["old", "jobs=1_0"], "jobs must be a whole number, at least 1, got 1_0"),
        (["old", "jobs="], "jobs must be a whole number, at least 1, got ''"),
        (["old", "jobs=" + "9" * 300], "jobs must be a whole number, at least 1, got 999"),
        (["old", "seconds=nan"], "seconds must be a finite number, above 0 and at most 1000000000"),
        (["old", "seconds=1e400"], "seconds must be a finite number, above 0"),
        (["old", "short=yes"], "short must be true or false, got yes"),
        (["old", "short=True"], "short must be true or false, got True"),
        (["old", "only=,"], "only must be names, separated by commas, got ,"),
        (["old", "out="], "out must be a path, got ''"),
        (["young"], "KIND must be old or new, got young"),
        ([], "KIND is missing: python -m optbench.mine KIND FOLDER ... [KEY=VALUE ...]"),
        (["old", "job=2"], "there is no key job. Did you mean jobs?"),
        (["old", "kind=new"], "there is no key kind."),
        (["old", "a\x1bb=1"], ""),
    ],
)
def test_what_is_wrong_is_named_with_what_is_expected(words: Sequence[str], said: str) -> None:
    if not said:  # no key has such a name: it is a folder
        assert COMMAND.read(words).folders == (Path("a\x1bb=1"),)
        return
    with pytest.raises(UserError) as error:
        COMMAND.read(words)
    assert str(error.value).startswith(said) and str(error.value).isprintable()


@pytest.mark.parametrize(
    ("words", "new"),
    [
        (["old", "--jobs", "3", "--short"], "old jobs=3 short=true"),
        (["--seconds=2", "old"], "seconds=2 old"),
        (["old", "--only", "--out", "a b"], "old only=all 'out=a b'"),
        (["old", "--only", "x"], "old only=x"),
        (["old", "--set", "lr=1", "--wandb-mode", "auto"], "old optimizer.lr=1 wandb.mode=auto"),
        (["old", "--out"], "old out=FILE"),
    ],
)
def test_an_old_spelling_is_answered_with_the_new_one(words: list[str], new: str) -> None:
    with pytest.raises(UserError) as error:
        COMMAND.read(words)
    assert str(error.value) == f"every setting is KEY=VALUE now: say python -m optbench.mine {new}"


def test_a_word_that_once_stood_alone_is_told_its_key() -> None:
    with pytest.raises(UserError, match=r"optbench\.plain results_dir=mine run_seconds=5$"):
        PLAIN.read(["mine", "--run-seconds", "5"])
    with pytest.raises(UserError, match=r"there is no option --nope: every setting is KEY=VALUE"):
        PLAIN.read(["--nope"])


def test_the_help_has_every_key_with_its_default_and_what_it_expects() -> None:
    page = COMMAND.help()
    assert page.startswith("usage: python -m optbench.mine KIND FOLDER ... [KEY=VALUE ...]\n")
    assert "Do something.\n\nIn a second paragraph: how.\n" in page
    for words in (
        "KIND",
        "jobs=2",
        "Runs at a time (a whole number, at least 1)",
        "short=false",
        "only=NAMES",
        "out=FILE",
        "wandb.mode=auto",
        "optimizer.KEY=VALUE",
        "  python -m optbench.mine old short=true",
    ):
        assert words in page
    assert max(map(len, page.splitlines())) <= WIDTH


def _run(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch, work: object = lambda _: 7
) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["mine", *words])
    with pytest.raises(SystemExit) as stop:
        COMMAND.run(work)  # type: ignore[arg-type]
    return stop.value.code


def test_it_exits_with_what_its_work_returns_or_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["old"], monkeypatch) == 7
    assert _run(["old", "jobs=x"], monkeypatch) == 2
    err = capsys.readouterr().err
    assert err == "optbench: jobs must be a whole number, at least 1, got x\n"
    assert _run(["--version"], monkeypatch) == 0
    assert capsys.readouterr().out == f"optbench {optbench.__version__}\n"
    assert _run(["nonsense", "-h"], monkeypatch) == 0
    assert capsys.readouterr().out.startswith("usage: ")
