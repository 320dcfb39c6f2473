"""Pulled by one measure at a time: the contrast at one displacement, and the rules on it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optbench import lab
from optbench.studies.declaration import read_study
from optbench.studies.frame import REFUTED, SUPPORTED, Table, columns
from optbench.studies.tug_of_war import TugOfWar, contrasts, dissociation, ends, responses, slopes


def _study() -> TugOfWar:
    study = read_study("tug_of_war").study
    assert isinstance(study, TugOfWar)
    return study


def _path(lever: str, way: str, looks: list[tuple[float, float, float]]) -> list[dict[str, Any]]:
    """Rows of a path: (displacement, error, ln λ₁) of each look."""
    return [
        {
            "task": "t",
            "optimizer": "sgd",
            "seed": 1.0,
            "reached": 1.0,
            "diverged": 0.0,
            "lever": lever,
            "way": way,
            "displacement": d,
            "error": error,
            "sharpness": log,
        }
        for d, error, log in looks
    ]


def test_paths_are_read_off_at_the_displacement_that_all_three_come_to() -> None:
    rows = columns(
        [
            *_path("sharpness", "up", [(0.1, 1.0, 0.5), (0.3, 3.0, 1.5), (0.5, -7.0, -7.0)]),
            *_path("sharpness", "down", [(0.2, -1.0, -0.4), (0.15, -9.0, -9.0)]),
            *_path("random", "up", [(0.4, 2.0, 0.1)]),
        ]
    )
    (found,) = [dict(zip(c, v, strict=True)) for c, v in [_first(contrasts(rows))]]
    # d* = .2: halfway between up's looks, down's first, half of random's from the start at 0
    assert found["d"] == pytest.approx(0.2)
    assert [found[name] for name in ("up", "down", "random")] == pytest.approx([2.0, -1.0, 1.0])
    assert [found["log_up"], found["log_down"]] == pytest.approx([1.0, -0.4])
    assert slopes(contrasts(rows), "sharpness") == {"t": pytest.approx(3.0 / 1.4)}


def _first(table: Table) -> tuple[list[str], list[Any]]:
    return list(table), [values[0] for values in table.values()]


def test_what_moving_costs_is_no_slope() -> None:
    """Error = 10 d whatever the way, up three times as far as down."""
    rows = columns(
        [
            *_path("sharpness", "up", [(0.3, 3.0, 2.0)]),
            *_path("sharpness", "down", [(0.1, 1.0, -1.0)]),
            *_path("random", "up", [(0.2, 2.0, 0.0)]),
        ]
    )
    assert slopes(contrasts(rows), "sharpness") == {"t": pytest.approx(0.0, abs=1e-12)}


def test_dissociation_wants_both_in_units_of_their_own() -> None:
    rows = columns(
        [
            *_path("weight_norm", "down", [(0.1, -9.0, 9.0), (0.2, -1.5, 0.5)]),
            *_path("sharpness", "up", [(0.1, -5.0, 5.0)]),  # λ₁ itself does not count
            *_path("random", "up", [(0.1, -5.0, 5.0)]),
        ]
    )
    assert dissociation(ends(rows)) == pytest.approx(min(1.5 / 1, 0.5 / 0.2))
    assert responses(ends(rows), [])["random"] == {"error": -5.0}


@pytest.mark.parametrize("world", list(TugOfWar.worlds))
def test_planted_worlds_are_told_apart(world: str) -> None:
    study = _study()
    said = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, 77))}
    wrong = {SUPPORTED: REFUTED, REFUTED: SUPPORTED}
    for hypothesis, right in study.worlds[world].items():
        assert said[hypothesis] != wrong[right], (world, said)
    if world in ("flatness", "nothing"):
        assert said["flatness"] == study.worlds[world]["flatness"]


def test_a_table_without_paths_is_undecided() -> None:
    table = columns(
        [{"task": "t", "optimizer": "sgd", "seed": 1.0, "reached": 0.0, "diverged": 1.0}]
    )
    for finding in _study().judge(table):
        assert finding.verdict == "undecided" and "1 of them diverged" in finding.why


def test_the_constraint_can_be_met_on_every_task() -> None:
    """P > N·C by the declared sizes: weights of 40-100-10, 64-100-10 and 20-100-2 networks."""
    weights = {"mnist1d": 5110, "digits": 7510, "parity": 2302}
    held = {"mnist1d": 100 * 10, "digits": 100 * 10, "parity": 120 * 2}
    assert all(
        weights[task] > 2 * held[task] for task in _study().declaration.sizes["small"]["tasks"]
    )


def test_a_run_is_pulled_both_ways_and_at_random(tmp_path: Path) -> None:
    study = _study()
    study.pull = {"length": 0.1, "steps": 2, "look": 1}
    cell = study.plan("smoke")[0]
    run = lab.start(*cell.command, "model.widths=[30]", results_dir=tmp_path).train()
    rows = study.read(cell, run.folder)
    assert {(row["lever"], row["way"]) for row in rows} == {
        *((lever, way) for lever in cell.factors["levers"] for way in ("up", "down")),
        ("random", "up"),
    }
    assert max(row["deviation"] for row in rows) < 1e-3
    for row in rows:
        assert row["displacement"] > 0 and row["start_error"] < 50
        if row["lever"] != "random":
            assert math.copysign(1, row[row["lever"]]) == {"up": 1, "down": -1}[row["way"]]
    assert study.read(cell, run.folder) == rows
    assert np.isfinite(contrasts(columns(rows))["up"]).all()
