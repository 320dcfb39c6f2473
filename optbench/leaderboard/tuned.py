"""Where tuning ended: at the edge of what was tried, or nowhere, and what is to blame for that."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench import metrics
from optbench.boundary import UnreadableError, printable, read_text
from optbench.errors import UserError
from optbench.leaderboard.entrants import Entrant, selecting_value
from optbench.leaderboard.run_line import Run
from optbench.protocol.suite import Suite

MORE_POINTS = "more_points"
"""Folder of results with `SUITE-vN.csv`: what more points of the same search spaces gave."""
HEAD = ("task", "optimizer", "space", "point", "select", "train_error", "settings")
DECLARED = "declared"
"""What that table calls the search space that the optimizer's own YAML declares."""
LEARNT = 0.01  # training error of a run that has learnt its training set by heart


@dataclass(frozen=True)
class Tuned:
    """The best tuning point of one entrant on one task.

    Attributes:
        optimizer: Name of the entrant.
        task: Name of the task.
        point: Number of the best point, by `select`.
        value: Its mean `select` over the tuning seeds.
        settings: What the point sets, by the path below `optimizer`.
        at_edge: Settings with the least or greatest of all values tried, with which of the two.
        reached: How many points reach the easiest target of `select`.
        learnt: How many points fit the training set: a training error of at most 1 %; None where
            none is measured.
    """

    optimizer: str
    task: str
    point: int
    value: float
    settings: Mapping[str, float]
    at_edge: Mapping[str, str]
    reached: int
    learnt: int | None


@dataclass(frozen=True)
class MorePoints:
    """What more points of a search space gave one optimizer on one task.

    Attributes:
        space: Name of the search space: `declared`, or another.
        count: How many were tried, the suite's among them.
        first: Number of the first that reached the easiest target, counted from 1; None for none.
    """

    space: str
    count: int
    first: int | None


def tuned(suite: Suite, entrant: Entrant) -> list[Tuned]:
    """Return the best point on each task that is tuned on."""
    return [_tuned(suite, entrant, task) for task in suite.tuned]


def _tuned(suite: Suite, entrant: Entrant, task: str) -> Tuned:
    runs = [entrant.tuning[task, point] for point in range(suite.points)]
    values = [selecting_value(suite, of_point) for of_point in runs]
    settings = [point_settings(of_point[0]) for of_point in runs]
    best = min(range(suite.points), key=lambda point: (values[point], point))
    return Tuned(
        optimizer=entrant.name,
        task=task,
        point=best,
        value=values[best],
        settings=settings[best],
        at_edge=_at_edge(settings, best),
        reached=sum(value <= suite.tasks[task].targets[0] for value in values),
        learnt=_learnt([run for of_point in runs for run in of_point]),
    )


def point_settings(run: Run) -> dict[str, float]:
    """Return the numbers that a run's command sets below `optimizer`: where its point lies."""
    settings = {}
    for word in run.command:
        key, _, text = word.partition("=")
        if key.startswith("optimizer."):
            try:
                settings[key.removeprefix("optimizer.")] = float(text)
            except ValueError:
                continue  # a choice by name has no edge
    return settings


def _at_edge(settings: Sequence[Mapping[str, float]], best: int) -> dict[str, str]:
    """Which settings of the best point no other point exceeds, or none falls below."""
    edges = {}
    for key, value in settings[best].items():
        tried = {own[key] for own in settings if key in own}
        if len(tried) > 2 and value in (min(tried), max(tried)):
            edges[key] = "least" if value == min(tried) else "greatest"
    return edges


def _learnt(runs: Sequence[Run]) -> int | None:
    errors = [run.last[metrics.TRAIN_ERROR] for run in runs if metrics.TRAIN_ERROR in run.last]
    return sum(error <= LEARNT for error in errors) if errors else None


Place = tuple[str, str]  # task and optimizer


def read_more_points(results: Path, suite: Suite) -> dict[Place, list[MorePoints]]:
    """Return what more points gave, by (task, optimizer); nothing where nobody has tried.

    The file has a line a run, under `HEAD`: `point` counts from 0, `select` is empty for a
    divergence. `python -m perf.more_points` writes it.

    Raises:
        UserError: If the file is there, and is no such table.
    """
    file = results / MORE_POINTS / f"{suite.label}.csv"
    try:
        text = read_text(file)
    except UnreadableError as why:
        if str(why) == "missing":
            return {}
        raise UserError(f"cannot read {printable(str(file))}: {why}") from why
    values: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    try:
        for row in csv.DictReader(io.StringIO(text)):
            value = float(row["select"]) if row["select"] else math.inf
            values[row["task"], row["optimizer"], row["space"]][int(row["point"])] = value
    except (KeyError, TypeError, ValueError, csv.Error) as why:
        said = printable(f"{file} is not a table of tuning points: {why}")
        raise UserError(said) from why
    found: dict[Place, list[MorePoints]] = defaultdict(list)
    for (task, optimizer, space), by_point in sorted(values.items()):
        if task in suite.tasks and sorted(by_point) == list(range(len(by_point))):
            target = suite.tasks[task].targets[0]
            found[task, optimizer].append(_more(space, by_point, target))
    return dict(found)


def _more(space: str, by_point: Mapping[int, float], target: float) -> MorePoints:
    reached = [point for point, value in by_point.items() if value <= target]
    return MorePoints(space, len(by_point), min(reached) + 1 if reached else None)
