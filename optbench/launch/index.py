"""The index of the runs that a command has made: a line each, with overrides and folder."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, ConfigDict, Field

from optbench.boundary import LAX, ShapeError, Text, UnreadableError, read_text, shaped_text

INDEX = "runs.jsonl"
LARGEST_INDEX_BYTES = 2**26


def _one_folder(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError("the name of one folder")
    return name


@dataclass(frozen=True)
class IndexLine:
    """One command and the name of its run folder."""

    __pydantic_config__: ClassVar[ConfigDict] = LAX

    command: Annotated[str, Field(max_length=2**16)]
    folder: Annotated[Text, AfterValidator(_one_folder)]


class Index:
    """Names of run folders by command, kept in a file that several processes may add to."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one; say what in it is no line of an index.

        A last line that was cut short is cut off: its run is found again by its command.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
        folders, passed_over = read_index(path)
        for line in passed_over:
            print(f"optbench: passed over {line}", file=sys.stderr)
        self._folders = dict(folders)

    def folder(self, command: Sequence[str]) -> str | None:
        """Return the name of a command's run folder, None if it has not ended yet."""
        return self._folders.get(" ".join(command))

    def add(self, command: Sequence[str], folder: str) -> None:
        """Write a line."""
        text = " ".join(command)
        self._folders[text] = folder
        with self._path.open("a") as stream:
            stream.write(json.dumps({"command": text, "folder": folder}) + "\n")


def read_index(path: Path) -> tuple[Mapping[str, str], list[str]]:
    """Return the folders by command, and the reason for each line that was passed over.

    The command of a line that was passed over is given again. A last line without its end counts as
    not written.
    """
    try:
        text = read_text(path, LARGEST_INDEX_BYTES)
    except UnreadableError as why:
        return {}, [] if str(why) == "missing" else [f"{path.name}: {why}"]
    folders, passed_over = {}, []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            entry = shaped_text(IndexLine, line)
        except ShapeError as why:
            passed_over.append(f"{path.name}, line {number}: {why}")
        else:
            folders[entry.command] = entry.folder
    return folders, passed_over
