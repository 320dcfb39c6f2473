"""Which entries have been verified: known by the SHA-256 of their file.

A results folder, which anyone may have sent, cannot bring marks along. They are read from two
places:

- `verified.json` beside this file: part of the code, written by CI on the main branch and trusted
  as the code is;
- the user's own state folder, for what was re-run on this machine.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from filelock import FileLock
from pydantic import ConfigDict, Field

from optbench.boundary import STRICT, ShapeError, Text, UnreadableError, read_json, shaped
from optbench.errors import UserError
from optbench.paths import state_folder
from optbench.record.folder import write_whole

SHIPPED = Path(__file__).resolve().parent / "verified.json"
LARGEST_MARKS_BYTES = 2**26
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Mark:
    """How one file compared with what its commands gave again.

    Attributes:
        entry: Which it was, for people: `SUITE/OPTIMIZER`.
        agreed: Whether every run that was done again agreed.
        finals: How many final runs the file has.
        runs: The verdict on each run that was done again, by name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    entry: Text
    agreed: bool
    finals: Annotated[int, Field(ge=0)]
    runs: Mapping[Text, Text]


def own_marks() -> Path:
    """Return the file of the marks that this user has made.

    Raises:
        UserError: If there is no home folder to keep it in.
    """
    if (folder := state_folder()) is None:
        raise UserError(
            "there is no home folder to keep marks in: set XDG_STATE_HOME to a folder of yours"
        )
    return folder / "verified.json"


def read_marks() -> dict[str, Mark]:
    """Return every mark by the digest of its file; the user's go before those of optbench."""
    return _read(SHIPPED) | _read(own_marks())


def add_mark(path: Path, digest: str, mark: Mark) -> None:
    """Add a mark to a file of them, or replace the one on the same entry file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        marks = {key: asdict(one) for key, one in (_read(path) | {digest: mark}).items()}
        write_whole(path, json.dumps(marks, indent=1, sort_keys=True) + "\n")


def _read(path: Path) -> dict[str, Mark]:
    try:
        return shaped(
            dict[Digest, Mark],
            read_json(Path(os.path.realpath(path)), LARGEST_MARKS_BYTES),
            str(path),
        )
    except UnreadableError as why:
        if str(why) == "missing":
            return {}
        raise UserError(
            f"the marks of what has been verified cannot be read: {path}: {why}"
        ) from why
    except ShapeError as why:
        raise UserError(f"the marks of what has been verified cannot be read: {why}") from why
