"""All that a results folder holds: runs that were made in it, and runs that were contributed.

Whatever it holds, reading it harms nothing.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from optbench.boundary import ShapeError, UnreadableError, printable
from optbench.boundary.counting import agreeing
from optbench.leaderboard.entries import Entry, read_entries
from optbench.leaderboard.marks import read_marks
from optbench.leaderboard.run_folders import read_run
from optbench.leaderboard.run_line import Run
from optbench.record.progress import work

Reason = tuple[str, str]
Key = tuple[str, str]  # of a run: its suite and its name


def read_results(results: Path) -> tuple[list[Run], list[Reason]]:
    """Return every run of a suite in a results folder, and (name, why) of what was passed over.

    A run that is in a committed file and has its folder here too is read from its folder.
    """
    entries = read_entries(results)
    reasons = [(entry.name, why) for entry in entries for why in entry.passed_over]
    reasons += _claimed_twice(entries)
    runs = {_key(run): run for entry in entries for run in entry.runs}
    folders = sorted((results / "runs").glob("[!.]*"))
    with work("reading runs", len(folders), "folders") as told:
        for folder in folders:
            try:
                if (run := read_run(folder)) is not None:
                    runs[_key(run)] = run
            except (UnreadableError, ShapeError) as why:
                reasons.append((printable(folder.name), str(why)))
            told.advance()
    return list(runs.values()), reasons


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
