"""What is read off an entrant's final runs, task by task."""

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from statistics import median

import numpy as np

from optbench import metrics
from optbench.intervals import Interval
from optbench.leaderboard.entrants import Entrant
from optbench.leaderboard.run_line import Run
from optbench.protocol.suite import Suite
from optbench.statistics import Array, censored_median

SHARPNESS, DISTANCE = metrics.SHARPNESS, metrics.EDGE_DISTANCE
STEP, GRADIENTS, SECONDS = "step", metrics.GRADIENTS, metrics.TRAIN_SECONDS


@dataclass(frozen=True)
class Row:
    """One entrant on one task, over its final seeds.

    Attributes:
        optimizer: Name of the entrant.
        task: Name of the task.
        score: Scores of the ranked metric, −∞ where a run diverged, shape (S,).
        metrics: Median over the seeds by name, with least and greatest; infinite where a run
            diverged, NaN where it was not measured.
        hit_rate: Share of the runs that reached the suite's target.
        steps_to_target: Steps to the target, censored median over the seeds.
        gradients_to_target: The same for batch gradients.
        seconds_to_target: The same for seconds of training, without measuring.
        step_milliseconds: Training time of a step, median over the seeds.
        gradients_per_step: Batch gradients of a step, median over the seeds.
        peak_gib: Largest peak of memory: of the process on a CPU, of the GPU's memory on a GPU.
        state_mib: Largest memory that the optimizer keeps between steps.
        diverged: Share of the runs that diverged.
        point: Number of the point that was selected.
    """

    optimizer: str
    task: str
    score: list[float]
    metrics: dict[str, Interval]
    hit_rate: float
    steps_to_target: float
    gradients_to_target: float
    seconds_to_target: float
    step_milliseconds: float
    gradients_per_step: float
    peak_gib: float
    state_mib: float
    diverged: float
    point: int


CURVATURE = (SHARPNESS, DISTANCE)
AT_END = (
    metrics.TEST_LOSS,
    metrics.TEST_ERROR,
    metrics.VAL_LOSS,
    metrics.TRAIN_LOSS,
    metrics.GAP_LOSS,
    metrics.GAP_ERROR,
)


def row(suite: Suite, entrant: Entrant, task: str) -> Row:
    """Measure one entrant on one task."""
    runs = entrant.finals[task]
    target = suite.tasks[task].target
    reached = {
        unit: [cost_to_target(suite, run, target, unit) for run in runs]
        for unit in (STEP, GRADIENTS, SECONDS)
    }
    return Row(
        optimizer=entrant.name,
        task=task,
        score=[score(suite, run) for run in runs],
        metrics=_metrics(suite, runs),
        hit_rate=_share(map(math.isfinite, reached[STEP])),
        steps_to_target=censored_median(reached[STEP]),
        gradients_to_target=censored_median(reached[GRADIENTS]),
        seconds_to_target=censored_median(reached[SECONDS]),
        step_milliseconds=median(1000 * run.train_seconds / max(1, run.step) for run in runs),
        gradients_per_step=median(run.gradients / max(1, run.step) for run in runs),
        peak_gib=max(run.peak_gib for run in runs),
        state_mib=max(1024 * run.optimizer_gib for run in runs),
        diverged=_share(run.status == "diverged" for run in runs),
        point=entrant.points[task],
    )


def _share(these: Iterable[bool]) -> float:
    return mean(map(float, these))


def _metrics(suite: Suite, runs: Sequence[Run]) -> dict[str, Interval]:
    """Return the spread of each metric over the seeds."""
    metrics = {name: _spread(_at_ends(runs, name)) for name in AT_END}
    for name in CURVATURE:
        metrics[f"{name} at the end"] = _spread([_last_measured(run, name) for run in runs])
    for name in CURVATURE:
        metrics[f"{name} at the best"] = _spread([_at_best(suite, run, name) for run in runs])
    return metrics | {f"{DISTANCE} at most": _spread([_most(run, DISTANCE) for run in runs])}


def score(suite: Suite, run: Run) -> float:
    """Return the run's score, −∞ for a divergence."""
    task = suite.tasks[run.task]
    return -math.inf if run.status == "diverged" else task.score(run.last[task.metric])


def scores(suite: Suite, entrants: Sequence[Entrant]) -> Array:
    """Return all scores, shape (E, T, S), tasks in the suite's order and seeds ascending."""
    return np.array(
        [[[score(suite, run) for run in e.finals[task]] for task in suite.tasks] for e in entrants]
    )


def costs(
    suite: Suite, entrants: Sequence[Entrant], level: int | None = None, unit: str = GRADIENTS
) -> Array:
    """Return the costs to reach a target, shape (E, T, S), ∞ where missed.

    `level` counts targets from the easiest; None is the suite's.
    """

    def target(task: str) -> float:
        targets = suite.tasks[task].targets
        return suite.tasks[task].target if level is None else targets[min(level, len(targets) - 1)]

    return np.array(
        [
            [
                [cost_to_target(suite, run, target(task), unit) for run in e.finals[task]]
                for task in suite.tasks
            ]
            for e in entrants
        ]
    )


def cost_to_target(suite: Suite, run: Run, target: float, unit: str) -> float:
    """Return the cost at the first measurement of `select` that meets the target, ∞ without one."""
    series, cost = run.curve.get(suite.tasks[run.task].select, []), run.curve.get(unit, [])
    for value, spent in zip(series, cost, strict=False):
        if value is not None and value <= target and spent is not None:
            return spent
    return math.inf


def _at_end(run: Run, metric: str) -> float:
    return math.inf if run.status == "diverged" else run.last.get(metric, math.nan)


def _at_ends(runs: Sequence[Run], metric: str) -> list[float]:
    """The values at the end; none where no run that finished has one: the task measures no such.

    A divergence would stand alone there, as if it were a value of this metric.
    """
    finished = [run for run in runs if run.status != "diverged"]
    if finished and not any(metric in run.last for run in finished):
        return []
    return [_at_end(run, metric) for run in runs]


def _last_measured(run: Run, metric: str) -> float:
    return run.last.get(metric, math.nan)


def _most(run: Run, metric: str) -> float:
    return max(
        (value for value in run.curve.get(metric, []) if value is not None), default=math.nan
    )


def _at_best(suite: Suite, run: Run, metric: str) -> float:
    """The measurement at the step of the best validation, or the nearest before it.

    The first measurement if none is before.
    """
    validated = [
        (v, s)
        for v, s in zip(_of(run, suite.tasks[run.task].select), _of(run, STEP), strict=False)
        if v is not None
    ]
    measured = [
        (s, v)
        for v, s in zip(_of(run, metric), _of(run, STEP), strict=False)
        if v is not None and s is not None
    ]
    if not validated or not measured:
        return math.nan
    best = min(validated)[1]
    index = bisect.bisect_right([step for step, _ in measured], best) if best is not None else 0
    return measured[max(0, index - 1)][1]


def _of(run: Run, metric: str) -> Sequence[float | None]:
    return run.curve.get(metric, [])


def _spread(values: Sequence[float]) -> Interval:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Interval(math.nan, math.nan, math.nan)
    return Interval(censored_median(known), min(known), max(known))
