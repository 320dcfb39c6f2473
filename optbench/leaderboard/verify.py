"""Run again what was contributed, and compare."""

import contextlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench.boundary import ShapeError, UnreadableError
from optbench.launch.launcher import Launcher
from optbench.leaderboard.entrants import of_protocol, unlike
from optbench.leaderboard.entries import Entry, read_digests
from optbench.leaderboard.marks import Mark, add_mark, read_marks
from optbench.leaderboard.run_folders import read_run
from optbench.leaderboard.run_line import Run
from optbench.protocol.suite import FINAL, Suite

UNVERIFIED = "unverified: `python -m optbench.leaderboard verify=unverified` re-runs it"


@dataclass(frozen=True)
class Check:
    """One run that was done again.

    Attributes:
        name: Name of the run.
        verdict: "same" (to the digits kept), "close" (within the spread of the seeds, as another
            processor's rounding makes it), or what differs.
        then: Ranked metric that was contributed.
        now: The same of the run that was done again; NaN if it could not be.
    """

    name: str
    verdict: str
    then: float
    now: float

    @property
    def agrees(self) -> bool:
        """Whether the contributed number can be trusted."""
        return self.verdict in ("same", "close")


def verify(
    suite: Suite,
    entries: Sequence[Entry],
    sample: int | None,
    launcher: Launcher,
    scratch: Path,
    marks: Path,
) -> dict[str, list[Check]]:
    """Make final runs of contributed files again, mark each file, and return the comparisons.

    Args:
        suite: The protocol.
        entries: The files.
        sample: How many finals of each, drawn from the machine's own randomness, which no
            contributor can foresee; None for all.
        launcher: What makes the runs, under `scratch`.
        scratch: Folder to run in.
        marks: File to add the marks to.
    """
    verified: dict[str, list[Check]] = {}
    for entry in entries:
        finals = [
            run
            for run in entry.runs
            if run.phase == FINAL and run.task in suite.tasks and of_protocol(suite, run)
        ]
        drawn = finals
        if sample is not None:
            drawn = secrets.SystemRandom().sample(finals, min(sample, len(finals)))
        again = _again(entry.optimizer, drawn, launcher, scratch)
        checks = [
            compare(suite, run, again.get(run.name), _peers(run, finals, again)) for run in drawn
        ]
        verified[entry.optimizer] = checks
        agreed = bool(checks) and all(check.agrees for check in checks)
        verdicts = {check.name: check.verdict for check in checks}
        mark = Mark(f"{entry.label}/{entry.optimizer}", agreed, len(finals), verdicts)
        if entry.digest:
            add_mark(marks, entry.digest, mark)
    return verified


def _peers(run: Run, finals: Sequence[Run], again: Mapping[str, Run]) -> Sequence[Run]:
    """The seeds whose spread "close" is measured by: those done again, if there are two or more."""
    same_task = [other for other in again.values() if other.task == run.task]
    return same_task if len(same_task) > 1 else finals


def compare(suite: Suite, run: Run, again: Run | None, peers: Sequence[Run]) -> Check:
    """Compare a run with itself, done again."""
    metric = suite.tasks[run.task].metric
    then = run.last.get(metric, math.nan)
    if again is None:
        return Check(run.name, "could not be run again", then, math.nan)
    now = again.last.get(metric, math.nan)
    verdict = _difference(run, again)
    if not verdict and (then == now or run.status == "diverged"):
        verdict = "same"
    if not verdict:
        values = [r.last[metric] for r in peers if r.task == run.task and metric in r.last]
        close = bool(values) and abs(then - now) <= max(values) - min(values)
        verdict = "close" if close else f"{metric} {then:g} then, {now:g} now"
    return Check(run.name, verdict, then, now)


def _difference(run: Run, again: Run) -> str:
    """Say in what a run differs from itself, done again, beside the number; empty if in nothing."""
    if any(again.settings.get(key, value) != value for key, value in run.settings.items()):
        return "its command makes other settings of the optimizer"
    if difference := unlike(run, again):
        return f"another {difference}"
    if run.status != again.status:
        return f"{run.status} then, {again.status} now"
    return ""


def unverified(results: Path, suite: Suite) -> dict[str, str]:
    """Say why a contributed optimizer is not verified, by name; those that are, are left out."""
    marks = read_marks()
    reasons = {}
    for optimizer, digest in read_digests(results, suite.label).items():
        mark = marks.get(digest)
        if mark is None:
            reasons[optimizer] = UNVERIFIED
        elif not mark.agreed:
            reasons[optimizer] = "re-run, and found to differ"
    return reasons


def _again(who: str, runs: Sequence[Run], launcher: Launcher, scratch: Path) -> Mapping[str, Run]:
    """Make the runs again, and return those that could be made, by their names."""
    from optbench.launch.index import INDEX  # brings omegaconf, and most boards verify nothing
    from optbench.launch.runs import Runs

    commands = {run.name: (*run.command, "wandb.mode=disabled", "picture=false") for run in runs}
    with Runs(launcher, scratch, scratch / INDEX, len(commands)) as made:
        made.make(who, list(commands.values()))
    again = {}
    for name, command in commands.items():
        if (folder := made.folder(command)) is None:
            continue
        with contextlib.suppress(UnreadableError, ShapeError):  # then it "could not be run again"
            if (run := read_run(folder)) is not None:
                again[name] = run
    return again
