"""The index of what a suite's tuner has run: a line a command, and the folder that it ended in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, ConfigDict, Field

from optbench.boundary import LAX, ShapeError, Text, UnreadableError, read_text, shaped_text

LARGEST_INDEX_BYTES = 2**26


def _one_folder(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError("the name of one folder")
    return name


@dataclass(frozen=True)
class IndexLine:
    """One command that has been given, and the name of its run folder."""

    __pydantic_config__: ClassVar[ConfigDict] = LAX

    command: Annotated[str, Field(max_length=2**16)]
    folder: Annotated[Text, AfterValidator(_one_folder)]


def read_index(path: Path) -> tuple[Mapping[str, str], list[str]]:
    """Return the run folder's name by the command, and why a line was passed over; its command is then given again.

    A last line without its end was cut short, and is as if not written.
    """
    try:
        text = read_text(path, LARGEST_INDEX_BYTES)
    except UnreadableError as why:
        return {}, [] if str(why) == "missing" else [f"{path.name}: {why}"]
    folders, passed_over = {}, []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            own = shaped_text(IndexLine, line)
        except ShapeError as why:
            passed_over.append(f"{path.name}, line {number}: {why}")
        else:
            folders[own.command] = own.folder
    return folders, passed_over
