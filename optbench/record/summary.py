"""Summary of a run, from its series alone; needs no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from optbench import metrics

Records = Sequence[Mapping[str, Any]]


def summarise(records: Records) -> dict[str, Any]:
    """Return the last value of every metric, and the best validation.

    `best_val` is at the step of the least validation error (loss, for tasks without errors), the
    first of equals, with everything measured at that step.
    """
    last: dict[str, Any] = {}
    for record in records:
        last |= _numbers(record)
    summary: dict[str, Any] = {"last": last}
    metric = metrics.VAL_ERROR if metrics.VAL_ERROR in last else metrics.VAL_LOSS
    validated = [record for record in records if metric in record]
    if validated:
        best = min(validated, key=lambda record: record[metric])
        value, then = best[metric], _numbers(best)
        summary["best_val"] = {"metric": metric, "step": best["step"], "value": value, "then": then}
    return summary


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured at one step, without the step and without lists (spectra)."""
    return {k: value for k, value in record.items() if k != "step" and not isinstance(value, list)}
