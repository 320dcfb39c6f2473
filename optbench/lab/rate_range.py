"""Short runs at learning rates from tiny to divergence, and the largest rate that is stable.

A run is stable if it neither diverged nor ended above its initial training loss. The largest stable
rate is looked for from below: the rates rise by one factor until two in a row are not stable, then
the interval between the last stable and the first unstable one is halved, on a log axis.

By theory a run is stable where measured/threshold, its distance to the edge, is at most 1. All runs
begin with the same weights, so the distances at step 0 are one function D of the rate, and the
largest stable rate is where D = 1. D is proportional to the rate but for weight decay and the like.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from optbench import metrics
from optbench.dynamics import edge
from optbench.dynamics.edges import GradientEdge, UnknownEdge
from optbench.lab.experiment import QUIET, Run, start

WORDS = (*QUIET, "probes.layers.every=never", "probes.sharpness.thin=1")
ENOUGH = 2  # unstable rates in a row, after which no larger one is tried


@dataclass(frozen=True)
class Trial:
    """One run of the range.

    Attributes:
        scale: What all learning rates were multiplied by.
        rate: The learning rate; None where the optimizer has several.
        status: How the run ended.
        first_loss: Training loss at step 0.
        loss: Last training loss; NaN if it was not measured, or the run diverged.
        sharpness: Last λ₁, likewise.
        distance: Last distance to the edge, likewise.
        first_distance: First distance to the edge; NaN if there is none.
        measured_at: Step of that; −1 if there is none.
        folder: Name of the run folder.
        on_others: The first distance along the same direction on other examples; NaN where it was
            measured on all.
    """

    scale: float
    rate: float | None
    status: str
    first_loss: float
    loss: float
    sharpness: float
    distance: float
    first_distance: float
    measured_at: int
    folder: str
    on_others: float = math.nan

    @property
    def is_stable(self) -> bool:
        """Whether it neither diverged nor ended above its initial loss."""
        return self.status == "done" and self.loss <= self.first_loss

    @property
    def at(self) -> float:
        """The learning rate; the scale where the optimizer has several."""
        return self.scale if self.rate is None else self.rate


@dataclass(frozen=True)
class Theory:
    """The largest stable rate that the optimizer's edge says, and from what.

    Attributes:
        scale: What all learning rates would be multiplied by.
        source: What it was computed from.
    """

    scale: float
    source: str


@dataclass(frozen=True)
class NoTheory:
    """Why the edge says nothing."""

    reason: str


def trial(words: Sequence[str], scale: float) -> tuple[Trial, Run]:
    """Train at a scale of all learning rates, or read the run that did.

    Raises:
        UserError: If the words are none that the main job takes, or the optimizer has no rate.
    """
    run = start(*WORDS, *words, f"optimizer.scale={scale:.6g}").train()
    records = run.records
    last = run.last if run.status == "done" else {}  # a divergence has those of an early step
    losses = [r[metrics.TRAIN_LOSS] for r in records if metrics.TRAIN_LOSS in r]
    distances = [r for r in records if metrics.EDGE_DISTANCE in r]
    first = distances[0] if distances else {}
    lr = run.config.optimizer.get("lr")
    found = Trial(
        scale=scale,
        rate=float(lr) * scale if isinstance(lr, (int, float)) else None,
        status=run.status,
        first_loss=losses[0] if losses else math.nan,
        loss=last.get(metrics.TRAIN_LOSS, math.nan),
        sharpness=last.get(metrics.SHARPNESS, math.nan),
        distance=last.get(metrics.EDGE_DISTANCE, math.nan),
        first_distance=first.get(metrics.EDGE_DISTANCE, math.nan),
        measured_at=int(first.get("step", -1)),
        folder=run.name,
        on_others=metrics.distance_on_others(first)[0],
    )
    return found, run


def search(
    try_scale: Callable[[float], Trial], low: float, high: float, factor: float, halvings: int
) -> Iterator[Trial]:
    """Yield trials: from `low` upwards, then between the last stable and the first unstable one.

    Args:
        try_scale: Makes one trial.
        low: Least scale.
        high: Scale that none exceeds.
        factor: Ratio of neighbouring scales, above 1.
        halvings: Trials between the last stable and the first unstable scale.
    """
    found: list[Trial] = []
    scale = low
    while scale <= high * (1 + 1e-9):
        found.append(try_scale(scale))
        yield found[-1]
        if len(found) >= ENOUGH and not any(t.is_stable for t in found[-ENOUGH:]):
            break
        scale = low * factor ** len(found)
    for _ in range(halvings):
        stable, unstable = bracket(found)
        if stable is None or unstable is None:
            return
        found.append(try_scale(math.sqrt(stable.scale * unstable.scale)))
        yield found[-1]


def bracket(trials: Sequence[Trial]) -> tuple[Trial | None, Trial | None]:
    """Return the largest rate below which all are stable, and the least one that is not."""
    ordered = sorted(trials, key=lambda t: t.scale)
    unstable = next((t for t in ordered if not t.is_stable), None)
    below = [t for t in ordered if unstable is None or t.scale < unstable.scale]
    return (below[-1] if below else None), unstable


def theory(trials: Sequence[Trial], run: Run) -> Theory | NoTheory:
    """Return the largest stable rate by the edge.

    1. Where distances were measured at step 0: the scale at which D = 1, log D being linear in the
       log of the scale between two trials, and D proportional to the scale beyond the outermost.
    2. Where the preconditioner has to settle first, as Adam's, larger rates have moved the weights
       by then. So it is the least rate's first distance, as if it were proportional to the rate.

    Args:
        trials: The trials.
        run: One of the runs, of whose optimizer a missing edge is told.
    """
    known = sorted((t for t in trials if t.first_distance > 0), key=lambda t: t.scale)
    if not known:
        return NoTheory(_why_unknown(run))
    at_start = [t for t in known if t.measured_at == 0]
    if at_start:
        points = [(t.scale, t.first_distance) for t in at_start]
        return Theory(where_one(points), f"threshold/λ at step 0{_of_few(at_start[0])}")
    least = known[0]
    return Theory(
        least.scale / least.first_distance,
        f"threshold/λ at step {least.measured_at} of the least rate, by proportion{_of_few(least)}",
    )


def _of_few(trial: Trial) -> str:
    """What else is to be known of a λ that was measured on a part of the training examples."""
    if not math.isfinite(trial.on_others):
        return ""
    part = trial.on_others / trial.first_distance
    return f", λ being that of the examples measured: along its direction others have {part:.2g} λ"


def where_one(points: Sequence[tuple[float, float]]) -> float:
    """Return the scale at which the distance is 1, from (scale, distance) at rising scales."""
    for (s, d), (S, D) in itertools.pairwise(points):
        if d <= 1 <= D and d < D:
            share = -math.log(d) / (math.log(D) - math.log(d))
            return math.exp(math.log(s) + share * (math.log(S) - math.log(s)))
    s, d = points[0] if points[0][1] > 1 else points[-1]
    return s / d


def _why_unknown(run: Run) -> str:
    """Why a run has no distance to the edge."""
    if run.status != "done":
        return f"no distance was measured, and {run.name} has {run.status}"
    found = edge(run.at().optimizer)
    match found:
        case UnknownEdge():
            return found.reason
        case GradientEdge() if run.config.batch_size != "full":
            return f"the threshold {found.formula} holds for the full batch, not for mini-batches"
    return (
        "no distance was measured: its preconditioner may need more steps to settle, or the probes "
        "edge and sharpness are off"
    )
