import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from optbench.tasks.char_lm import char_lm

from optbench.errors import MachineError, UserError


def test_targets_are_the_next_characters_and_the_windows_are_the_text(tmp_path: Path) -> None:
    text = "the cat sat on the mat. " * 40 + "Ünïcödé"
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    task = char_lm(0, str(file), characters=None, context=16)
    alphabet = sorted(set(text))
    windows = [
        row
        for split in task.splits.values()
        for row in zip(split.inputs, split.targets, strict=True)
    ]
    decoded = sorted("".join(alphabet[i] for i in x) for x, _ in windows)
    assert decoded == sorted(text[16 * i : 16 * i + 16] for i in range((len(text) - 1) // 16))
    assert all(torch.equal(x[1:], y[:-1]) for x, y in windows)
    assert task.output_width == len(alphabet) == task.facts["alphabet"]
    assert task.facts["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_the_default_text_is_the_same_each_time_and_holds_python() -> None:
    one, other = char_lm(0, characters=5000), char_lm(1, characters=5000)
    assert one.data_hash() == other.data_hash() and one.facts["characters"] == 5000
    assert str(one.facts["source"]).startswith("standard library of Python 3.")
    assert [len(split) for split in one.splits.values()] == [62, 8, 8]


def test_train_size_and_noise() -> None:
    clean, noisy = (
        char_lm(0, characters=5000, train_size=20),
        char_lm(0, characters=5000, train_size=20, label_noise=0.1),
    )
    assert len(clean.train) == 20
    assert int((clean.train.targets != noisy.train.targets).sum()) == 128
    assert (
        clean.test is not None
        and noisy.test is not None
        and torch.equal(clean.test.targets, noisy.test.targets)
    )


def test_what_is_no_text_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "short").write_text("ab")
    for name, message in (
        ("absent", r"cannot read .*absent \(No such file.*task\.text=FILE"),
        ("picture", r"is not text in UTF-8 \(invalid start byte at byte 0\)"),
        ("short", r"2 characters has 0 windows of 64: too few"),
    ):
        with pytest.raises(UserError, match=message):
            char_lm(0, str(tmp_path / name))
    with pytest.raises(UserError, match="between 1 and 62 for this text, got 63"):
        char_lm(0, characters=5000, train_size=63)


def test_a_python_without_sources_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(MachineError, match=r"no sources in .*say task\.text=FILE"):
        char_lm(0)


def test_no_more_of_a_text_is_read_than_its_characters_need(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    text = "aé€😀\r\n" * 2000
    file.write_bytes(text.encode())
    with file.open("r+b") as stream:
        stream.truncate(2**32)  # 4 GiB of zeros follow, that no disk holds
    for characters in range(300, 306):  # cut within a character, and within an end of line
        task = char_lm(0, str(file), characters=characters, context=16)
        assert task.facts["characters"] == characters
        expected = text.replace("\r\n", "\n")[:characters]
        assert task.facts["sha256"] == hashlib.sha256(expected.encode()).hexdigest()
    tracemalloc.start()
    char_lm(0, str(file), characters=300, context=16)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20
    with pytest.raises(
        UserError, match=r"long\.txt \(holds more than 1,073,741,824 bytes.*, or task\.characters=N"
    ):
        char_lm(0, str(file), characters=None)


@pytest.mark.parametrize("characters", [0, -5, 1.5])
def test_characters_are_counted_in_whole_numbers(characters: int) -> None:
    with pytest.raises(
        UserError, match=r"task\.characters must be a positive whole number, or null for all, got"
    ):
        char_lm(0, characters=characters)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, kind in (
        (str(tmp_path / "fifo"), "a FIFO"),
        ("/dev/zero", "a device"),
        (str(tmp_path), "a folder"),
    ):
        with pytest.raises(
            UserError,
            match=rf"cannot read {name} \(is {kind}, not a regular file\): say task\.text=FILE",
        ):
            char_lm(0, name)
