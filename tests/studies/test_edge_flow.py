"""What a run says about the Edge Flow, on planted worlds and on a valley with a known solution."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from optbench import lab
from optbench.dynamics.central_flow import GradientDescent, State
from optbench.dynamics.edge_flow import Oscillating
from optbench.dynamics.flat_loss import FlatLoss
from optbench.studies.declaration import read_study
from optbench.studies.edge_flow import SAID, EdgeFlow, cell_of, onset_of, planted
from optbench.studies.frame import REFUTED, SUPPORTED, Table, columns, subset


def _study() -> EdgeFlow:
    study = read_study("edge_flow").study
    assert isinstance(study, EdgeFlow)
    return study


def _one_run(**changes: float) -> Table:
    """A run whose edge flow is thrice as near as the central flow, and turns after 120 of 140."""
    rows = []
    for time in (100.0, 150.0, 300.0, 400.0):
        late = time > 200
        rows.append(
            {
                "activation": "tanh",
                "seed": 31,
                "time": time,
                "solved": 1.0,
                "start": 1.7,
                "crossed": 60.0,
                "onset": 200.0,
                "onset_edge": 180.0,
                "onset_per_step": 200.0,
                "highest": 2.01,
                "loss_center": 0.9 if late else 0.1,
                "loss_run": 1.0,
                "loss_central": 1.03,
                "loss_edge": 0.99,
                "weights_central": 0.3 if late else 9.0,
                "weights_edge": 0.1,
                "top_run": 2.3,
                "top_central": 2.0,
                "top_edge": 2.2 if late else 2.25,
            }
            | changes
        )
    return columns(rows)


def test_ratios_are_of_root_mean_squares_on_either_side_of_the_onset() -> None:
    cell = cell_of(_one_run())
    assert [cell[name] for name in ("weights", "loss", "top")] == pytest.approx([math.log(3)] * 3)
    assert cell["overshoot"] == pytest.approx(math.log(6))
    assert cell["delay_edge"] == pytest.approx(math.log(120 / 140))
    assert cell["delay_per_step"] == 0
    assert cell["swing"] == pytest.approx(1 / 9) and cell["beyond"] == pytest.approx(0.01)
    values = {name: said.statistic(cell) for name, said in SAID.items()}
    assert values["weights"] == pytest.approx(math.log(3 * 4))
    assert values["onset"] == pytest.approx(2 * math.log(1.25) - math.log(140 / 120))
    # a flow that never turns is as late as was looked, one that turns before the edge is at once
    assert cell_of(_one_run(onset_edge=math.nan))["delay_edge"] == pytest.approx(
        math.log((400 - 60) / 140)
    )
    assert cell_of(_one_run(onset_edge=30.0))["delay_edge"] == pytest.approx(math.log(1 / 140))


@pytest.mark.parametrize(
    "changes", [{"solved": 0.0}, {"start": 2.1}, {"loss_center": 0.9999}, {"highest": 2.5}]
)
def test_what_says_nothing_is_undecided(changes: dict[str, float]) -> None:
    study = _study()
    table = dict(study.planted("foretells", 0))
    for name, value in changes.items():
        table[name] = np.full(len(table[name]), value)
    found = study.judge(table)
    assert {f.verdict for f in found} == {"undecided"} and found[0].n == 0
    assert "0 of 20 runs count" in found[0].why


def test_a_run_without_onset_does_not_count() -> None:
    study = _study()
    table = study.planted("foretells", 0)
    extra = columns([{"activation": "tanh", "seed": 99, "solved": 1.0}])
    with_it = {k: np.append(v, extra.get(k, [np.nan])) for k, v in table.items()}
    found = study.judge(with_it)[0]
    assert (found.verdict, found.n) == (SUPPORTED, 20) and "20 of 21 runs count" in found.why


@pytest.mark.parametrize("world", list(EdgeFlow.worlds))
@pytest.mark.parametrize("draw", range(5))
def test_no_planted_world_fools_the_rule(world: str, draw: int) -> None:
    study = _study()
    said = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, draw))}
    assert set(said) == set(SAID)
    for hypothesis, right in study.worlds[world].items():
        assert said[hypothesis] != {SUPPORTED: REFUTED, REFUTED: SUPPORTED}[right], said
    # what is planted plainly is also found
    if world == "foretells":
        assert said["weights"] == said["overshoot"] == said["onset"] == SUPPORTED
    if world == "early":
        assert said["onset"] == REFUTED


def test_a_table_is_told_in_words() -> None:
    study = _study()
    table = planted("foretells", 0, study.declaration.sizes["small"], 12, 12)
    found = {f.hypothesis: f for f in study.judge(table)}
    # planted: half of the central flow's error, but for the noise
    assert "error over the Edge Flow's: gelu 1.88, tanh 1.9." in found["weights"].why
    assert "flow over run" in found["onset"].why


def _valley(w: Tensor) -> Tensor:
    """½ (1 + v) u² − b v: the curvature along u rises at a constant rate while u is small."""
    loss: Tensor = 0.5 * (1 + w[1]) * w[0].square() - 0.01 * w[1]
    return loss


def test_the_rows_of_a_rising_curvature() -> None:
    """Descent passes the edge, and the Edge Flow turns where it turns; the central flow is held."""
    study = _study()
    start = State(torch.tensor([1e-3, 2.5], dtype=torch.float64), torch.zeros(2).double())
    rows = study._compare(FlatLoss(_valley), GradientDescent(0.5), 0.5, start)
    assert len(rows) == study.times + study.before
    first = rows[0]
    assert first["start"] == pytest.approx(1.75, rel=1e-3)
    # λ₁η = .5 (1 + v) passes 2 after .5/(η b) = 100 steps
    assert first["crossed"] == pytest.approx(100, abs=5)
    assert first["onset_per_step"] == pytest.approx(first["onset"], abs=5)
    assert first["onset_edge"] == pytest.approx(first["onset"], rel=0.1)
    before = [row for row in rows if row["time"] < first["onset"]]
    assert len(before) == study.before
    for row in before[:-3]:  # the last ones hold the turn
        middle = 0.5 * (1 + 2.5 + 0.005 * (row["time"] + 0.5))
        assert row["top_edge"] == pytest.approx(middle, abs=0.005)
        assert row["top_run"] == pytest.approx(middle, abs=0.005)
        assert row["top_central"] <= 2.001
    assert cell_of(columns([{"activation": "t", "seed": 0, **row} for row in rows]))["solved"] == 1


def test_the_onset_of_a_path_is_its_first_turn_past_the_edge() -> None:
    def at(v: float) -> Oscillating:
        u = torch.tensor([1.0, 0.0], dtype=torch.float64)
        return Oscillating(torch.tensor([0.0, v], dtype=torch.float64), u, 1e-3, math.nan)

    # v = 3 is the edge of η = .5; a fall below it is no onset
    rise = [2.0, 2.9, 2.5, 3.1, 3.3, 3.2, 3.4]
    path = [at(v) for v in rise for _ in range(5)]
    assert onset_of(FlatLoss(_valley), 0.5, path) == 30
    assert math.isnan(onset_of(FlatLoss(_valley), 0.5, path[:25]))


def test_no_window_holds_a_step_before_the_onset_and_one_after_it() -> None:
    study = _study()
    looks = study._looks(crossed=60, onset=200, steps=500)
    before = [t for t in looks if t < 200]
    after = [t for t in looks if t > 200]
    assert (len(before), len(after)) == (study.before, study.times)
    assert before[0] == 60 and before[-1] + study.half_width <= 200
    assert after[0] - study.half_width >= 200 and after[-1] + study.half_width <= 500
    assert len(study._looks(crossed=195, onset=200, steps=500)) == study.times


def test_a_run_is_read_to_rows_and_drawn(tmp_path: Path) -> None:
    study = _study()
    study.patience, study.length, study.half_width = 20, 10, 2
    cell = study._cell("tanh", 900)
    words = [w for w in cell.command if not w.startswith(("steps=", "task.train_size="))]
    run = lab.start(*words, "task.train_size=20", f"results_dir={tmp_path}").train(steps=3)
    assert study.read(cell, run.folder) == [{"activation": "tanh", "seed": 900, "solved": 1.0}]
    table = study.planted("foretells", 0)
    drawn = list(study.draw(table, study.judge(table), tmp_path))
    assert drawn == ["top", "weights", "loss", "delays"]
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in drawn)
    assert not list(study.draw(subset(table, table["time"] < 0), [], tmp_path))
