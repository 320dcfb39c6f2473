"""Optimizers at equal distance to their own edges."""

import math

import numpy as np
import pytest

from optbench.studies import matched_edge
from optbench.studies.declaration import read_study
from optbench.studies.frame import REFUTED, SUPPORTED, subset


def test_spread_is_without_the_noise_of_the_seeds() -> None:
    a, b = np.array([1.0, 3.0]), np.array([5.0, 7.0])
    # means 2 and 6: variance 8; of each mean, 2/2
    assert matched_edge._sd([a, b]) == pytest.approx(math.sqrt(8 - 1))
    assert matched_edge._sd([a, a]) == 0
    assert matched_edge._range([a, b]) == 4


def test_what_is_left_is_the_ratio_of_spreads() -> None:
    errors = {
        ("t", mode, name): scale * np.array([x - 0.1, x + 0.1]) + 50
        for mode, scale in (("usual", 2.0), ("dial 0.6", 1.0))
        for name, x in (("a", 1.0), ("b", 2.0), ("c", 4.0))
    }
    assert matched_edge.remaining_share(errors) == pytest.approx(0.5)
    assert matched_edge._order(errors) == pytest.approx(1)


def test_runs_that_did_not_hold_the_distance_are_left_out() -> None:
    table = dict(read_study("matched_edge").study.planted("remains", 0))
    rows, why = matched_edge.comparable(table)
    assert len(rows["seed"]) == 2 * 6 * 3 * 10 and why == ""
    off = (table["optimizer"] == "a") & (table["mode"] == "dial 0.6")
    table["distance"] = np.where(off, 2 * table["distance"], table["distance"])
    rows, why = matched_edge.comparable(table)
    assert not ((rows["optimizer"] == "a") & (rows["mode"] == "dial 0.6")).any()
    assert "20 did not hold the distance" in why and "a at dial 0.6 on mnist1d" in why
    # with four optimizers there is no comparison
    off |= (table["optimizer"] == "b") & (table["mode"] == "dial 0.6")
    table["reached"] = np.where(off, 0.0, 1.0)
    rows, _ = matched_edge.comparable(table)
    assert "dial 0.6" not in set(rows["mode"]) and "dial 0.95" in set(rows["mode"])


def test_a_claim_on_a_task_or_a_distance_is_judged_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """At .95, and on digits, the spread is gone: only what is judged elsewhere remains."""
    monkeypatch.setattr(matched_edge, "DRAWS", 60)
    study = read_study("matched_edge_dials").study
    table = dict(study.planted("remains", 0))
    gone = (table["mode"] == "dial 0.95") | (table["task"] == "digits")
    gone &= table["mode"] != matched_edge.USUAL
    noise = np.random.default_rng(0).normal(0, 0.7, len(gone))
    table["error"] = np.where(gone, 50 + noise, table["error"])
    far_off = table["mode"] == "dial 0.6"
    table["distance"] = np.where(far_off, table["distance"] / 2, table["distance"])
    table["mode"] = np.where(far_off, "dial 0.3", table["mode"])
    found = {f.hypothesis: f for f in study.judge(table)}
    shares = {name: found[f"remains_{name}"].estimate.value for name in ("mnist1d", "digits")}
    assert shares["digits"] < 0.3 and 0.4 < shares["mnist1d"] < 0.7
    near, far = (found[f"remains_dial_{dial}"] for dial in ("0.95", "0.3"))
    assert near.verdict == REFUTED and near.estimate.value < 0.3
    assert 0.4 < far.estimate.value < 0.7 and near.n == far.n == 240


@pytest.mark.parametrize("world", matched_edge.MatchedEdge.worlds)
def test_no_planted_world_fools_the_rules(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matched_edge, "DRAWS", 60)
    study = read_study("matched_edge").study
    table = study.planted(world, 0)
    table = subset(table, table["task"] == "mnist1d")
    found = {f.hypothesis: f.verdict for f in study.judge(table)}
    for name, right in study.worlds[world].items():
        assert found[name] != {SUPPORTED: REFUTED, REFUTED: SUPPORTED}[right], name
    if world == "remains":
        assert found["remains"] == SUPPORTED
