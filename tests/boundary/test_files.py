"""A file from elsewhere cannot hang its reader, fill the memory or garble a terminal."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from optbench.boundary import (
    UnreadableError,
    parse_json,
    printable,
    read_json,
    read_text,
    read_yaml,
)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    "make", [_pipe, _link, Path.mkdir, lambda path: None, lambda path: path.write_bytes(b"\xff")]
)
def test_what_is_no_plain_text_file(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "x")
    with pytest.raises(UnreadableError):
        read_text(tmp_path / "x")


def test_size_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a" * 11)
    assert read_text(tmp_path / "x", 11) == "a" * 11
    with pytest.raises(UnreadableError, match="larger"):
        read_text(tmp_path / "x", 10)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "NaN",
            "[-Infinity]",
            "1e999",
            "1" * 400,
            "9" * 5000,
            '"\\ud800"',
            '{"a": "\\udfff"}',
        ),
        *("[" * 34 + "]" * 34, "[" * 100_000),
    ],
)
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    ["a: [1", "a: &x 1\nb: *x", "1: 2", "a: !!python/object:os.system {}", "a: 0x" + "f" * 99],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(UnreadableError):
        read_yaml(tmp_path / "x")


def test_yaml_is_read_as_by_its_own_loader_but_for_dates(tmp_path: Path) -> None:
    text = "a: 2026-01-02\nb: [1, 2.5, true, null, .inf, text]\n"
    (tmp_path / "x").write_text(text)
    assert read_yaml(tmp_path / "x") == yaml.safe_load(text.replace("2026-01-02", "'2026-01-02'"))


def test_a_json_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"a": [1, -2.5e3, null, true, "ü"]}')
    assert read_json(tmp_path / "x") == {"a": [1, -2500.0, None, True, "ü"]}


@given(st.text())
def test_printable_text_moves_no_cursor_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1 and "\x1b" not in shown
    shown.encode()


def test_printable_keeps_words() -> None:
    assert printable("naïve  ☃\nλ₁ = 2") == "naïve ☃ λ₁ = 2"
    assert printable("a\x1b[31mb\u202ec\x00") == "a?[31mb?c?"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "\n".join(" " * i + "a:" for i in range(1000)),
        "\n".join(" " * i + "-" for i in range(1000)),
        "&a [" * 50_000,
    ],
)
def test_a_deep_yaml_does_not_crash_the_process(text: str, tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text(text)
    for aliases in (True, False):
        with pytest.raises(UnreadableError, match=r"nested deeper|damaged YAML"):
            read_yaml(tmp_path / "deep.yaml", aliases=aliases)
