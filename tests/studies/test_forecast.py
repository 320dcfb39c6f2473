"""Forecasts of the board: its order, ρ and Brier scores by hand, ties, and a forecast written."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor, nn

from optbench import lab
from optbench.run.loop import Parts
from optbench.run.update import Update
from optbench.studies.declaration import read_study
from optbench.studies.forecast import (
    Forecast,
    after,
    along_path,
    brier,
    budget,
    factory,
    initial,
    misplaced,
    order,
    score_tasks,
    spearman,
)
from optbench.studies.frame import Cell, Table, columns, subset
from optbench.task import Split, Task

ENTRIES = Path(__file__).resolve().parents[2] / "results" / "entries" / "small-v2"
CURVATURES = torch.tensor([1.0, 10.0], dtype=torch.float64)
START = torch.tensor([3.0, 0.5], dtype=torch.float64)
RATE = 0.05


def study() -> Forecast:
    found = read_study("forecast").study
    assert isinstance(found, Forecast)
    return found


def quadratic() -> tuple[Parts, list[tuple[Tensor, Tensor]]]:
    """½wᵀ diag(1, 10) w: the half mean square error of a linear model at inputs √(2λ_i) e_i."""
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(START)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() / 2

    split = Split(torch.diag((2 * CURVATURES).sqrt()), torch.zeros(2, 1, dtype=torch.float64))
    task = Task(split, split, None, 1, loss)
    update = Update(model, loss, torch.optim.SGD(model.parameters(), RATE))
    parts = cast(Parts, SimpleNamespace(task=task, update=update))
    return parts, [(split.inputs, split.targets)] * 8


def by_descent(steps: int) -> Tensor:
    return START * (1 - RATE * CURVATURES) ** steps


def test_the_board_orders_only_pairs_that_its_seeds_tell_apart() -> None:
    noise = np.array([0.1, -0.1, 0.05, -0.05, 0.0])
    board = np.array([1 + noise, 2 - noise, 1.01 + noise[::-1], [3.0, 3, 3, 3, math.nan]])
    signs, p = order(board)
    # a run that diverged counts as the worst value, 3
    expected = np.array([[0, 1, 0, 1], [-1, 0, -1, 1], [0, 1, 0, 1], [-1, -1, -1, 0]])
    np.testing.assert_array_equal(signs, expected)
    assert p < 0.01
    same, p = order(np.ones((4, 5)))
    assert not same.any() and p == 1


def test_a_difference_that_is_the_same_on_all_seeds_is_told_apart() -> None:
    # paired: the seeds' common part is far greater than the difference
    common = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    assert order(np.array([common, common + 1]))[0][0, 1] == 1


def test_spearman_shares_ranks_and_takes_infinite_values() -> None:
    truth = np.array([1.0, 2, 3, 4])
    assert spearman(np.array([-math.inf, 0, 5, 6]), truth) == pytest.approx(1)
    # ranks 1.5, 1.5, 3.5, 3.5 against 1, 2, 3, 4: covariance 4/4, variances 4/4 and 5/4
    assert spearman(np.array([0.0, 0, 1, 1]), truth) == pytest.approx(1 / math.sqrt(1.25))
    assert spearman(np.ones(4), truth) == 0
    assert math.isnan(spearman(truth, np.ones(4)))


def test_brier_score_is_that_of_the_normal_probability() -> None:
    gains = np.array([[1.0, 3.0], [0.0, 0.0], [5.0, -5.0]])
    signs = np.array([[0.0, 1, 0], [-1, 0, -1], [0, 1, 0]])  # 0 and 2 are not told apart
    # d = (1, 3): mean 2, deviation √2; d = (−5, 5): mean 0, so P = ½
    first = (float(special.ndtr(2 / math.sqrt(2))) - 1) ** 2
    assert brier(gains, signs) == pytest.approx((first + 0.25) / 2)
    assert brier(np.zeros((3, 2)), signs) == pytest.approx(0.25)
    assert math.isnan(brier(gains, np.zeros((3, 3))))


def tied(table: Table, tasks: list[str]) -> Table:
    """The table with all optimizers alike on some tasks' boards."""
    of_board = np.isin(table["task"], tasks) & (table["kind"] == "board")
    return {**table, "value": np.where(of_board, table["seed"], table["value"])}


def test_a_task_on_which_all_tie_weighs_neither_for_nor_against() -> None:
    one = study()
    table = one.planted("foretells", 0)
    ties = ["char_lm", "logistic"]
    kept = subset(table, ~np.isin(table["task"], ties))
    for a, b in zip(one.judge(tied(table, ties)), one.judge(kept), strict=True):
        assert (a.estimate, a.verdict, a.n) == (b.estimate, b.verdict, b.n) and a.n == 5
    every = np.unique(table["task"]).tolist()
    assert {(f.verdict, f.n) for f in one.judge(tied(table, every))} == {("undecided", 0)}


@pytest.mark.parametrize("world", ["loss_only", "ties"])
def test_neither_a_good_short_loss_nor_ties_fool_the_rules(world: str) -> None:
    one = study()
    found = {f.hypothesis: f.verdict for f in one.judge(one.planted(world, seed=5))}
    for hypothesis, right in one.worlds[world].items():
        assert found[hypothesis] in (right, "undecided")
    assert found["beats_loss"] == one.worlds[world]["beats_loss"]


def small_table(divergence: float | None) -> Table:
    """Two optimizers on one task; `adam` is better, and its best rate is the first."""
    rows: list[dict[str, Any]] = []
    for name, gain, losses in (("adam", 1.0, (1.0, 3.0, 2.0)), ("sgd", 0.0, (2.0, 1.5, 4.0))):
        about = {"task": "t", "optimizer": name}
        for s in (1, 2):
            bend = math.exp(-gain)
            row = {"kind": "step", "seed": s, "point": 0, "alignment": 1.0, "curvature": bend}
            rows.append(about | row | {"gd_curvature": 1.0, "gn": bend, "gn_gd": 1.0})
            for rate, loss in zip((0.1, 0.5, 0.9), losses, strict=True):
                value = divergence if (name, s, rate) == ("adam", 2, 0.1) else loss
                rows.append(about | {"kind": "short", "seed": s, "rate": rate, "value": value})
        for s in range(8):
            value = float(name == "sgd") + 0.01 * s
            rows.append(about | {"kind": "board", "seed": s, "value": value})
    return columns(rows)


def test_a_rate_at_which_one_seed_diverged_is_not_taken() -> None:
    (row,) = score_tasks(small_table(1.0))
    assert (row["shadow"], row["loss"], row["pairs"]) == pytest.approx((1, 1, 1))
    assert row["counts"]  # 8 seeds agree: χ² = 8, p = .005
    (row,) = score_tasks(small_table(None))
    assert (row["shadow"], row["loss"]) == pytest.approx((1, -1))  # 2 against 1.5
    assert misplaced(small_table(None), "loss") == {"adam": {"t": 1.0}, "sgd": {"t": -1.0}}
    assert misplaced(small_table(None), "shadow") == {"adam": {"t": 0.0}, "sgd": {"t": 0.0}}


def test_the_path_is_the_drivers_and_gradient_descents_shadow_gains_as_much_as_it() -> None:
    parts, batches = quadratic()
    makers = {"sgd": lambda p: torch.optim.SGD(p, 7.0), "sign": lambda p: torch.optim.Adam(p)}
    rows = along_path(parts, batches, cast(Any, makers), 4)
    assert [row["step"] for row in rows] == [2, 2, 4, 4, 6, 6, 8, 8]
    assert {row["optimizer"] for row in rows} == {"sgd", "sign"}
    for row in rows:
        g = CURVATURES * by_descent(row["step"] - 1)
        bend = float(g @ (CURVATURES * g) / (g @ g))
        assert row["gd_curvature"] == pytest.approx(bend, rel=5e-6)  # six digits
        if row["optimizer"] == "sgd":
            assert row["alignment"] == pytest.approx(1, abs=1e-6)
            assert row["curvature"] == pytest.approx(bend, rel=5e-6)
    moved = cast(Any, parts.update.model).weight.detach()[0]
    torch.testing.assert_close(moved, by_descent(8), rtol=1e-12, atol=0)


def test_a_short_loss_is_that_of_gradient_descent_and_leaves_the_start_alone() -> None:
    parts, batches = quadratic()
    value = after(parts, batches, lambda p: torch.optim.SGD(p, RATE), "val/loss")
    w = by_descent(8)
    assert value == pytest.approx(float(w @ (CURVATURES * w)) / 2, rel=5e-6)  # six digits
    torch.testing.assert_close(cast(Any, parts.update.model).weight.detach()[0], START)
    assert after(parts, batches, lambda p: torch.optim.SGD(p, 1e300), "val/loss") is None


def test_all_rates_of_an_optimizer_move_together_over_its_search_range() -> None:
    muon = factory("muon", 0.5)([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))])
    assert [group["lr"] for group in muon.param_groups] == pytest.approx([1e-2, 10**-2.5])
    adam = factory("adam")([nn.Parameter(torch.ones(2))])
    assert adam.param_groups[0]["lr"] == 2e-3  # the YAML's


def test_a_budget_is_a_share_of_the_steps_that_a_task_says() -> None:
    assert budget(["task=digits", "steps=120"], 0.2) == 24
    with pytest.raises(ValueError, match="says its steps once"):
        budget(["task=digits"], 0.2)


def test_a_forecast_is_written_whole_before_the_board_is_read(tmp_path: Path) -> None:
    one = study()
    planned = one.plan("smoke")[0]
    cell = Cell(
        {"task": "logistic", "seeds": [101, 102], "optimizers": ["adam", "sgd"]},
        (*planned.command[:-1], "steps=4", f"results_dir={tmp_path}"),
    )
    run = lab.start(*cell.command).train()
    blind = one.read(cell, run.folder)
    assert {row["kind"] for row in blind} == {"forecast", "short", "step"}  # there is no board
    assert {f.verdict for f in one.judge(columns(blind))} == {"undecided"}
    (file,) = run.folder.glob("forecast-*.json")
    written = json.loads(file.read_text())
    digest = written.pop("sha256")
    assert digest == "sha256:" + hashlib.sha256(json.dumps(written).encode()).hexdigest()

    folder = tmp_path / "entries" / "small-v2"
    folder.mkdir(parents=True)
    for name in ("adam", "sgd", "lion"):
        shutil.copy(ENTRIES / f"{name}.jsonl", folder)
    rows = one.read(cell, run.folder)
    board = [row for row in rows if row["kind"] == "board"]
    assert rows[: len(blind)] == blind  # kept, its time and its hash too
    assert [(row["optimizer"], row["seed"]) for row in board] == [
        (name, seed) for name in ("adam", "sgd") for seed in range(5)
    ]
    assert len([row for row in rows if row["kind"] == "short"]) == 2 * 2 * len(one.rates)
    assert len([row for row in rows if row["kind"] == "step"]) == 2 * 2 * one.points


def test_the_path_of_the_first_seed_is_the_runs(tmp_path: Path) -> None:
    command = (*study().plan("smoke")[0].command[:-1], "steps=3", f"results_dir={tmp_path}")
    run = lab.start(*command).train()
    parts = initial(command)
    along_path(parts, [parts.batches.next() for _ in range(3)], {}, 1)
    for own, theirs in zip(parts.update.parameters, run.at().model.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=0)
