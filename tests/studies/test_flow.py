"""Which runs say something about a flow, what they say, and what a run's rows are."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optbench import lab
from optbench.dynamics.central_flow import GradientDescent, RMSprop
from optbench.studies.declaration import read_study
from optbench.studies.flow import OUTCOMES, Flow, begin, cell_of
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
            for time in (0.2, 0.6, 0.8):
                near = ratio * (1 + 0.02 * seed)
                rows.append(
                    {
                        "activation": "tanh",
                        "optimizer": optimizer,
                        "seed": seed,
                        "time": time,
                        "solved": 1.0,
                        "start": 1.5,
                        # before the half nothing counts
                        "weights_stable": 0.01 * near if time > 0.5 else 0.0,
                        "weights_central": 0.01 if time > 0.5 else 9.0,
                        "loss_run": 1.0,
                        "loss_center": 0.9,
                        "loss_stable": 1 - 0.01 * near,
                        "loss_central": 1.01,
                        "top_central": 2.0,
                    }
                    | changes
                )
    return columns(rows)


def _verdicts(table: Table) -> set[str]:
    return {finding.verdict for finding in _study().judge(table)}


def test_the_ratio_is_that_of_root_mean_squares_over_the_second_half() -> None:
    table = _rows(3.0)
    one = subset(table, (table["optimizer"] == "sgd") & (table["seed"] == 0))
    cell = cell_of(one)
    assert cell["weights"] == pytest.approx(math.log(3))
    assert cell["loss"] == pytest.approx(math.log(3))
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


@pytest.mark.parametrize(
    "changes",
    [
        {"solved": 0.0},  # no X held the edge
        {"start": 2.1},  # taken up past the edge
        {"loss_center": 0.9999},  # no oscillation
        {"top_central": 2.5},  # the flow passed the edge: its third derivative is wrong
    ],
)
def test_what_says_nothing_is_undecided(changes: dict[str, float]) -> None:
    assert _verdicts(_rows(1.0, **changes)) == {"undecided"}


def test_no_planted_world_fools_the_rule() -> None:
    study = _study()
    for world, right in study.worlds.items():
        found = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, 0))}
        assert set(right) == set(OUTCOMES) == set(found)
        known = world in ("central", "no_better")
        assert all(v == (right[n] if known else "undecided") for n, v in found.items()), world


def test_a_run_without_rows_is_undecided() -> None:
    row = {"activation": "tanh", "optimizer": "sgd", "seed": 1, "solved": 0.0}
    assert _verdicts(columns([row])) == {"undecided"}


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
    rows = study._rows(run.folder, steps=24)
    assert len(rows) == study.times and rows[0]["solved"] == 1
    # below the edge and for so few steps all three are together
    assert rows[-1]["weights_stable"] < 0.1 * rows[-1]["moved"]
    assert rows[-1]["weights_central"] < 0.1 * rows[-1]["moved"]
