"""Hostile results: a valid run folder and a valid entry, with one value or one file exchanged."""

# mypy: disable-error-code="func-returns-value,misc"

import copy
import json
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from optbench.leaderboard.entries import ENTRIES
from optbench.leaderboard.run_line import Run
from optbench.protocol.suite import Suite
from tests.leaderboard.fields import entrant

DEEP: Any = json.loads("[" * 60 + "]" * 60)
VALUES: dict[str, Any] = {
    "null": None,
    "yes": True,
    "no": False,
    "zero": 0,
    "negative": -1,
    "fraction": 0.5,
    "64 bits and one": 2**63,
    "400 digits": 10**400,
    "huge": 1e308,
    "hugely negative": -1e308,
    "nan": float("nan"),
    "infinite": float("inf"),
    "least": 5e-324,
    "empty text": "",
    "long text": "x" * 100_000,
    "colours": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "nul": "a\0b",
    "lines": "a\r\nb",
    "surrogate": "\ud800",
    "right to left": "\u202eabc",
    "c1": "\x9b2J",
    "path": "../../../escaped",
    "formula": "=1+1",
    "at": "@SUM(A1)",
    "markup": "</script><img src=x onerror=alert(1)>",
    "pipe": "a|b`](javascript:x)",
    "date": "2020-01-01",
    "number as text": "1",
    "list": [],
    "list of null": [None],
    "mapping": {},
    "deep": DEEP,
}
YAML_WORDS = (
    *(
        "2020-01-01",
        "2020-01-01T00:00:00Z",
        ".inf",
        "-.inf",
        ".nan",
        "0o17",
        "1_000",
        "1:30:00",
        "~",
        "yes",
        "!!binary aGk=",
    ),
    *(
        "!!python/object/apply:os.system [exit]",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "&a [*a]",
        "? [a]\n",
        '"\\ud800"',
        '"\\e[31m"',
    ),
    *(
        "!!timestamp 2020-01-01",
        "!!float 1e400",
        "!!int 9" + "9" * 399,
        "[" * 2000,
        "{" * 2000,
        "- " * 2000,
        '"\\0"',
    ),
)

# Each makes something else of a file that is there.
FORMS: dict[str, Callable[[Path], object]] = {
    "missing": lambda f: f.unlink(),
    "empty": lambda f: f.write_bytes(b""),
    "newline": lambda f: f.write_bytes(b"\n"),
    "folder": lambda f: _instead(f, lambda f: f.mkdir()),
    "pipe": lambda f: _instead(f, lambda f: os.mkfifo(f)),
    "socket": lambda f: _instead(f, lambda f: _socket(f)),
    "loop": lambda f: _instead(f, lambda f: f.symlink_to(f.name)),
    "link to zeros": lambda f: _instead(f, lambda f: f.symlink_to("/dev/zero")),
    "link to itself elsewhere": lambda f: f.symlink_to(f.rename(f.with_suffix(".away"))),
    "a gibibyte": lambda f: os.truncate(f, 2**30),
    "not UTF-8": lambda f: f.write_bytes(b"\xff\xfe" + f.read_bytes()),
    "UTF-16": lambda f: f.write_bytes(f.read_text().encode("utf-16")),
    "BOM": lambda f: f.write_bytes(b"\xef\xbb\xbf" + f.read_bytes()),
    "NUL": lambda f: f.write_bytes(f.read_bytes().replace(b'"', b"\0", 1) + b"\0"),
    "cut": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "twice": lambda f: f.write_bytes(f.read_bytes() * 2),
    "deep": lambda f: f.write_bytes(b"[" * 100_000),
    "deep mappings": lambda f: f.write_bytes(b'{"a":' * 50_000),
    "digits": lambda f: f.write_bytes(b"9" * 500_000),
    "escapes": lambda f: f.write_bytes(b"\x1b[2J\x1b]0;owned\x07" + f.read_bytes()),
    "a list": lambda f: f.write_bytes(b"[1, 2]\n"),
    "a string": lambda f: f.write_bytes(b'"x"\n'),
    "surrogate": lambda f: f.write_bytes(b'{"a": "\\ud800"}\n'),
    "shut": lambda f: f.chmod(0),
}


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(path.name)
    os.chdir(here)


def write_folder(folder: Path, run: Run) -> None:
    """A run folder that is read as this run."""
    folder.mkdir(parents=True)
    summary = {
        key: getattr(run, key)
        for key in ("status", "optimizer", "seed", "step", "steps", "gradients", "train_seconds")
    }
    summary |= {
        "schema": 1,
        "name": run.name,
        "task": "digits",
        "last": run.last,
        "peak_gib": 0.1,
        "optimizer_gib": 0.0,
    }
    origin = {key: getattr(run, key) for key in ("data_hash", "init_hash", "initial_loss")}
    origin |= {
        "task": {"checksum_verified": True},
        "versions": {"torch": "2"},
        "sources": {"mine": "0" * 64},
        "hardware": {"device": "cpu"},
    }
    origin |= {"sessions": [{"command": ["optbench", *run.command]}], "git_commit": "0" * 40}
    board = {
        key: getattr(run, key) for key in ("suite", "version", "digest", "task", "phase", "point")
    }
    config = {
        "steps": run.steps,
        "optimizer": dict(run.settings),
        "task": {"size": 1},
        "board": board,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "provenance.json").write_text(json.dumps(origin))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        dict(zip(run.curve, values, strict=True))
        for values in zip(*run.curve.values(), strict=True)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "timings.jsonl").write_text('{"step": 0, "time/train_seconds": 0.1}\n')


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value can be exchanged; of a list its first."""
    if path:
        yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    if isinstance(node, list) and node:
        yield from places(node[0], (*path, 0))


def exchanged(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The same data with one value exchanged."""
    node = copy.deepcopy(node)
    inner = node
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return node


Case = tuple[str, Callable[[Path], object]]  # what it is, and what makes it of a results folder
KEYS = {
    "summary.json": "schema name status optimizer task seed step steps gradients train_seconds peak_gib last "
    "last.test/error last.new",
    "provenance.json": "data_hash init_hash initial_loss task task.checksum_verified versions.torch sources sources.mine "
    "hardware hardware.device sessions sessions.0 sessions.0.command sessions.0.command.1 git_commit",
    "config.yaml": "optimizer optimizer.lr optimizer.new task task.size steps new board board.suite board.version "
    "board.digest board.task board.phase board.point",
    "metrics.jsonl": "step test/loss cost/gradients new",
    "timings.jsonl": "step time/train_seconds new",
}
FILES = ("summary.json", "provenance.json", "config.yaml", "metrics.jsonl", "timings.jsonl")


def of_folders(suite: Suite) -> Iterator[Case]:
    """Every file of a run folder in every form, every value of it exchanged, and no folders."""
    [*_, run] = entrant(suite, "odd", 0.2)

    def make(change: Callable[[Path], object]) -> Callable[[Path], object]:
        def apply(results: Path) -> None:
            folder = results / "runs" / "odd"
            write_folder(folder, run)
            change(folder)

        return apply

    yield "folder as it is", make(lambda folder: None)
    for name in FILES:
        for form, change in FORMS.items():
            yield f"{name}: {form}", make(partial(_below, name=name, change=change))
        for word in YAML_WORDS if name == "config.yaml" else ():
            for key in ("odd", "board", "optimizer", "task"):
                yield (
                    f"{name}: {key}: {word[:20]!r}",
                    make(partial(_append, key=key, word=word)),
                )
    for name in FILES:
        yield from _values(name, make)
    for form, name in {
        "escapes": "\x1b[31m",
        "bytes": os.fsdecode(b"\xff\xfe"),
        "long": "x" * 255,
        "tab": "a\tb",
        "dash": "-rf",
        "formula": "=1+1",
        "comma": "a,b",
        "space": " ",
    }.items():
        yield f"name: {form}", make(partial(_rename, name=name))
    for form, change in FORMS.items():
        yield f"runs/odd: {form}", partial(_file_in_place, change=change)


def _below(folder: Path, name: str, change: Callable[[Path], object]) -> None:
    change(folder / name)


def _rename(folder: Path, name: str) -> None:
    folder.rename(folder.with_name(name))


def _append(folder: Path, key: str, word: str) -> None:
    path = folder / "config.yaml"
    lines = [
        line
        for line in path.read_text().splitlines()
        if line[:1].isspace() or not line.startswith(f"{key}:")
    ]
    path.write_text("\n".join(lines) + f"\n{key}: {word}\n")


def _file_in_place(results: Path, change: Callable[[Path], object]) -> None:
    path = results / "runs" / "odd"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n")
    change(path)


def _values(
    name: str, make: Callable[[Callable[[Path], object]], Callable[[Path], object]]
) -> Iterator[Case]:
    for key in KEYS[name].split():
        path = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        for what, value in VALUES.items():
            yield (
                f"{name}: {key}: {what}",
                make(
                    partial(_below, name=name, change=partial(_exchange, where=path, value=value))
                ),
            )


def _exchange(path: Path, where: tuple[Any, ...], value: Any) -> None:
    first, *rest = path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]
    content = exchanged(
        yaml.safe_load(first) if path.suffix == ".yaml" else json.loads(first), where, value
    )
    text = json.dumps(content)  # YAML reads JSON
    if path.suffix == ".yaml":
        text = text.replace("-Infinity", "-.inf").replace("Infinity", ".inf").replace("NaN", ".nan")
    path.write_text("\n".join([text, *rest]))


def _then(
    write: Callable[..., Path], lines: list[Any], change: Callable[[Path], object], results: Path
) -> None:
    change(write(results, lines))


def of_entries(suite: Suite) -> Iterator[Case]:
    """An entry in every form, with every value of a line exchanged, and in odd places."""
    lines = [json.loads(run.line()) for run in entrant(suite, "odd", 0.2)]

    def write(
        results: Path, content: list[Any], label: str = suite.label, stem: str = "odd"
    ) -> Path:
        file = results / ENTRIES / label / f"{stem}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in content))
        return file

    yield "entry as it is", lambda results: write(results, lines)
    for form, change in FORMS.items():
        yield f"entry: {form}", partial(_then, write, lines, change)
    for path in places(lines[-1]):
        for what, value in VALUES.items():
            yield (
                f"entry: {'.'.join(map(str, path))}: {what}",
                partial(write, content=[*lines[:-1], exchanged(lines[-1], path, value)]),
            )
    for stem in ("\x1b[31m", "=1+1", "a b", "..", os.fsdecode(b"\xff"), "x" * 200):
        yield f"entry called {stem[:9]!r}", partial(write, content=lines, stem=stem)
        yield f"suite called {stem[:9]!r}", partial(write, content=lines, label=f"{stem}-v1")
    yield "a million lines", lambda results: write(results, []).write_text("{}\n" * 1_000_000)
    yield (
        "folder of entries: loop",
        lambda results: (results / ENTRIES / "loop-v1").symlink_to("loop-v1"),
    )
    yield (
        "folder of entries: link",
        lambda results: (results / ENTRIES / "linked-v1").symlink_to(suite.label),
    )
    yield "folder of entries: pipe", lambda results: os.mkfifo(results / ENTRIES / "pipe-v1")
