import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from optbench.dynamics.run_events import report
from optbench.record.summary import summarise


def test_last_best_and_crossing_are_read_off_the_series() -> None:
    records: list[dict[str, Any]] = [
        {"step": 0, "val/error": 0.9, "val/loss": 3.0, "edge/distance": 0.5},
        {"step": 1, "batch/loss": 1.0},
        {
            "step": 2,
            "val/error": 0.2,
            "val/loss": 1.0,
            "test/error": 0.3,
            "edge/distance": 1.0,
            "spectrum": [1.0],
        },
        {"step": 4, "val/error": 0.2, "val/loss": 0.5, "test/error": 0.1, "edge/distance": 0.9},
    ]
    summary = summarise(records)
    assert summary["last"] == {
        "val/error": 0.2,
        "val/loss": 0.5,
        "edge/distance": 0.9,
        "batch/loss": 1.0,
        "test/error": 0.1,
    }
    assert (summary["best_val"]["step"], summary["best_val"]["then"]["test/error"]) == (2, 0.3)
    assert "spectrum" not in summary["best_val"]["then"]
    assert summary["crossed_edge_at"] == 2


@given(st.lists(st.tuples(*[st.floats(0, 3) | st.just(math.inf) | st.none()] * 2), max_size=8))
def test_both_say_the_same_of_the_first_crossing(
    rows: list[tuple[float | None, float | None]],
) -> None:
    records: list[dict[str, Any]] = []
    for step, (measured, threshold) in enumerate(rows):
        found = {"sharpness/lambda_max": measured, "edge/threshold": threshold}
        records.append(
            {"step": step} | {key: value for key, value in found.items() if value is not None}
        )
        if measured is not None and threshold is not None and 0 < threshold < math.inf:
            records[-1]["edge/distance"] = measured / threshold
    assert summarise(records).get("crossed_edge_at") == report(records).get("first_crossing")


def test_what_was_not_measured_is_absent_and_what_was_not_reached_is_none() -> None:
    assert summarise([]) == {"last": {}}
    assert summarise([{"step": 0, "val/loss": 2.0}])["best_val"]["metric"] == "val/loss"
    assert summarise([{"step": 0, "edge/distance": 0.99}])["crossed_edge_at"] is None
