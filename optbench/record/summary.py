"""What a run comes to, from its series alone; needs no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Records = Sequence[Mapping[str, Any]]


def summarise(records: Records) -> dict[str, Any]:
    """Return the last value of every metric, the best validation, and where the edge was first reached.

    `best_val` is at the step of the least validation error (loss, for tasks without errors), the
    first of equals, with everything measured at that step. `crossed_edge_at` is the first step
    whose edge/distance is 1 or more, None if none is; absent if it was never measured. It is
    `first_crossing` of the events.
    """
    last: dict[str, Any] = {}
    for record in records:
        last |= {metric: value for metric, value in record.items() if not isinstance(value, list)}
    last.pop("step", None)
    found: dict[str, Any] = {"last": last}
    metric = "val/error" if "val/error" in last else "val/loss"
    validated = [record for record in records if metric in record]
    if validated:
        best = min(validated, key=lambda record: record[metric])
        then = {
            key: value
            for key, value in best.items()
            if key != "step" and not isinstance(value, list)
        }
        found["best_val"] = {
            "metric": metric,
            "step": best["step"],
            "value": best[metric],
            "then": then,
        }
    if "edge/distance" in last:
        crossings = (
            record["step"] for record in records if 1 <= record.get("edge/distance", 0) < math.inf
        )
        found["crossed_edge_at"] = next(crossings, None)
    return found
