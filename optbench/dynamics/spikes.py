"""Spikes of the loss, and the catapults among them. Needs numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]


@dataclass(frozen=True)
class Catapult:
    """A spike of the loss with a drop of sharpness after it.

    Attributes:
        start: First step at which the loss is above (1 + rise) times its baseline.
        peak: Step of the largest loss of the spike.
        end: First step back below; the last of the spike if the series ends first.
        loss_ratio: Loss at the peak over the baseline.
        sharpness_ratio: Least sharpness after the peak over the largest before it.
    """

    start: int
    peak: int
    end: int
    loss_ratio: float
    sharpness_ratio: float


def spikes(loss: Series, rise: float, window: int) -> list[tuple[int, int, float]]:
    """First and one-past-last record of each spike, with its baseline."""
    found, i, past = [], 0, list[float]()
    while i < len(loss):
        base = min(past[-window:], default=math.inf)
        if math.isfinite(base) and base > 0 and loss[i] > (1 + rise) * base:
            end = i
            while end < len(loss) and not loss[end] <= (1 + rise) * base:
                end += 1
            found.append((i, end, base))
            i = end
        else:
            if math.isfinite(loss[i]):
                past.append(float(loss[i]))
            i += 1
    return found


def catapult(
    spike: tuple[int, int, float], t: Series, loss: Series, measured: Series, window: int
) -> Catapult:
    """The spike as a catapult; its `sharpness_ratio` is NaN where sharpness was not measured."""
    start, end, base = spike
    peak = start + int(np.nanargmax(loss[start:end]))
    before = measured[max(0, start - window) : peak + 1]
    later = measured[peak + 1 : end + window]
    before, later = before[np.isfinite(before)], later[np.isfinite(later)]
    ratio = math.nan
    if len(before) and len(later) and before.max() > 0:
        with np.errstate(over="ignore"):
            ratio = float(later.min() / before.max())
    last = min(end, len(t) - 1)
    with np.errstate(over="ignore"):
        height = float(loss[peak] / base)
    return Catapult(int(t[start]), int(t[peak]), int(t[last]), height, ratio)
