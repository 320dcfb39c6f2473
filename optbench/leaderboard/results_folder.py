"""All that a results folder holds: runs that were made in it, and runs that were contributed.

Whatever it holds, reading it harms nothing.
"""

import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from optbench.boundary import ShapeError, UnreadableError, printable
from optbench.boundary.counting import agreeing
from optbench.leaderboard.entries import Entry, read_entries
from optbench.leaderboard.folder_index import FolderIndex, index_file, signature
from optbench.leaderboard.marks import read_marks
from optbench.leaderboard.run_folders import read_run
from optbench.leaderboard.run_line import Run, read_local, write_local
from optbench.processes import cores
from optbench.record.progress import work

Reason = tuple[str, str]
Key = tuple[str, str]  # of a run: its suite and its name
OF_A_SUITE, ANY = "runs of a suite", "any runs"  # kinds of index
A_BATCH = 50  # folders that a process reads at a time
WORTH_PROCESSES = 500  # folders: to start processes takes as long as to read some hundred


class Results(NamedTuple):
    """What a results folder holds.

    Attributes:
        runs: Every run of a suite.
        passed_over: (name, why) of what could not be read.
        of_no_suite: How many other runs there are.
    """

    runs: list[Run]
    passed_over: list[Reason]
    of_no_suite: int


def read_results(results: Path) -> Results:
    """Read the runs of suites in a results folder.

    A run that is in a committed file and has its folder here too is read from its folder.
    """
    entries = read_entries(results)
    reasons = [(entry.name, why) for entry in entries for why in entry.passed_over]
    reasons += _claimed_twice(entries)
    runs = {_key(run): run for entry in entries for run in entry.runs}
    texts, unread = _read_texts(results, any_run=False)
    local = read_local(texts)
    runs |= {_key(run): run for run in local}
    return Results(list(runs.values()), reasons + unread, len(texts) - len(local))


def read_folders(results: Path, any_run: bool = False) -> tuple[list[Run], list[Reason]]:
    """Return the runs under `runs/` of a results folder, and (name, why) of what was passed over.

    Args:
        results: The results folder.
        any_run: Whether runs that belong to no suite are among them.
    """
    texts, reasons = _read_texts(results, any_run)
    return read_local(texts), reasons


def _read_texts(results: Path, any_run: bool) -> tuple[list[str], list[Reason]]:
    """What `write_local` writes of each folder, from the index where that knows it."""
    kind = ANY if any_run else OF_A_SUITE
    index = FolderIndex.opened(index_file(results, kind), kind)
    above = results / "runs"
    states = {name: signature(f"{above}/{name}") for name in _names(above)}
    texts = {name: index.find(name, seen) for name, (seen, _) in states.items()}
    reasons = []
    unknown = [above / name for name, text in texts.items() if text is None]
    for folder, text, why in _read_each(unknown, any_run):
        if why:
            reasons.append((printable(folder.name), why))
            continue
        texts[folder.name] = text
        index.enter(folder.name, *states[folder.name], text)
    try:
        index.close()
    except OSError as why:
        print(
            f"the index could not be written, so the next board takes as long: {why.strerror}",
            file=sys.stderr,
        )
    return [text for text in texts.values() if text is not None], reasons


def _names(above: Path) -> list[str]:
    """What lies in a folder, in order, but for what is hidden; nothing if it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(above) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return []


def _read_each(folders: Sequence[Path], any_run: bool) -> Iterator[tuple[Path, str, str]]:
    """Read folders, with a bar where it takes seconds: (folder, its run on a line, or why not)."""
    batches = [folders[i : i + A_BATCH] for i in range(0, len(folders), A_BATCH)]
    read = partial(_read_batch, any_run=any_run)
    many = len(folders) >= WORTH_PROCESSES

    def with_bar(
        done: Iterable[list[tuple[Path, str, str]]],
    ) -> Iterator[list[tuple[Path, str, str]]]:
        with work("reading new runs", len(folders), "folders") as told:
            for batch in done:
                yield batch
                told.advance(len(batch))

    if many and cores() > 1:
        with ProcessPoolExecutor(cores()) as pool:
            for batch in with_bar(pool.map(read, batches)):
                yield from batch
    else:
        for batch in with_bar(map(read, batches)):
            yield from batch


def _read_batch(folders: Sequence[Path], any_run: bool) -> list[tuple[Path, str, str]]:
    return [_read_one(folder, any_run) for folder in folders]


def _read_one(folder: Path, any_run: bool) -> tuple[Path, str, str]:
    try:
        return folder, write_local(read_run(folder, any_run)), ""
    except (UnreadableError, ShapeError) as why:
        return folder, "", str(why)


def _key(run: Run) -> Key:
    return run.label, run.name


def _claimed_twice(entries: list[Entry]) -> Iterator[Reason]:
    """Take away the runs that two files claim, and say so of each file.

    A file that has been verified keeps its runs.
    """
    shared = _shared(entries)
    marks = read_marks() if shared else {}
    for entry in entries if shared else []:
        if (mark := marks.get(entry.digest)) is not None and mark.agreed:
            continue
        lost = [run for run in entry.runs if _key(run) in shared]
        if lost:
            entry.runs = [run for run in entry.runs if _key(run) not in shared]
            claimants = {other.name for run in lost for other in shared[_key(run)]} - {entry.name}
            others = ", ".join(sorted(claimants))
            yield (
                entry.name,
                (
                    f"{len(lost)} of its runs {agreeing(len(lost), 'is', 'are')} in {others} "
                    f"too, such "
                    f"as {lost[0].name}"
                ),
            )


def _shared(entries: list[Entry]) -> dict[Key, list[Entry]]:
    """Return the runs that two or more files claim, with these files."""
    claimants: dict[Key, list[Entry]] = defaultdict(list)
    for entry in entries:
        for run in entry.runs:
            claimants[_key(run)].append(entry)
    return {key: files for key, files in claimants.items() if len(files) > 1}
