"""Which runs say something about a flow, what they say, and what a run's rows are."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from optbench import lab
from optbench.dynamics.central_flow import EDGE, GradientDescent, RMSprop, State
from optbench.dynamics.flat_loss import FlatLoss
from optbench.studies.declaration import read_study
from optbench.studies.flow import LOOK, OUTCOMES, Flow, begin, cell_of, follow
from optbench.studies.frame import Table, columns, subset


def _study() -> Flow:
    study = read_study("flow").study
    assert isinstance(study, Flow)
    return study


def _rows(ratio: float, **changes: float) -> Table:
    """Five seeds; the stable flow's error is `ratio` times the central flow's, about."""
    rows: list[dict[str, Any]] = []
    for optimizer in ("sgd", "rmsprop"):
        for seed in range(5):
            for time in (-0.2, 0.6, 0.8):
                near = ratio * (1 + 0.02 * seed)
                rows.append(
                    {
                        "activation": "tanh",
                        "optimizer": optimizer,
                        "seed": seed,
                        "time": time,
                        "solved": 1.0,
                        "start": 1.5,
                        "crossed": 30.0,
                        "onset": 75.0,
                        "top_at_onset": 2.4,
                        # before the onset nothing counts
                        "weights_stable": 0.01 * near if time > 0 else 0.0,
                        "weights_central": 0.01 if time > 0 else 9.0,
                        "loss_run": 1.0,
                        "loss_center": 0.9 if time > 0 else 0.1,
                        "loss_stable": 1 - 0.01 * near if time > 0 else 1.0,
                        "loss_central": 1.01,
                        "top_run": 2.0,
                        "top_stable": 2 + 0.01 * near if time > 0 else 2.0,
                        "top_central": 1.99,
                        "highest": 2.0,
                    }
                    | changes
                )
    return columns(rows)


def _verdicts(table: Table) -> set[str]:
    return {finding.verdict for finding in _study().judge(table)}


def test_the_ratio_is_that_of_root_mean_squares_after_the_onset() -> None:
    table = _rows(3.0)
    one = subset(table, (table["optimizer"] == "sgd") & (table["seed"] == 0))
    cell = cell_of(one)
    assert cell["weights"] == pytest.approx(math.log(3))
    assert cell["loss"] == pytest.approx(math.log(3))
    assert cell["top"] == pytest.approx(math.log(3))
    assert (cell["late"], cell["top_at_onset"]) == (45.0, 2.4)
    assert cell["swing"] == pytest.approx(1 / 9)
    assert (cell["beyond"], cell["start"]) == (0.0, 1.5)
    late = {**one, "weights_stable": np.array([0.0, 3.0, 4.0]), "weights_central": np.ones(3)}
    assert cell_of(late)["weights"] == pytest.approx(math.log(math.sqrt(12.5)))


def test_verdicts_of_ratios() -> None:
    assert _verdicts(_rows(5.0)) == {"supported"}
    assert _verdicts(_rows(2.0)) == {"refuted"}  # 2 is what halving is, within e^.2
    assert _verdicts(_rows(1.0)) == {"refuted"}
    found = _study().judge(_rows(5.0))[0]
    # seeds 0 to 4 have 5 (1 + .02 s); their mean log
    mean = np.mean([math.log(5 * (1 + 0.02 * s)) for s in range(5)])
    assert found.estimate.value == pytest.approx(mean - math.log(2))
    assert found.n == 5 and "tanh 5.2" in found.why
    assert "began 45 steps after the edge was passed, at an eigenvalue of 2.40" in found.why


@pytest.mark.parametrize(
    "changes",
    [
        {"solved": 0.0},  # no X held the edge
        {"start": 2.1},  # taken up past the edge
        {"loss_center": 0.9999},  # no oscillation
        {"time": -1.0},  # nothing after the onset
        {"highest": 2.5},  # the flow passed the edge: its third derivative is wrong
    ],
)
def test_what_says_nothing_is_undecided(changes: dict[str, float]) -> None:
    assert _verdicts(_rows(1.0, **changes)) == {"undecided"}


def test_no_planted_world_fools_the_rule() -> None:
    study = _study()
    for world, right in study.worlds.items():
        found = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, 0))}
        assert set(right) == set(OUTCOMES) == set(found)
        known = world in ("central", "no_better", "long_overshoot")
        assert all(v == (right[n] if known else "undecided") for n, v in found.items()), world


@pytest.mark.parametrize("row", [{"solved": 0.0}, {"solved": 1.0}])  # the latter has no onset
def test_a_run_without_rows_is_undecided(row: dict[str, float]) -> None:
    assert _verdicts(columns([{"activation": "tanh", "optimizer": "sgd", "seed": 1, **row}])) == {
        "undecided"
    }
    with_others = columns([{"activation": "gelu", "optimizer": "sgd", "seed": 1, **row}])
    whole = _rows(5.0)
    table = {k: np.append(v, with_others.get(k, [np.nan])) for k, v in whole.items()}
    found = _study().judge(table)[0]
    assert (found.verdict, found.n) == ("supported", 5) and "5 of 6 runs count" in found.why


def _valley(w: Tensor) -> Tensor:
    """½ (1 + v) u² − b v: the curvature along u rises at a constant rate while u is small."""
    loss: Tensor = 0.5 * (1 + w[1]) * w[0].square() - 0.01 * w[1]
    return loss


def test_the_onset_is_where_the_curvature_turns_past_the_edge() -> None:
    loss, rule = FlatLoss(_valley), GradientDescent(0.5)
    start = State(torch.tensor([1e-3, 2.5], dtype=torch.float64), torch.zeros(2).double())
    states, onset = follow(loss, rule, start, patience=500, length=7)
    assert onset is not None and len(states) == onset.step + 7
    # λ₁ = 1 + v passes 2/η = 4 at v = 3: (3 − 2.5)/(η b) = 100 steps; u has to grow from there
    assert onset.crossed in (100, 105)
    v = [float(s.weights[1]) for s in states]
    turn = int(np.argmax(np.diff(v) < 0)) + 1
    assert 0 <= onset.step - turn <= 2 * LOOK and onset.step > 150
    assert onset.top == pytest.approx(0.5 * (1 + max(v)), abs=0.02)
    # the steps are those of the optimizer, none is left out
    more, _ = follow(loss, rule, start, patience=onset.step + 1, length=0)
    torch.testing.assert_close(states[onset.step - 1].weights, more[onset.step - 1].weights)
    again = rule.step(loss, states[onset.step - 1])
    torch.testing.assert_close(states[onset.step].weights, again.weights)
    assert follow(loss, rule, start, patience=90, length=7)[1] is None
    # a curvature that falls below the edge, as here in the first ten steps, is no onset
    falling = State(torch.tensor([0.6, 2.9], dtype=torch.float64), torch.zeros(2).double())
    _, late = follow(loss, rule, falling, patience=800, length=1)
    assert late is not None and late.crossed > 60 and late.top > EDGE


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_a_run_is_followed_from_where_it_ended(tmp_path: Path, optimizer: str) -> None:
    study = _study()
    cell = study._cell("tanh", optimizer, 900)
    words = [w for w in cell.command if not w.startswith(("steps=", "task.train_size="))]
    run = lab.start(*words, "task.train_size=20", f"results_dir={tmp_path}").train(steps=6)
    loss, rule, state = begin(run.end)
    assert isinstance(rule, RMSprop if optimizer == "rmsprop" else GradientDescent)
    assert loss.value(state.weights) == pytest.approx(run.last["train/loss"], rel=1e-9)
    # the seventh step of the run is the first of `discrete`
    more = lab.start(*words, "task.train_size=20", f"results_dir={tmp_path}").train(steps=7)
    after = rule.step(loss, state)
    torch.testing.assert_close(after.weights, begin(more.end)[2].weights)
    study.patience = 20
    assert study._rows(run.folder) == [{"solved": 1.0}]  # so short a run has no onset


def test_the_rows_of_a_rising_curvature() -> None:
    """The central flow stays at the edge, the stable flow's curvature rises on at the rate η b."""
    study = _study()
    study.length, study.half_width = 60, 6
    start = State(torch.tensor([1e-3, 2.5], dtype=torch.float64), torch.zeros(2).double())
    rows = study._compare(FlatLoss(_valley), GradientDescent(0.5), start)
    assert len(rows) == study.times + study.before
    # λ₁η = .5 (1 + v) is 1.75 at first, and 2 after 100 steps
    assert rows[0]["start"] == pytest.approx(1.75)
    assert rows[0]["crossed"] == pytest.approx(100, abs=5)
    assert 2 < rows[0]["top_at_onset"] < 0.5 * (1 + 2.5 + 0.005 * rows[0]["onset"]) + 0.01
    late = [row for row in rows if row["time"] > 0]
    assert len(late) == study.times
    for row in late:
        step = rows[0]["onset"] + row["time"] * study.length
        stable = 0.5 * (1 + 2.5 + 0.005 * (step + 0.5))  # the window's middle
        assert row["top_stable"] == pytest.approx(stable, abs=0.01)
        assert row["top_central"] == pytest.approx(2, abs=1e-3)
        assert row["loss_stable"] == pytest.approx(-0.01 * (2 * stable - 1), abs=1e-4)


def test_no_judged_window_holds_a_step_before_the_onset() -> None:
    study = _study()
    looks = study._looks(onset=100, steps=100 + study.length)
    after = [t for t in looks if t > 100]
    assert len(after) == study.times and len(looks) == study.times + study.before
    # states[t − half : t + half] are w_{t−half+1}, …, w_{t+half}
    assert after[0] - study.half_width >= 100 and after[-1] + study.half_width <= 100 + study.length
    assert max(t for t in looks if t <= 100) + study.half_width <= 100
    assert len(study._looks(onset=5, steps=5 + study.length)) == study.times
