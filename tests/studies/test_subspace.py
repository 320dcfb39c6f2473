"""Steps projected on the sharpest directions: closed forms on a quadratic, and the rules."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optbench import lab
from optbench.curvature import Hessian
from optbench.run.update import Update
from optbench.studies.declaration import read_study
from optbench.studies.frame import Cell, Table, columns
from optbench.studies.subspace import FRESH, Subspace, Top, advance, usable, valley_floor
from optbench.task import Split, Task

CURVATURES = torch.tensor([10.0, 4.0, 1.0], dtype=torch.float64)
START = torch.tensor([0.3, -0.5, 2.0], dtype=torch.float64)
LR = 0.05


def study() -> Subspace:
    found = read_study("subspace").study
    assert isinstance(found, Subspace)
    return found


def quadratic() -> Any:
    """A snapshot of gradient descent on ½wᵀ diag(10, 4, 1) w."""
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(START)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() / 2

    inputs, targets = torch.diag((3 * CURVATURES).sqrt()), torch.zeros(3, 1, dtype=torch.float64)
    task = Task(Split(inputs, targets), None, None, 1, loss)
    update = Update(model, task.loss, torch.optim.SGD(model.parameters(), LR))
    return SimpleNamespace(
        parts=SimpleNamespace(update=update),
        task=task,
        model=model,
        optimizer=update.optimizer,
        batches=SimpleNamespace(next=lambda: (inputs, targets)),
    )


@pytest.mark.parametrize(("arm", "moving"), [("full", (0, 1, 2)), ("top", (0,)), ("bulk", (1, 2))])
def test_an_arm_moves_its_own_directions_and_no_other(arm: Any, moving: tuple[int, ...]) -> None:
    at, steps = quadratic(), 30
    first = float((CURVATURES * START**2).sum() / 2)
    row = advance(at, arm, 0 if arm == "full" else 1, 1, steps, first)
    factor = torch.ones(3, dtype=torch.float64)
    factor[list(moving)] = 1 - LR * CURVATURES[list(moving)]
    # residuals of .03 λ₁ may turn the vector by .03 · 10/(10 − 4) = .05; on a quadratic whose
    # vectors the solver finds exactly (P = 3) only rounding is left
    torch.testing.assert_close(
        at.model.weight[0].detach(), START * factor**steps, atol=1e-6, rtol=0
    )
    losses = [float((CURVATURES * (START * factor**t) ** 2).sum() / 2) for t in range(1, steps + 1)]
    assert row["ratio"] == pytest.approx(np.mean(losses[-20:]) / first, rel=1e-5)
    assert row["distance"] == pytest.approx(10 * LR / 2, rel=1e-3)
    if arm == "bulk":  # in the first step; the top's gradient stays, the other's fades
        assert row["held"] > (10 * 0.3) ** 2 / float(((CURVATURES * START) ** 2).sum())


def test_the_floor_of_a_quadratic_valley_is_what_is_left_beside_the_top() -> None:
    first = float((CURVATURES * START**2).sum() / 2)
    left = float((CURVATURES * START**2)[1:].sum() / 2)
    assert valley_floor(quadratic(), 1, first) == pytest.approx(left / first, rel=1e-5)


def test_an_arm_that_diverges_is_a_row() -> None:
    at = quadratic()
    at.optimizer.param_groups[0]["lr"] = 1.0
    row = advance(at, "full", 0, 1, 60, 1.0)
    assert (row["ratio"], row["diverged"]) == (10.0, 1.0)


def test_old_vectors_show_how_much_curvature_they_have_lost() -> None:
    at = quadratic()
    top = Top(Hessian(at.model, at.task.loss, (at.task.train.inputs, at.task.train.targets)), 1, 5)
    first = top.at(0)
    assert top.at(4) is first and top.kept == []
    with torch.no_grad():
        at.task.train.inputs.copy_(at.task.train.inputs.flip(0).flip(1))  # the last is sharpest
    top.at(5)
    assert top.kept == [pytest.approx(0, abs=1e-6)]


def rows(**changes: Any) -> Table:
    """A hand-made table: top ratio .99, bulk .8, full .86, three times the edge."""
    made = []
    for optimizer in ("gd", "sgd", "adam", "sam"):
        for seed in range(1, 6):
            wiggle = 0.002 * seed
            base: dict[str, Any] = {
                "optimizer": optimizer,
                "seed": seed,
                "k": 10,
                "every": 1,
                "main": 1,
            }
            base |= {"start_distance": 1.0, "diverged": 0.0, "fresh": 0.97, "held": 0.9}
            base |= {"full_ratio": 0.86, "distance": 3 + wiggle} | changes
            made.append(base | {"arm": "top", "ratio": 0.99 + wiggle})
            made.append(base | {"arm": "bulk", "ratio": 0.8 + wiggle})
    return columns(made)


def verdicts(table: Table) -> dict[str, str]:
    return {f.hypothesis: f.verdict for f in study().judge(table)}


def test_the_rules_on_tables_made_by_hand() -> None:
    found = verdicts(rows())
    assert {found[h] for h in ("top_stalls", "bulk_learns", "bulk_adam", "bulk_edge")} == {
        "supported"
    }
    assert found["stale"] == "undecided"  # no old vectors there
    assert verdicts(rows(full_ratio=0.7))["bulk_learns"] == "refuted"
    assert verdicts(rows(distance=1.0))["bulk_edge"] != "supported"
    one_learns = dict(rows())
    learns = (one_learns["optimizer"] == "sgd") & (one_learns["arm"] == "top")
    one_learns["ratio"] = np.where(learns, one_learns["ratio"] - 0.1, one_learns["ratio"])
    assert verdicts(one_learns)["top_stalls"] == "refuted"  # the claim is of every optimizer


def test_what_is_not_at_its_edge_or_is_stale_is_left_out_and_counted() -> None:
    table = dict(rows())
    table["fresh"] = np.where(table["optimizer"] == "sam", FRESH - 0.1, table["fresh"])
    table["start_distance"] = np.where(table["optimizer"] == "gd", 0.5, table["start_distance"])
    kept, said = usable(table)
    assert set(kept["optimizer"].tolist()) == {"adam", "sgd"}
    assert said == "10 arms began below the edge, 10 arms had stale eigenvectors."
    assert verdicts(table)["bulk_edge"] == "undecided"


def test_stale_vectors_do_not_fool_the_rules() -> None:
    one = study()
    found = {f.hypothesis: f.verdict for f in one.judge(one.planted("stale_vectors", seed=1))}
    assert "supported" not in found.values()
    # the same ratios with fresh vectors would be
    table = dict(one.planted("stale_vectors", seed=1))
    table["fresh"] = np.where(np.isfinite(table["fresh"]), 0.97, np.nan)
    assert {f.hypothesis: f.verdict for f in one.judge(table)}["top_stalls"] == "supported"


def test_arms_of_a_run_share_their_start(tmp_path: Path) -> None:
    one = study()
    cell = next(c for c in one.plan("smoke") if c.factors["optimizer"] == "sgd")
    run = lab.start(
        *cell.command, "model.widths=[4]", "steps=25", f"results_dir={tmp_path}"
    ).train()
    short = Cell({**cell.factors, "after": 4, "k": 2}, cell.command)
    found = one.read(short, run.folder)
    assert found == one.read(short, run.folder)
    assert [row["arm"] for row in found] == ["full", "top", "bulk"]
    assert len({row["start_distance"] for row in found}) == 1
    assert all(math.isfinite(row["ratio"]) for row in found)
