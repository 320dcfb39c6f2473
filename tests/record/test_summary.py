from typing import Any

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


def test_what_was_not_measured_is_absent() -> None:
    assert summarise([]) == {"last": {}}
    assert summarise([{"step": 0, "val/loss": 2.0}])["best_val"]["metric"] == "val/loss"
