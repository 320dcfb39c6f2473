"""Which runs may be ranked together, and why the others may not."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optbench.boundary.counting import counted
from optbench.leaderboard.run_line import Run
from optbench.protocol.selection_rule import select
from optbench.protocol.suite import TUNE, Suite
from optbench.record.folder import FINISHED

# relative: the order of summation differs between processors and numbers of threads
INITIAL_LOSS_TOLERANCE = 1e-4
Refusals = dict[str, list[str]]
Fingerprints = Mapping[tuple[str, str, int], Run]
"""By (task, phase, seed): a run with the usual configuration, data and initial weights."""


@dataclass(frozen=True)
class Entrant:
    """An optimizer with every run that the protocol asks of it.

    Attributes:
        name: Name of the optimizer.
        points: Number of the selected point, by task.
        tuning: Runs by (task, point), one for each seed.
        finals: Runs by task, one for each seed.
    """

    name: str
    points: Mapping[str, int]
    tuning: Mapping[tuple[str, int], Sequence[Run]]
    finals: Mapping[str, Sequence[Run]]


@dataclass
class Field:
    """Who is ranked, and who is not.

    Attributes:
        entrants: Those who are ranked, in alphabetic order.
        refused: Reasons against an optimizer, by its name: it is listed, not ranked.
        alarms: A line for each result that beats a provable floor.
        left_out: (name, why) of what could not be read, or is of no suite.
    """

    entrants: list[Entrant] = field(default_factory=list)
    refused: Refusals = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def admit(suite: Suite, runs: Iterable[Run], unverified: Mapping[str, str] | None = None) -> Field:
    """Sort the runs of one suite into entrants that are alike, and reasons against the rest.

    Args:
        suite: The protocol.
        runs: Runs of any suite; those of another name are passed over.
        unverified: Why a contributed optimizer is not verified, by name.
    """
    unverified = unverified or {}
    of_suite = [run for run in runs if run.suite == suite.name]
    usual = _usual(suite, of_suite, unverified)
    accepted: dict[str, list[Run]] = defaultdict(list)
    reasons: dict[str, list[str]] = defaultdict(list)
    for run in of_suite:
        if why := _against(suite, run, usual):
            reasons[run.optimizer].append(why)
        else:
            accepted[run.optimizer].append(run)
    admitted = Field()
    for name in sorted(accepted.keys() | reasons.keys()):
        entrant, why_not = _entrant(suite, name, accepted[name])
        if name in unverified and not all(run.local for run in accepted[name]):
            why_not.append(unverified[name])
        if entrant is not None and not why_not:
            admitted.entrants.append(entrant)
            admitted.alarms += _alarms(suite, entrant)
        if why_not or reasons[name]:
            admitted.refused[name] = [*_counted(reasons[name]), *why_not]
    return admitted


def _usual(suite: Suite, runs: Sequence[Run], unverified: Mapping[str, str]) -> Fingerprints:
    """Return the fingerprints that runs are held against.

    A file that nobody has verified has no vote on what is usual, for a few of them could outvote
    all others. It counts only where there is no other run.
    """
    trusted = [run for run in runs if run.local or run.optimizer not in unverified]
    if len(trusted) == len(runs):
        return _usual_fingerprints(suite, runs)
    return _usual_fingerprints(suite, runs) | _usual_fingerprints(suite, trusted)


def _against(suite: Suite, run: Run, usual: Fingerprints) -> str:
    """Say why a run is not of this protocol, or is not like the others; empty if it is."""
    if why := _against_its_place(suite, run) or _against_its_end(run):
        return why
    if run.checked is False:
        return (
            f"unverified data: those of {run.task} do not have, or were not held to, their "
            "published checksums"
        )
    if run.local is False and not of_protocol(suite, run):
        return f"whose command is not the protocol's ({run.phase}, {run.task})"
    if difference := unlike(run, usual[run.task, run.phase, run.seed]):
        return f"another {difference} on {run.task} than the other entrants have"
    metric = suite.tasks[run.task].metric
    if run.status == "done" and metric not in run.last:
        return f"without {metric} on {run.task}"
    return ""


def _against_its_place(suite: Suite, run: Run) -> str:
    """Say why the protocol does not ask for a run; empty if it does."""
    if run.version != suite.version:
        return f"of version {run.version}, and this board is of version {suite.version}"
    if run.digest != suite.digest[: len(run.digest)] or not run.digest:
        return f"of another {suite.name} than this one, though its version is {run.version} too"
    seeds = suite.tuning_seeds if run.phase == TUNE else suite.final_seeds
    tasks = suite.tuned if run.phase == TUNE else list(suite.tasks)
    if run.task not in tasks or run.seed not in seeds or not 0 <= run.point < suite.points:
        place = f"{run.phase}, {run.task}, point {run.point}, seed {run.seed}"
        return f"not asked for by the protocol ({place})"
    return ""


def _against_its_end(run: Run) -> str:
    """Say in which way a run has not come to its end; empty if it has."""
    if run.status not in FINISHED:
        return f"not finished ({run.status})"
    if run.status == "done" and run.step != run.steps:
        return f"done after {run.step} of {counted(run.steps, 'step')}"
    return ""


_PLAIN = re.compile(r"optimizer(\.(?!_)\w+)+=[\w.+-]*")


def of_protocol(suite: Suite, run: Run) -> bool:
    """Say whether a run's command is the protocol's, but for settings of the optimizer.

    So a command from elsewhere can be given again: it names no class, no file and no interpolation.
    """
    point = [word for word in run.command if word.startswith("optimizer.")]
    command = suite.command(run.optimizer, run.task, run.phase, run.point, point, run.seed)
    return tuple(run.command) == command and all(_PLAIN.fullmatch(word) for word in point)


def unlike(run: Run, other: Run) -> str:
    """Name the part of the problem's fingerprint in which two runs differ; empty if in none."""
    if run.problem != other.problem:
        return "configuration (budget, model, data or schedule)"
    if run.data_hash != other.data_hash:
        return "data hash"
    if run.init_hash != other.init_hash:
        return "hash of the initial weights"
    if not math.isclose(run.initial_loss, other.initial_loss, rel_tol=INITIAL_LOSS_TOLERANCE):
        return "initial loss"
    return ""


def _usual_fingerprints(suite: Suite, runs: Iterable[Run]) -> dict[tuple[str, str, int], Run]:
    """Return a run with the fingerprint that most optimizers have, by (task, phase, seed)."""
    voters: dict[tuple[str, str, int], dict[tuple[str, ...], dict[str, Run]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for run in sorted(runs, key=lambda run: (run.optimizer, run.name)):
        if run.version == suite.version and run.digest == suite.digest[: len(run.digest)]:
            fingerprint = (run.problem, run.data_hash, run.init_hash, f"{run.initial_loss:.3g}")
            voters[run.task, run.phase, run.seed][fingerprint].setdefault(run.optimizer, run)
    return {
        place: next(iter(max(groups.values(), key=len).values()))
        for place, groups in voters.items()
        if any(groups)
    }


def _entrant(suite: Suite, name: str, runs: Sequence[Run]) -> tuple[Entrant | None, list[str]]:
    """Return the entrant and what speaks against ranking it."""
    places = Counter(run.place for run in runs)
    if twice := [place for place, count in places.items() if count > 1]:
        of = twice[0]
        place = f"{of.phase}, {of.task}, point {of.point}, seed {of.seed}"
        return None, [f"two runs fill one place ({place})"]
    tuning: dict[tuple[str, int], list[Run]] = defaultdict(list)
    finals: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        (tuning[run.task, run.point] if run.phase == TUNE else finals[run.task]).append(run)
    wanted = len(suite.tuned) * suite.points * len(suite.tuning_seeds)
    if (there := sum(map(len, tuning.values()))) < wanted:
        return None, [f"unfinished: {there} of {wanted} tuning runs"]
    points = selected(suite, tuning)
    for task, of_task in finals.items():
        if wrong := {run.point for run in of_task} - {points[task]}:
            return None, [
                f"reports point {min(wrong)} on {task}, where tuning selects point {points[task]}"
            ]
    wanted = len(suite.tasks) * len(suite.final_seeds)
    if (there := sum(map(len, finals.values()))) < wanted:
        return None, [f"unfinished: {there} of {wanted} final runs"]
    return Entrant(name, points, tuning, finals), []


def selected(suite: Suite, tuning: Mapping[tuple[str, int], Sequence[Run]]) -> dict[str, int]:
    """Return the point that tuning selects on every task: see `select`."""
    values = {
        task: [selecting_value(suite, tuning[task, point]) for point in range(suite.points)]
        for task in suite.tuned
    }
    return select(values, suite.held_out)


def selecting_value(suite: Suite, runs: Sequence[Run]) -> float:
    """Return the mean of `select` over the tuning seeds of one point; infinite if one diverged."""
    metric = suite.tasks[runs[0].task].select
    values = [
        math.inf if run.status == "diverged" else run.last.get(metric, math.inf) for run in runs
    ]
    return math.fsum(values) / len(values)


def _alarms(suite: Suite, entrant: Entrant) -> Iterable[str]:
    for task, runs in entrant.finals.items():
        floor, metric = suite.tasks[task].floor, suite.tasks[task].metric
        for run in runs:
            if floor is None or run.status != "done":
                continue
            if run.last[metric] < floor - suite.tasks[task].floor_slack:
                yield (
                    f"{entrant.name} has {metric} {run.last[metric]:g} on {task} (seed "
                    f"{run.seed}), below the {floor:g} that no learner can beat: test data have "
                    "leaked, or the measure is wrong"
                )


def _counted(reasons: Sequence[str]) -> list[str]:
    return [f"{counted(count, 'run')} {why}" for why, count in Counter(reasons).items()]
