"""Steps of shadows: the identity of their gains, the rules on small tables, and a run replayed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optbench import lab
from optbench.studies.declaration import read_study
from optbench.studies.frame import Cell, columns
from optbench.studies.speed_curvature import (
    CAP,
    SpeedCurvature,
    best_steps,
    concordance,
    measure_steps,
    share,
    steps_to,
    with_parts,
)
from optbench.task import Split, Task

CURVATURES = torch.tensor([1.0, 10.0], dtype=torch.float64)
START = torch.tensor([3.0, 0.5], dtype=torch.float64)


def study() -> SpeedCurvature:
    found = read_study("speed_curvature").study
    assert isinstance(found, SpeedCurvature)
    return found


def quadratic() -> tuple[nn.Linear, Task]:
    """½wᵀ diag(1, 10) w: the half mean square error of a linear model at inputs √(2λ_i) e_i."""
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(START)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() / 2

    split = Split(torch.diag((2 * CURVATURES).sqrt()), torch.zeros(2, 1, dtype=torch.float64))
    return model, Task(split, None, None, 1, loss)


def test_parts_of_a_gain_on_a_quadratic_are_those_of_the_closed_form() -> None:
    model, task = quadratic()
    g = CURVATURES * START
    newton, sign = -START, -g.sign()
    rows = measure_steps(model, task, {"newton": newton, "sign": sign, "sgd": -0.1 * g})
    table = with_parts(columns([{"kind": "step"} | row for row in rows]))

    def gain(d: Tensor) -> float:
        return float((g @ d) ** 2 / (2 * d @ (CURVATURES * d)))

    # Newton's best length is 1, and its gain the whole loss
    assert gain(newton) == pytest.approx(float(START @ (CURVATURES * START)) / 2)
    for i, d in enumerate((newton, sign, -g)):
        expected = math.log(gain(d) / gain(-g))
        # the columns are rounded to six digits: four of them, each 5e-6 at most
        assert table["log_gain"][i] == pytest.approx(expected, abs=3e-5)
        cos = float(-(g @ d) / (g.norm() * d.norm()))
        assert table["alignment_part"][i] == pytest.approx(2 * math.log(cos), abs=2e-5)
    # linear in its weights: the Gauss-Newton matrix is the Hessian
    np.testing.assert_allclose(table["gn_part"], table["curvature_part"], atol=2e-5)


def test_a_step_without_a_logarithm_counts_and_is_counted() -> None:
    base = {"kind": "step", "gn": 1.0, "gn_gd": 1.0, "task": "t", "driver": "sgd", "probe": "adam"}
    cases = [
        (0.5, -1.0, 1.0, CAP),  # negative curvature
        (-0.5, 1.0, 1.0, -CAP),  # uphill
        (-0.5, -1.0, 1.0, -CAP),  # uphill along negative curvature
        (0.5, 1.0, -1.0, -CAP),  # gradient descent's curvature is negative
        (0.5, -1.0, -1.0, math.nan),
    ]
    rows = [
        base | {"alignment": a, "curvature": c, "gd_curvature": r, "seed": s, "level": 0}
        for s, (a, c, r, _) in enumerate(cases)
    ]
    table = columns(rows)
    gains = with_parts(table)["log_gain"]
    # +10 of curvature less 2 log 2 of alignment
    expected = [CAP + 2 * math.log(0.5), -CAP, -CAP, -CAP, math.nan]
    np.testing.assert_allclose(gains, expected)
    why = {f.hypothesis: f.why for f in study().judge(table)}["share"]
    assert "2 go uphill, 3 along curvature that is not positive, 2 are at points" in why


def test_the_share_is_that_of_the_part_which_tells_probes_apart() -> None:
    parts = [(0.0, 0.0), (-1.0, 3.0), (-2.0, 5.0)]  # alignment, curvature
    rows = columns(
        [
            {"task": "t", "driver": "d", "seed": s, "level": 0.0, "alignment_part": a + 9 * s}
            | {"curvature_part": c - 5 * s}
            for s in (1, 2)
            for a, c in parts
        ]
    )
    gains = np.array([a + c for a, c in parts])
    curvatures = np.array([c for _, c in parts])
    expected = np.cov(curvatures, gains)[0, 1] / np.var(gains, ddof=1)
    assert share(rows, "curvature_part") == pytest.approx(expected) and expected > 1


def test_a_best_rate_at_the_grids_end_is_left_out() -> None:
    steps: dict[str, list[int | None]] = {
        "sgd": [90, 50, 20],
        "adam": [30, 10, None],
        "muon": [None, None, None],
    }
    rows = [
        {"kind": "timed", "task": "t", "probe": p, "seed": s, "scale": scale, "steps": n}
        for p, own in steps.items()
        for scale, n in zip((0.1, 1, 10), own, strict=True)
        for s in (1, 2, 3)
    ]
    found, ends = best_steps(columns(rows))
    assert found == {("t", "adam"): 10} and sorted(ends) == ["muon on t", "sgd on t"]


def test_concordance_is_of_pairs_of_different_probes() -> None:
    def pairs(*rows: tuple[str, float, float]) -> Any:
        return columns([{"task": "t", "own_name": n, "gain": g, "steps": s} for n, g, s in rows])

    a, b, c = ("a", 2.0, 10.0), ("b", 1.0, 20.0), ("c", 0.0, 15.0)
    assert concordance(pairs(a, b)) == 1
    assert concordance(pairs(a, b, c)) == pytest.approx(1 / 3)
    assert concordance(pairs(a, a, b)) == 1  # the two a are no pair


def test_steps_to_a_loss_are_those_of_gradient_descent() -> None:
    model, task = quadratic()

    def descent(parameters: Any, lr: float = 0.05) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr)

    # L(t) = ½ Σ λ w² (1 − ηλ)^{2t}
    losses = [
        float((CURVATURES * START**2 * (1 - 0.05 * CURVATURES) ** (2 * t)).sum() / 2)
        for t in range(40)
    ]
    expected = next(t for t, loss in enumerate(losses) if loss <= 1)
    assert steps_to(model, task, descent, 1.0, 100) == expected
    assert steps_to(model, task, descent, 1.0, expected - 1) is None
    assert steps_to(model, task, lambda p: descent(p, 0.5), 1.0, 100) is None  # diverges
    np.testing.assert_array_equal(model.weight.detach().numpy()[0], START.numpy())  # is read


@pytest.mark.parametrize("world", ["every_path", "negative_curvature"])
def test_neither_a_driver_nor_negative_curvature_fools_the_rules(world: str) -> None:
    one = study()
    right = one.worlds[world]
    found = {f.hypothesis: f.verdict for f in one.judge(one.planted(world, seed=3))}
    for hypothesis, verdict in right.items():
        wrong = {"supported": "refuted", "refuted": "supported"}[verdict]
        assert found[hypothesis] != wrong
    # read along the own path alone, two worlds look alike
    if world == "every_path":
        assert found["own_path"] == "supported" and found["sgd_path"] == "refuted"


def test_a_path_is_replayed_exactly_and_its_own_probe_steps_as_it_does(tmp_path: Path) -> None:
    one = study()
    cell = next(c for c in one.plan("smoke") if c.factors["driver"] == "adam")
    small = ("model.widths=[8]", "optimizer.lr=0.02", f"results_dir={tmp_path}")
    run = lab.start(*cell.command, *small).train()
    assert run.summary["stopped"]
    factors = {**cell.factors, "scales": [1.0]}
    rows = one.read(Cell(factors, cell.command), run.folder)
    assert rows == one.read(Cell(factors, cell.command), run.folder)  # kept
    assert len(rows) == 3 * len(one.probes)
    losses = dict(zip(*(x.tolist() for x in run.series("train/loss")), strict=True))
    seen = [row for row in rows if row["step"] in losses]
    assert seen
    for row in seen:  # float32, and six digits
        assert row["loss"] == pytest.approx(losses[row["step"]], rel=1e-5)
    reference = [row for row in rows if row["probe"] == "sgd"]
    assert all(row["alignment"] == pytest.approx(1, abs=1e-5) for row in reference)
    for row in reference:
        assert row["curvature"] == pytest.approx(row["gd_curvature"], rel=1e-3)


def test_a_path_that_never_came_to_its_loss_is_a_row(tmp_path: Path) -> None:
    one = study()
    cell = one.plan("smoke")[0]
    run = lab.start(*cell.command, "steps=3", f"results_dir={tmp_path}").train()
    (row,) = one.read(cell, run.folder)
    assert row["kind"] == "failed"
    assert [f.verdict for f in one.judge(columns([row, row]))] == ["undecided"] * 4
