"""Committed files, `entries/SUITE/OPTIMIZER.jsonl`: a line for each run of one optimizer."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from optbench.boundary import ShapeError, UnreadableError, printable, read_bytes
from optbench.leaderboard.run_line import Run, read_line

ENTRIES = "entries"
LARGEST_ENTRY_BYTES, LARGEST_LINE = 2**26, 2**20
MOST_LINES, MOST_REASONS = 20_000, 20


@dataclass
class Entry:
    """One committed file.

    Attributes:
        label: Folder that it lies in: a suite and its version.
        optimizer: Stem of its name, and the optimizer of every line.
        digest: SHA-256 of its bytes, empty where they cannot be read.
        runs: The lines that are runs.
        passed_over: Why the others are none.
    """

    label: str
    optimizer: str
    digest: str = ""
    runs: list[Run] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Where it lies, for people."""
        return printable(f"{self.label}/{self.optimizer}.jsonl")


def read_entries(results: Path, label: str = "*") -> list[Entry]:
    """Read the committed files of one suite, or of all."""
    return [read_entry(file) for file in sorted((results / ENTRIES).glob(f"{label}/*.jsonl"))]


def read_entry(file: Path) -> Entry:
    """Read one file; a line that is no run of its suite and optimizer is passed over, with why."""
    entry = Entry(file.parent.name, file.stem)
    try:
        content = _content(file)
    except UnreadableError as why:
        entry.passed_over.append(str(why))
        return entry
    entry.digest = hashlib.sha256(content).hexdigest()
    reasons = list(_read_lines(entry, content))
    entry.passed_over = reasons[:MOST_REASONS]
    if more := len(reasons) - MOST_REASONS:
        entry.passed_over += [f"and {more} more lines"] if more > 0 else []
    return entry


def read_digests(results: Path, label: str) -> dict[str, str]:
    """Return the digest of each committed file of a suite, by its optimizer; no line is read.

    The digest is empty as for `Entry`.
    """
    digests = {}
    for file in sorted((results / ENTRIES).glob(f"{label}/*.jsonl")):
        try:
            digests[file.stem] = hashlib.sha256(_content(file)).hexdigest()
        except UnreadableError:
            digests[file.stem] = ""
    return digests


def _content(file: Path) -> bytes:
    if file.parent.is_symlink():
        raise UnreadableError("in a folder that is a link")
    return read_bytes(file, LARGEST_ENTRY_BYTES)


def _read_lines(entry: Entry, content: bytes) -> Iterator[str]:
    """Fill the entry with its runs, and yield why a line is none."""
    names: set[str] = set()
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        if number > MOST_LINES:
            yield f"it has more than {MOST_LINES} lines"
            return
        try:
            run = _run(entry, line)
            if run.name in names:
                raise UnreadableError(f"a second run is called {run.name}")
        except (UnreadableError, ShapeError) as why:
            yield f"line {number}: {why}"
        else:
            names.add(run.name)
            entry.runs.append(run)


def _run(entry: Entry, line: bytes) -> Run:
    if len(line) > LARGEST_LINE:
        raise UnreadableError(f"more than {LARGEST_LINE // 2**20} MiB")
    try:
        run = read_line(line.decode())
    except UnicodeDecodeError as why:
        raise UnreadableError("not UTF-8") from why
    if run.optimizer != entry.optimizer:
        raise UnreadableError(
            f"of the optimizer {run.optimizer}, which has no place in {entry.name}"
        )
    if run.label != entry.label:
        raise UnreadableError(f"of the suite {run.label}, which has no place in {entry.name}")
    return run
