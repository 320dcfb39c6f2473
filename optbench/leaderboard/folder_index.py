"""What run folders held when they were last read, so that a board need not read them again.

The index is a file of this user's own (`$XDG_STATE_HOME/optbench/boards/`), one a results folder:
nobody can bring one along in a results folder. It only saves time. Nothing in it is used unless

- the same code wrote it (`code_digest`);
- the line is whole: it begins with the SHA-256 of the rest;
- no file of the folder has changed: same device, inode, size, and times of change, to the
  nanosecond. The time of the last change of an inode cannot be set back by a program.

A file that changed in the two seconds before it was read is not entered: within the tick of a file
system's clock it might change once more and look the same.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

from optbench.paths import state_folder
from optbench.record import folder as record
from optbench.record.durable import write_whole

READ = (
    record.CONFIG,
    record.SUMMARY,
    record.PROVENANCE,
    record.METRICS,
    record.TIMINGS,
    record.DIGESTS,
)
"""Files of a run folder that the board reads."""
TICK_SECONDS = 2.0
LARGEST_INDEX_BYTES = 2**31
READERS = (
    "leaderboard/folder_index.py",
    "leaderboard/run_folders.py",
    "leaderboard/run_line.py",
    "record/folder.py",
    "record/later_keys.py",
    "record/problem.py",
    "record/sources.py",
    "metrics.py",
    "boundary/files.py",
    "boundary/shape.py",
    "boundary/text.py",
)
"""Source files that decide what a folder is read as."""


@dataclass
class FolderIndex:
    """Lines by folder name; see the module.

    Attributes:
        path: File of the index; None keeps nothing.
        kind: What the lines are, such as `runs of a suite`; an index of another kind is not used.
    """

    path: Path | None
    kind: str
    _old: dict[str, tuple[str, str]] = field(default_factory=dict)
    _new: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def opened(cls, path: Path | None, kind: str) -> "FolderIndex":
        """Read an index; what is not whole, or was written by other code, is left out."""
        index = cls(path, kind)
        if path is not None:
            index._old = _read(path, index._head())
        return index

    def find(self, name: str, seen: str) -> str | None:
        """Return what a folder held, None if that is not known for certain.

        Args:
            name: Name of the folder.
            seen: Its `signature` now.
        """
        known = self._old.get(name)
        if known is None or known[0] != seen:
            return None
        self._new[name] = known
        return known[1]

    def enter(self, name: str, seen: str, latest: float, text: str) -> None:
        """Remember what a folder held, unless it has only just changed.

        Args:
            name: Name of the folder.
            seen: Its `signature` before it was read.
            latest: Time of its latest change.
            text: What it held, on one line.
        """
        if latest < time.time() - TICK_SECONDS:
            self._new[name] = (seen, text)

    def close(self) -> None:
        """Write the index if it has changed.

        Raises:
            OSError: If it cannot be written.
        """
        if self.path is None or self._new == self._old:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [self._head()]
        for name, (seen, text) in self._new.items():
            # a name with a tab or a line break would not be found again: it is read each time
            if name.isprintable():
                rest = f"{name}\t{seen}\t{text}"
                lines.append(f"{_digest(rest.encode())}\t{rest}")
        write_whole(self.path, "\n".join(lines) + "\n")

    def _head(self) -> str:
        return f"optbench folder index\t{self.kind}\t{code_digest()}"


def signature(folder: Path | str) -> tuple[str, float]:
    """Return what identifies the state of a run folder's files, and the time of the last change."""
    place = os.fspath(folder)
    try:
        own = os.lstat(place)
    except (OSError, ValueError):
        parts = ["-"]
    else:
        # a folder's own times and size change with files that are not read
        parts = [f"{own.st_dev}/{own.st_ino}/{own.st_mode}"]
    times = [0]
    for name in READ:
        try:
            found = os.lstat(f"{place}/{name}")
        except (OSError, ValueError):
            parts.append("-")
            continue
        modified, changed = found.st_mtime_ns, found.st_ctime_ns
        parts.append(f"{found.st_ino}/{found.st_mode}/{found.st_size}/{modified}/{changed}")
        times += (modified, changed)
    return " ".join(parts), max(times) / 1e9


def index_file(results: Path, kind: str) -> Path | None:
    """Return where the index of a results folder is kept; None without a home folder."""
    if (home := state_folder()) is None:
        return None
    name = hashlib.sha256(f"{kind}\n{os.path.realpath(results)}".encode()).hexdigest()[:16]
    return home / "boards" / f"{name}.index"


@cache
def code_digest() -> str:
    """SHA-256 of the code that reads run folders: another code may read them as something else."""
    package = files("optbench")
    code = hashlib.sha256()
    for name in READERS:
        code.update((package / name).read_bytes())
    return code.hexdigest()[:16]


def _read(path: Path, head: str) -> dict[str, tuple[str, str]]:
    with contextlib.suppress(OSError):
        if path.stat().st_size <= LARGEST_INDEX_BYTES:
            first, *lines = path.read_bytes().split(b"\n")
            if first == head.encode():
                return dict(_whole(lines))
    return {}


def _whole(lines: Iterable[bytes]) -> Iterable[tuple[str, tuple[str, str]]]:
    for line in lines:
        digest, _, rest = line.partition(b"\t")
        if digest.decode("ascii", "replace") != _digest(rest):
            continue
        name, seen, text = rest.decode().split("\t", 2)
        yield name, (seen, text)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
