"""What the studies share: an interval over clusters, its verdict, and a measurement that is kept."""

import math
from pathlib import Path

import numpy as np
import pytest

from optbench.statistics import cluster_bootstrap
from optbench.studies.frame import Hypothesis, columns, rounded
from optbench.studies.judging import UNKNOWN, interval_of, judged, mean_of_values
from optbench.studies.measured_once import measured_once

ROWS = columns([{"seed": seed, "value": float(seed % 3)} for seed in range(8)])


def test_an_interval_is_that_of_the_bootstrap_and_unknown_with_too_few_clusters() -> None:
    def mean(table: object) -> float:
        return float(table["value"].mean())  # type: ignore[index]

    found = interval_of(ROWS, mean, 0.95, 200)
    assert found == cluster_bootstrap(ROWS, mean, "seed", 200, 0.95, "percentile")
    assert mean_of_values(ROWS, 0.95, 200) == found
    assert interval_of(ROWS, mean, 0.95, 200, least=9) is UNKNOWN
    one = {name: values[:1] for name, values in ROWS.items()}
    assert interval_of(one, mean, 0.95, 200) is UNKNOWN
    assert interval_of({}, mean, 0.95, 200) is UNKNOWN


def test_what_is_unknown_is_undecided_whatever_was_expected() -> None:
    for sign in (1, -1):
        finding = judged(Hypothesis("h", "claim", "statistic", sign, 0.1), UNKNOWN, 0, "why")
        assert (finding.verdict, finding.n, finding.why) == ("undecided", 0, "why")


def test_a_measurement_is_made_once_for_its_settings(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"times": len(made)}

    assert [measured_once(tmp_path, "x", [1, 2], make)["times"] for _ in range(3)] == [1, 1, 1]
    assert measured_once(tmp_path, "x", [1, 3], make)["times"] == 2
    assert measured_once(tmp_path, "y", [1, 2], make)["times"] == 3
    for file in tmp_path.glob("x-*.json"):
        file.write_text('{"times": ')  # a crash of the disk: measured again
    assert measured_once(tmp_path, "x", [1, 2], make)["times"] == 4


def test_a_row_has_six_digits_and_no_value_for_what_is_not_finite() -> None:
    row = {"a": 1 / 3, "b": math.nan, "c": "text", "d": 7, "e": np.float64(2e9) / 3}
    assert rounded(row) == {
        "a": 0.333333,
        "b": None,
        "c": "text",
        "d": 7,
        "e": pytest.approx(6.66667e8),
    }
