"""What a run shows of its edge: by its optimizer's formula, by the multiplier, by its amplitude."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optbench import metrics
from optbench.record import folder as record
from optbench.studies import plateau

FAR = 0.2
"""A ratio that is farther from 1 than this counts as beyond that side."""

SWINGING = 0.1
"""Share of the ratios beyond either side from which a series swings: its median says nothing."""

Obeyed = Literal[
    "both",
    "formula",
    "multiplier",
    "neither",
    "inside",
    "amplitude",
    "open",
    "no derivative",
    "diverged",
]


@dataclass(frozen=True)
class Series:
    """What one run measured, and the threshold at the same steps; none of these is 0.

    A threshold may be below 0: with momentum the step may go uphill.
    """

    quantity: str
    steps: Sequence[int]
    measured: Sequence[float]
    threshold: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Measured/threshold at every step; infinite where the threshold is below 0."""
        columns = zip(self.measured, self.threshold, strict=True)
        return [m / t if t > 0 else math.inf for m, t in columns]

    def between(self, start: float, end: float) -> "Series":
        """The part from a share of the steps to another one, both ends included."""
        last = self.steps[-1] if self.steps else 0
        rows = [
            row
            for row in zip(self.steps, self.measured, self.threshold, strict=True)
            if start * last <= row[0] <= end * last
        ]
        steps, measured, threshold = zip(*rows, strict=True) if rows else ((), (), ())
        return Series(self.quantity, steps, measured, threshold)

    @property
    def swings(self) -> bool:
        """Whether a tenth of the ratios or more is beyond either side of 1, by a fifth."""
        ratios = self.ratios
        beyond = sum(r > 1 + FAR for r in ratios), sum(r < 1 - FAR for r in ratios)
        return bool(ratios) and min(beyond) >= SWINGING * len(ratios)

    @property
    def level(self) -> float:
        """Where it stands: median of the ratios, or ratio of the means where it swings."""
        return self.mean if self.swings else _median(self.ratios)

    @property
    def mean(self) -> float:
        """Ratio of the means; infinite if the mean threshold is not above 0."""
        total = math.fsum(self.threshold)
        if not self.steps:
            return math.nan
        return math.fsum(self.measured) / total if total > 0 else math.inf

    @property
    def change(self) -> float:
        """Relative change of the ratio of means from the third to the fourth quarter."""
        return plateau.plateau(self.steps, self.measured, self.threshold).change


def read_series(folder: Path, metric: str | None = None, bound: float = math.nan) -> Series:
    """Read the series of a run's own edge, or that of a metric against one bound.

    Args:
        folder: Folder of the run.
        metric: A metric that is compared with `bound` in place of what the edge probe compares.
        bound: Threshold of that metric.
    """
    records = record.read_lines(folder / record.METRICS)
    if metric is None:
        on = metrics.threshold_is_on(records)
        rows = [(r["step"], r[on], r.get(metrics.EDGE_THRESHOLD, 0.0)) for r in records if on in r]
    else:
        on, rows = metric, [(r["step"], r[metric], bound) for r in records if metric in r]
    known = [row for row in rows if row[2] != 0]
    steps, measured, threshold = zip(*known, strict=True) if known else ((), (), ())
    return Series(on, steps, measured, threshold)


@dataclass(frozen=True)
class Reading:
    """What one run showed in the second half of its steps; NaN where it measured nothing.

    Attributes:
        formula: Distance to the edge by the optimizer's formula; see `Series.level`.
        drift: Relative change of it from the third to the fourth quarter of the run; a plateau
            has at most 2.5 %.
        multiplier: Distance by the multiplier, a median: the learning rate over that at |μ| = 1.
        growth: Growth per step of the mode, along 40 steps, a median.
        angle: |arg μ|/π, a median.
        amplitude: Predicted over measured amplitude of the alternation, a median.
        balance: ½⟨dᵀHd⟩ over −⟨g·d⟩ along the updates.
        loss: Training loss at the end.
        status: How the run ended.
        measured: How many multipliers there are.
    """

    formula: float
    drift: float
    multiplier: float
    growth: float
    angle: float
    amplitude: float
    balance: float
    loss: float
    status: str
    measured: int


def read_run(folder: Path, series: Series | None = None) -> Reading:
    """Read the run of one seed.

    Args:
        folder: Folder of the run.
        series: Its ratio to the edge; None for that of the edge probe.
    """
    series = read_series(folder) if series is None else series
    records = record.read_lines(folder / record.METRICS)
    last = records[-1]["step"] if records else 0
    late = [r for r in records if r["step"] >= last / 2]
    slopes = [r for r in late if metrics.UPDATE_SLOPE in r]
    amplitudes = [
        r[metrics.ALTERNATION_PREDICTED] / r[metrics.ALTERNATION]
        for r in late
        if r.get(metrics.ALTERNATION)
    ]
    losses = [r[metrics.TRAIN_LOSS] for r in records if metrics.TRAIN_LOSS in r]
    return Reading(
        formula=series.between(0.5, 1.0).level,
        drift=series.change,
        multiplier=_median_of(late, metrics.MULTIPLIER_DISTANCE),
        growth=_median_of(late, metrics.MULTIPLIER_GROWTH),
        angle=_median_of(late, metrics.MULTIPLIER_ANGLE),
        amplitude=_median(amplitudes),
        balance=plateau.balance(
            [r[metrics.UPDATE_SLOPE] for r in slopes], [r[metrics.PREDICTED_CHANGE] for r in slopes]
        ),
        loss=losses[-1] if losses else math.nan,
        status=str((record.read_json(folder / record.SUMMARY) or {}).get("status")),
        measured=sum(metrics.MULTIPLIER in r for r in late),
    )


def obeyed(
    formula: float, multiplier: float, amplitude: float, diverged: bool, tolerance: float
) -> Obeyed:
    """Return which distance stands at 1: the formula's, the multiplier's, both, or neither.

    "inside" where all that there are lie below 1 − tolerance: the run is not at an edge. For
    steps of fixed size it is the amplitude that is met, or else the formula, or neither ("open").

    Args:
        formula: Measured over threshold; NaN where no formula is known.
        multiplier: Distance by the multiplier; NaN where the step has no derivative.
        amplitude: Predicted over measured amplitude; NaN but for steps of fixed size.
        diverged: Whether a run diverged.
        tolerance: Largest |distance − 1| that counts as at the edge.
    """
    if diverged:
        return "diverged"
    if not math.isnan(amplitude):
        if abs(amplitude - 1) <= tolerance:
            return "amplitude"
        return "formula" if abs(formula - 1) <= tolerance else "open"
    if math.isnan(multiplier):
        return "no derivative"
    known = [x for x in (formula, multiplier) if not math.isnan(x)]
    if all(x < 1 - tolerance for x in known):
        return "inside"
    at = abs(formula - 1) <= tolerance, abs(multiplier - 1) <= tolerance
    verdicts: dict[tuple[bool, bool], Obeyed] = {
        (True, True): "both",
        (True, False): "formula",
        (False, True): "multiplier",
        (False, False): "neither",
    }
    return verdicts[at]


def _median_of(records: Sequence[Mapping[str, Any]], name: str) -> float:
    return _median([r[name] for r in records if name in r])


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan
