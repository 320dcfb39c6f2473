"""Events of a run, found in its records; needs no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optbench import metrics
from optbench.dynamics.events import find_events


def report(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the events of a run, as `find_events` has them, for its summary.

    The loss is that of the training batch, so the full batch's at every step where that is trained
    on; the measured quantity is the one that the run's threshold is on.
    """
    if not records:
        return {"verdict": "not measured"}
    on = metrics.threshold_is_on(records)
    loss = (
        metrics.BATCH_LOSS
        if any(metrics.BATCH_LOSS in record for record in records)
        else metrics.TRAIN_LOSS
    )
    columns = [[record.get(key, math.nan) for record in records] for key in (loss, on)]
    # Both quantity and threshold must stand in one record: a thinned sharpness has no threshold of
    # its own.
    threshold = [record.get(metrics.EDGE_THRESHOLD, math.nan) for record in records]
    rate = [record.get(metrics.EDGE_LR, math.nan) for record in records]
    steps = [record["step"] for record in records]
    if columns[0] and math.isnan(columns[0][-1]):  # the last step has no update, so no batch loss
        columns[0][-1] = records[-1].get(metrics.TRAIN_LOSS, math.inf)
    others = _on_others(records, on, threshold)
    return {"of": on} | find_events(
        steps, columns[0], columns[1], threshold, lr=rate, on_others=others
    ).as_dict()


def _on_others(
    records: Sequence[Mapping[str, Any]], on: str, threshold: Sequence[float]
) -> tuple[list[float], list[float]]:
    """The distance on other examples, and its error; λ₁'s own is recorded without threshold."""
    names = metrics.EDGE_HELD_OUT, metrics.EDGE_HELD_OUT_ERROR
    units: Sequence[float] = [1.0] * len(records)
    if on == metrics.SHARPNESS:
        names = metrics.SHARPNESS_HELD_OUT, metrics.SHARPNESS_HELD_OUT_ERROR
        units = [h if h > 0 else math.nan for h in threshold]
    value, error = (
        [record.get(name, math.nan) / unit for record, unit in zip(records, units, strict=True)]
        for name in names
    )
    return value, error
