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
    others = [metrics.distance_on_others(record) for record in records]
    value, error = zip(*others, strict=True)
    return {"of": on} | find_events(
        steps, columns[0], columns[1], threshold, lr=rate, on_others=(value, error)
    ).as_dict()
