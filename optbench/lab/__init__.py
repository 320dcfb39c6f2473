"""A run from Python: start it, stop it at a loss, open it again, fork it, measure it.

from optbench import lab
from optbench.lab import Below

run = lab.start("task=digits", "optimizer=adam", "batch_size=50", seed=3)
run.train(until=Below("train/loss", 0.02), keep=[0.1, 0.05, 0.02], steps=2000)
twin = run.at(loss=0.05).fork("optimizer=sgd", lr=0.3, seed=4).train(steps=100)
print(lab.open(run.folder).at().model)
"""

from collections.abc import Iterable

from optbench.lab.experiment import QUIET, Below, Run, open, start, sweep
from optbench.lab.matching import Matched, all_at_loss
from optbench.lab.measures import Measure, Reading, measure_point
from optbench.lab.point import Point
from optbench.lab.pull import LEVERS, Pulled, pull, random_direction, towards
from optbench.lab.shadow import Shadow, direction
from optbench.lab.snapshot import Snapshot
from optbench.metrics import TRAIN_LOSS


def measure(
    what: "Snapshot | Run | Point", names: "str | Iterable[str]" = "all"
) -> dict[str, Reading]:
    """Measure a run at a step: {name: reading}, each with its value, definition and cost.

    Args:
        what: A snapshot, a run (at its end), or a `Point` of your own model and task.
        names: Names of measures; `all` for those that take a second together, `everything`.

    Raises:
        UserError: If there is no measure of a name, or the run kept no checkpoint.
    """
    if isinstance(what, Run):
        what = what.end
    point = what.point() if isinstance(what, Snapshot) else what
    return measure_point(point, names)


def match(run: Run, loss: float, names: "str | Iterable[str]" = "all") -> dict[str, Matched]:
    """Measure a run at a training loss: interpolated in log loss between what it kept.

    Keep checkpoints above the loss and at it, such as `keep=[2.25 * L, 1.5 * L, L]`.

    Args:
        run: A run that has ended.
        loss: Training loss L.
        names: As for `measure`.

    Returns:
        {measure: (value, error)}; the error is that of interpolating, see `Matched`.

    Raises:
        UserError: If there is no measure of a name.
    """
    losses = dict(zip(*(x.tolist() for x in run.series(TRAIN_LOSS)), strict=True))
    points = []
    for step in run.kept:
        if step in losses:
            found = measure(run.at(step=step), names)
            points.append(
                (losses[step], {n: r.value for n, r in found.items() if r.reason is None})
            )
    return all_at_loss(points, loss)


__all__ = [
    "LEVERS",
    "QUIET",
    "Below",
    "Matched",
    "Measure",
    "Point",
    "Pulled",
    "Reading",
    "Run",
    "Shadow",
    "Snapshot",
    "direction",
    "match",
    "measure",
    "open",
    "pull",
    "random_direction",
    "start",
    "sweep",
    "towards",
]
