"""What happened at the edge, found in recorded series. Needs numpy only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from optbench import metrics
from optbench.dynamics.spikes import Catapult, Series, catapult, spikes
from optbench.record import folder as record

ON_THE_EXAMPLES = "edge reached on the examples measured"
LEAST = 4
"""Measurements below which a plateau, and loss records below which a trend, is not stated."""


@dataclass(frozen=True)
class Events:
    """Events of one run; NaN or None where the series do not tell.

    With r = measured/threshold at the measured steps, those where both and r are finite and the
    threshold is positive; r' is r along the same direction on other examples, where it is known. A
    measurement stands for the steps until the next one, the last for as many as the one before, so
    that an uneven cadence does not bias shares and quantiles.

    A measured step is annealed where the learning rate is below half of that at the first crossing
    (without a crossing, of the largest): the threshold there has run away from what training meets.
    It ends low, whatever the dynamics are: as lr → 0, r → 0. With a constant learning rate nothing
    is annealed.

    Attributes:
        verdict: "edge reached" if r ≥ 1 at some measured step, "edge not reached" if at none,
            "not measured" without any measured step. "edge reached on the examples measured" where
            r' is known at some of the steps with r ≥ 1, and is below 1 by more than two standard
            errors at all of these: for all examples that is undecided.
        measurements: Number of measured steps.
        first_crossing: First measured step with r ≥ 1; an upper bound of the true step.
        last_below: Measured step before it, a lower bound; None if the first is already above.
        started_above: Whether the first measurement is above: no progressive sharpening was seen.
        share_at_edge: Share of the measured steps not annealed with r ≥ 1 − band.
        plateau_ratio: Median of r over the later half, in steps, of those not annealed that follow
            the crossing.
        plateau_low: Its lower quartile.
        plateau_high: Its upper quartile.
        plateau_on_others: Mean of r' over the measured steps of the plateau, where it is known.
        max_ratio: Largest r.
        max_ratio_at: Its step, the first of equals.
        max_ratio_on_others: r' at that step; NaN where it is not known.
        max_ratio_on_others_error: Its standard error.
        final_ratio: Last r.
        annealed: Whether the last measured step is annealed.
        rises: Share of consecutive finite loss records at which the loss rises by more than 1e-6
            of itself.
        falling: Whether the median of the last quarter of the loss is below that of the first.
        rises_after_crossing: As `rises`, from the first crossing on.
        falling_after_crossing: As `falling`, from the first crossing on.
        unstable_convergence: Loss non-monotone but falling after the crossing: at least 5 % of
            its records rise and yet it falls.
        spikes: Number of loss spikes, with a drop of sharpness or without.
        catapults: The spikes with a drop.
        finite: Whether every loss record is finite.
    """

    verdict: str
    measurements: int = 0
    first_crossing: int | None = None
    last_below: int | None = None
    started_above: bool = False
    share_at_edge: float = math.nan
    plateau_ratio: float = math.nan
    plateau_low: float = math.nan
    plateau_high: float = math.nan
    plateau_on_others: float = math.nan
    max_ratio: float = math.nan
    max_ratio_at: int | None = None
    max_ratio_on_others: float = math.nan
    max_ratio_on_others_error: float = math.nan
    final_ratio: float = math.nan
    annealed: bool = False
    rises: float = math.nan
    falling: bool | None = None
    rises_after_crossing: float = math.nan
    falling_after_crossing: bool | None = None
    unstable_convergence: bool | None = None
    spikes: int = 0
    catapults: list[Catapult] = field(default_factory=list)
    finite: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, for JSON; NaN and inf as None."""
        result: dict[str, Any] = record.plain(asdict(self))
        return result


def find_events(
    steps: ArrayLike,
    loss: ArrayLike,
    measured: ArrayLike,
    threshold: ArrayLike,
    *,
    lr: ArrayLike | None = None,
    on_others: tuple[ArrayLike, ArrayLike] | None = None,
    band: float = 0.05,
    rise: float = 0.5,
    drop: float = 0.1,
    window: int = 20,
) -> Events:
    """Find the events of a run from its series; entries that were not recorded are NaN.

    A spike is a maximal run of records whose loss exceeds (1 + rise) times the baseline, the
    least of the `window` finite records before it. It is a catapult if sharpness is measured on
    both sides and its least value from after the peak to `window` records past the end is below
    (1 − drop) times its largest value from `window` records before the start to the peak.

    Args:
        steps: Step of each record, strictly increasing, shape (T,).
        loss: Loss of each record, shape (T,).
        measured: Measured sharpness, in the geometry of the edge, shape (T,).
        threshold: Threshold at that step, shape (T,) or a number.
        lr: Learning rate at that step, shape (T,) or a number. None, or where it is NaN:
            1/threshold in its place, to which it is proportional but for thresholds on the
            gradient.
        on_others: r' and its standard error, shape (T,) each, NaN where they are not known; see
            `Events`.
        band: How far below the threshold still counts as at the edge.
        rise: Relative rise of the loss that makes a spike.
        drop: Relative drop of sharpness that makes a spike a catapult.
        window: Records that are looked at before and after a spike.

    Raises:
        ValueError: If shapes differ or steps do not increase.
    """
    t, y, m = (np.asarray(x, dtype=float) for x in (steps, loss, measured))
    h = np.broadcast_to(np.asarray(threshold, dtype=float), t.shape)
    if not (t.ndim == 1 and t.shape == y.shape == m.shape):
        raise ValueError(f"series differ in shape: {t.shape}, {y.shape}, {m.shape}")
    if bool((np.diff(t) <= 0).any()):
        raise ValueError("steps must increase strictly: sort the records and drop repeats")
    with np.errstate(all="ignore"):
        ratio = np.where(h > 0, m / h, np.nan)
    known = np.isfinite(ratio) & np.isfinite(h)
    with np.errstate(all="ignore"):
        pace = np.broadcast_to(np.asarray(math.nan if lr is None else lr, dtype=float), t.shape)[
            known
        ]
        pace = np.where(np.isnan(pace).any(), 1 / h[known], pace)
    others, error = (
        np.broadcast_to(np.asarray(x, dtype=float), t.shape)[known]
        for x in on_others or (math.nan, math.nan)
    )
    result = _edge_events(t[known], ratio[known], others, error, pace, band)
    crossing = result.get("first_crossing")
    after = t >= crossing if crossing is not None else np.zeros(t.shape, dtype=bool)
    rises, falling = _trend(y)
    rises_after, falling_after = _trend(y[after])
    unstable = None if falling_after is None else falling_after and rises_after >= 0.05
    found = [catapult(s, t, y, m, window) for s in spikes(y, rise, window)]
    return Events(
        **result,
        rises=rises,
        falling=falling,
        rises_after_crossing=rises_after,
        falling_after_crossing=falling_after,
        unstable_convergence=unstable,
        spikes=len(found),
        catapults=[c for c in found if c.sharpness_ratio < 1 - drop],
        finite=bool(np.isfinite(y[~np.isnan(y)]).all() and not _ends_in_nan(y)),
    )


def _edge_events(
    t: Series, r: Series, others: Series, error: Series, pace: Series, band: float
) -> dict[str, Any]:
    if not len(t):
        return {"verdict": "not measured"}
    above = np.flatnonzero(r >= 1)
    kept = pace >= 0.5 * (pace[above[0]] if len(above) else pace.max())
    weights = _weights(t) * kept
    highest = r.argmax()
    result: dict[str, Any] = {
        "verdict": _verdict(others[above], error[above]),
        "measurements": len(t),
        "started_above": bool(r[0] >= 1),
        "share_at_edge": float(weights[r >= 1 - band].sum() / weights.sum()),
        "max_ratio": float(r[highest]),
        "max_ratio_at": int(t[highest]),
        "max_ratio_on_others": float(others[highest]),
        "max_ratio_on_others_error": float(error[highest]),
        "final_ratio": float(r[-1]),
        "annealed": not kept[-1],
    }
    if len(above):
        first = int(above[0])
        result["first_crossing"] = int(t[first])
        result["last_below"] = int(t[first - 1]) if first else None
        late = kept & (t >= (t[first] + t[kept][-1]) / 2)
        if late.sum() >= LEAST:
            low, middle, high = _quantiles(r[late], weights[late])
            result |= {"plateau_low": low, "plateau_ratio": middle, "plateau_high": high}
            told = others[late & np.isfinite(others)]
            if len(told):
                result["plateau_on_others"] = float(told.mean())
    return result


def _verdict(others: Series, error: Series) -> str:
    """See `Events`; r' and its standard error at the steps with r ≥ 1."""
    if not len(others):
        return "edge not reached"
    asked = [pair for pair in zip(others, error, strict=True) if not math.isnan(pair[0])]
    denied = asked and all(metrics.others_deny(1, *pair) for pair in asked)
    return ON_THE_EXAMPLES if denied else "edge reached"


def _weights(t: Series) -> Series:
    """Steps that each measurement stands for."""
    if len(t) < 2:
        return np.ones(len(t))
    gaps = np.diff(t)
    return np.append(gaps, gaps[-1])


def _quantiles(values: Series, weights: Series) -> tuple[float, float, float]:
    """Weighted quartiles: linear between the midpoints of the cumulated weights."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    at = (np.cumsum(weights) - weights / 2) / weights.sum()
    low, middle, high = np.interp([0.25, 0.5, 0.75], at, values)
    return float(low), float(middle), float(high)


def _trend(loss: Series) -> tuple[float, bool | None]:
    loss = loss[np.isfinite(loss)]
    if len(loss) < LEAST:
        return math.nan, None
    rises = float((np.diff(loss) > 1e-6 * np.abs(loss[:-1])).mean())
    quarter = max(1, len(loss) // 4)
    return rises, bool(np.median(loss[-quarter:]) < np.median(loss[:quarter]))


def _ends_in_nan(loss: Series) -> bool:
    """A loss that was recorded and is NaN cannot be told from one not recorded, but at the end."""
    return bool(len(loss) and np.isnan(loss[-1]))
