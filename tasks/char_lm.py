"""Next character of a text: Python's standard library, or any file."""

import codecs
import hashlib
import io
import platform
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from optbench.boundary.kinds import BelowOne, Count, Share, Size, Whole
from optbench.boundary.regular_files import open_regular, read_bytes
from optbench.data.splits import with_label_noise
from optbench.errors import MachineError, UserError
from optbench.seeds import generator
from optbench.task import Task, classification

MOST_BYTES = 2**30  # of a text that is taken whole


def char_lm(
    seed: int,
    text: str | None = None,
    characters: Count | None = 200_000,
    context: Size = 64,
    train_size: Count | None = None,
    val_share: BelowOne = 0.1,
    test_share: BelowOne = 0.1,
    split_seed: Whole = 0,
    label_noise: Share = 0.0,
) -> Task:
    """Predict each of `context` characters from those before; means are over characters.

    The text is cut into windows that do not overlap, shuffled, so that all splits are of one
    distribution. Inputs are tokens, shape (N, context); targets are the same, one further. Loss in
    nats a character.

    Args:
        seed: Seed of the run; only the label noise depends on it.
        text: A file in UTF-8; None for the modules of Python's standard library, in alphabetical
            order. They differ from one Python to the next: the record has the version and the
            SHA-256 of the text.
        characters: How much of the text, and no more of the file is read; None for all, up to 1
            GiB.
        context: Characters a window.
        train_size: Windows to train on; None for all that are left.
        val_share: Share of the windows to choose with.
        test_share: Share of the windows to report on.
        split_seed: Seed of the division into splits, the same for every run.
        label_noise: Share of the training targets replaced by another character.
    """
    if characters is not None and not (isinstance(characters, int) and characters >= 1):
        raise UserError(
            f"task.characters must be a positive whole number, or null for all, got {characters}"
        )
    path = None if text is None else Path(text).expanduser()
    content = _standard_library(characters) if path is None else _read(path, characters)
    alphabet = sorted(set(content))
    code = {character: i for i, character in enumerate(alphabet)}
    tokens = torch.tensor([code[character] for character in content])
    windows = (len(tokens) - 1) // context
    counts = {"val": round(val_share * windows), "test": round(test_share * windows)}
    available = windows - sum(counts.values())
    if min(val_share, test_share) < 0 or available < 1 or counts["test"] < 1:
        raise UserError(
            f"a text of {len(content)} characters has {windows} windows of {context}: too few for "
            f"task.val_share={val_share} and task.test_share={test_share}; give a longer text, or "
            "smaller shares or task.context"
        )
    size = available if train_size is None else train_size
    if not 1 <= size <= available:
        raise UserError(
            f"task.train_size must be between 1 and {available} for this text, got {train_size}"
        )
    order = torch.randperm(windows, generator=torch.Generator().manual_seed(split_seed))
    inputs, targets = (
        tokens[i : i + windows * context].reshape(windows, context)[order] for i in (0, 1)
    )
    noisy = with_label_noise(
        targets[:size], len(alphabet), label_noise, generator(seed, "label_noise")
    )
    splits = {"train": (inputs[:size], noisy)}
    splits |= _held_out(inputs, targets, available, counts)
    library = f"standard library of Python {platform.python_version()}"
    facts: dict[str, object] = {
        "source": library if text is None else "task.text",
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        "characters": len(content),
        "alphabet": len(alphabet),
    }
    return classification(splits, len(alphabet), "ce", facts=facts)


def _held_out(
    inputs: Tensor, targets: Tensor, first: int, counts: Mapping[str, int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Cut validation and test windows, one after the other from `first`; none where none is due."""
    splits = {}
    for name, count in counts.items():
        if count:
            splits[name] = inputs[first : first + count], targets[first : first + count]
        first += count
    return splits


def _standard_library(characters: Count | None) -> str:
    """First characters of the standard library's modules in alphabetical order; None for all."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts, length = [], 0
    for file in sorted(folder.glob("*.py")):
        if characters is not None and length >= characters:
            break
        parts.append(_read(file, None if characters is None else characters - length))
        length += len(parts[-1])
    if not parts:
        raise MachineError(f"this Python has no sources in {folder}: say task.text=FILE")
    return "".join(parts)


def _read(file: Path, characters: int | None) -> str:
    """Return a file's first characters, None for all, ends of lines as newlines; reads no more."""
    try:
        content, whole = _bytes(file, characters)
        decoder = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder("utf-8")(), translate=True
        )
        return decoder.decode(content, final=whole)[:characters]
    except OSError as why:
        shorter = ", or task.characters=N for its first N" if characters is None else ""
        raise UserError(
            f"cannot read {file} ({why.strerror}): say task.text=FILE{shorter}"
        ) from why
    except UnicodeDecodeError as why:
        raise UserError(
            f"{file} is not text in UTF-8 ({why.reason} at byte {why.start}): convert it first"
        ) from why


def _bytes(file: Path, characters: int | None) -> tuple[bytes, bool]:
    """Return enough bytes for so many characters, and whether that is the whole file."""
    if characters is None:
        return read_bytes(file, MOST_BYTES), True
    # UTF-8 has at most 4 bytes a character; one more for a \r whose \n is cut off
    most = 4 * (characters + 1)
    with open_regular(file) as stream:
        content = stream.read(most + 1)
    return content, len(content) <= most
