"""Summary of a run, from its series alone; needs no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Records = Sequence[Mapping[str, Any]]


def summarise(records: Records) -> dict[str, Any]:
    """Return the last values, the best validation, and where the edge was first reached.

    `best_val` is at the step of the least validation error (loss, for tasks without errors), the
    first of equals, with everything measured at that step. `crossed_edge_at` is the first step
    whose edge/distance is 1 or more, None if none is; absent if it was never measured. It is
    `first_crossing` of the events.
    """
    last: dict[str, Any] = {}
    for record in records:
        last |= _numbers(record)
    summary: dict[str, Any] = {"last": last}
    metric = "val/error" if "val/error" in last else "val/loss"
    validated = [record for record in records if metric in record]
    if validated:
        best = min(validated, key=lambda record: record[metric])
        value, then = best[metric], _numbers(best)
        summary["best_val"] = {"metric": metric, "step": best["step"], "value": value, "then": then}
    if "edge/distance" in last:
        crossings = (
            record["step"] for record in records if 1 <= record.get("edge/distance", 0) < math.inf
        )
        summary["crossed_edge_at"] = next(crossings, None)
    return summary


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured at one step, without the step and without lists (spectra)."""
    return {k: value for k, value in record.items() if k != "step" and not isinstance(value, list)}
