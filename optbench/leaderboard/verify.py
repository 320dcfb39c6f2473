"""Re-run a sample of what was contributed, and compare: trust, but look."""

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from optbench.launch import launch
from optbench.leaderboard.entrants import of_protocol, unlike
from optbench.leaderboard.runs import ENTRIES, Run, entries, read_run
from optbench.record import folder as record
from optbench.suite import FINAL, Suite

MARKS = "verified.json"  # beside the entries: what was re-run of which file, and how it compared


@dataclass(frozen=True)
class Check:
    """One run that was done again.

    Attributes:
        verdict: "same" (to the digits kept), "close" (within the spread of the entrant's own seeds, as another
            processor's rounding makes it), or what differs.
    """

    name: str
    verdict: str
    then: float
    now: float

    @property
    def agrees(self) -> bool:
        """Whether the contributed number can be trusted."""
        return self.verdict in ("same", "close")


def verify(suite: Suite, results: Path, sample: int, jobs: int, scratch: Path) -> dict[str, list[Check]]:
    """Re-run `sample` final runs of every contributed optimizer, write the marks, and return the comparisons.

    Which runs is drawn from the file's own hash, so that a contributor cannot know it before the file is final,
    and everyone checks the same ones.
    """
    found: dict[str, list[Check]] = {}
    marks = read_marks(results, suite)
    for file in entry_files(results, suite):
        runs = [run for run in entries(file) if isinstance(run, Run) and run.phase == FINAL]
        runs = [run for run in runs if run.task in suite.tasks and of_protocol(suite, run)]
        own = random.Random(_digest(file)).sample(sorted(runs, key=lambda run: run.name), min(sample, len(runs)))
        again = _again(file.stem, own, jobs, scratch)
        checks = [compare(suite, run, again.get(run.name), runs) for run in own]
        found[file.stem] = checks
        agreed = bool(checks) and all(check.agrees for check in checks)
        marks[file.stem] = {"file": _digest(file), "agreed": agreed, "runs": {c.name: c.verdict for c in checks}}
        record.write_whole(results / ENTRIES / suite.label / MARKS, json.dumps(marks, indent=2, sort_keys=True) + "\n")
    return found


def compare(suite: Suite, run: Run, again: Run | None, peers: Sequence[Run]) -> Check:
    """Compare a run with itself, done again."""
    metric = suite.tasks[run.task].metric
    then, now = run.last.get(metric, math.nan), again.last.get(metric, math.nan) if again else math.nan
    if again is None:
        return Check(run.name, "could not be run again", then, now)
    if any(again.settings.get(key, value) != value for key, value in run.settings.items()):
        return Check(run.name, "its command makes other settings of the optimizer", then, now)
    if difference := unlike(run, again):
        return Check(run.name, f"another {difference}", then, now)
    if run.status != again.status:
        return Check(run.name, f"{run.status} then, {again.status} now", then, now)
    if then == now or run.status == "diverged":
        return Check(run.name, "same", then, now)
    values = [r.last[metric] for r in peers if r.task == run.task and metric in r.last]
    close = abs(then - now) <= max(values) - min(values)
    return Check(run.name, "close" if close else f"{metric} {then:g} then, {now:g} now", then, now)


def unverified(results: Path, suite: Suite) -> dict[str, str]:
    """Say why a contributed optimizer is not verified, by name; those that are, are left out."""
    marks = read_marks(results, suite)
    found = {}
    for file in entry_files(results, suite):
        mark = marks.get(file.stem)
        if not isinstance(mark, dict) or mark.get("file") != _digest(file):
            found[file.stem] = "unverified: python -m optbench.leaderboard --verify re-runs a sample of it"
        elif mark.get("agreed") is not True:
            found[file.stem] = "re-run, and found to differ"
    return found


def read_marks(results: Path, suite: Suite) -> dict[str, Any]:
    """Return the marks of earlier verifications."""
    return record.read_json(results / ENTRIES / suite.label / MARKS) or {}


def entry_files(results: Path, suite: Suite) -> list[Path]:
    """Return the committed files of a suite, one an optimizer."""
    return sorted(path for path in (results / ENTRIES / suite.label).glob("*.jsonl") if not path.is_symlink())


def _again(who: str, runs: Sequence[Run], jobs: int, scratch: Path) -> Mapping[str, Run]:
    commands = [[*run.command, "wandb.mode=disabled", "picture=false"] for run in runs]
    by_command = {tuple(command): run.name for command, run in zip(commands, runs, strict=True)}
    found = {}
    bar = track(launch(commands, jobs, results=scratch), who, total=len(commands), console=Console(stderr=True))
    for finished in bar:
        if finished.folder is not None and (again := read_run(finished.folder)) is not None:
            found[by_command[finished.overrides]] = again
    return found


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
