"""Plateaus of batch sharpness under momentum: the measurement, positions, and the rules."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optbench import lab
from optbench.curvature import Hessian
from optbench.studies.declaration import read_study
from optbench.studies.frame import Cell, Table, columns
from optbench.studies.momentum_batch import (
    MomentumBatch,
    curvature_along_gradient,
    mean_batch_sharpness,
    plateau,
)
from optbench.task import Split, Task


def study() -> MomentumBatch:
    found = read_study("momentum_batch").study
    assert isinstance(found, MomentumBatch)
    return found


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum() / (2 * len(outputs))


def test_curvature_along_the_gradient_is_that_of_the_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    hessian = Hessian(model, half_square, (x, y))
    g = hessian.loss.gradient()
    expected = float(g @ (hessian @ g)) / float(g @ g)
    # float64; both are sums of some hundred products
    assert curvature_along_gradient(model, half_square, x, y) == pytest.approx(expected, rel=1e-10)


def test_batch_sharpness_of_single_examples_of_a_linear_model() -> None:
    """Of one example f = wᵀx the gradient is along x, and the curvature along it is ‖x‖²."""
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.5, 0.5]]).double()
    task = Task(Split(x, torch.ones(3, 1).double()), None, None, 1, half_square)
    drawn = mean_batch_sharpness(model, task, 1, 3000, torch.Generator().manual_seed(0))
    squares = x.square().sum(1)
    # six standard errors of a mean over 3,000 examples
    error = 6 * float(squares.std()) / math.sqrt(3000)
    assert drawn == pytest.approx(float(squares.mean()), abs=error)
    full = mean_batch_sharpness(model, task, 3, 1, torch.Generator())
    assert full == curvature_along_gradient(model, half_square, x, task.train.targets)


def table(place: dict[float, float], drift: float = 0.0, lowered: float = 0.0) -> Table:
    """Runs whose position at each batch size is given; `lowered` in logs with batches of 4."""
    one, made = study(), []
    for beta in (0.0, 0.5, 0.6):
        for size, position in place.items():
            for seed in range(1, 6):
                log = position * math.log((1 + beta) / (1 - beta))
                # seeds that agree to the bit have no interval
                log += 0.002 * seed * (1 + beta * size / 512)
                log += lowered if size == 4 else 0
                last = math.exp(log) * 2 / one.rate
                third = last * math.exp(-drift)
                made.append(
                    {"momentum": beta, "size": size, "seed": seed, "third": third, "last": last}
                )
    return columns(made)


def verdicts(rows: Table) -> dict[str, str]:
    return {f.hypothesis: f.verdict for f in study().judge(rows)}


def test_positions_are_0_at_the_small_batch_value_and_1_at_the_large_one() -> None:
    one = study()
    eta, beta = one.rate / 2, 0.5  # η/(1−β) is the rate
    ends = [2 * (1 - beta) / eta, 2 * (1 + beta) / eta]
    plain = 2 / one.rate
    cases = [(beta, 4, ends[0]), (beta, 512, ends[1]), (0.0, 4, plain), (0.0, 512, plain)]
    rows = columns(
        [{"momentum": b, "size": s, "seed": 1, "third": v, "last": v} for b, s, v in cases]
    )
    placed, said = one.arrived(rows)
    np.testing.assert_allclose(placed["position"], [0, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(placed["relative"], [0, 1, 0, 0], atol=1e-12)
    assert said == "0 runs diverged. Still moving, and left out: none."


def test_the_rules_on_tables_made_by_hand() -> None:
    found = verdicts(table({4: 0.0, 256: 0.9, 512: 1.0}))
    assert set(found.values()) == {"supported"}
    found = verdicts(table({4: 0.0, 256: 0.3, 512: 0.5}))
    assert (found["moves"], found["large"]) == ("refuted", "refuted")
    # noise that lowers the plateau of SGD too is not momentum's
    found = verdicts(table({4: 0.0, 256: 0.9, 512: 1.0}, lowered=-0.7))
    assert (found["relative"], found["moves"]) == ("supported", "supported")
    assert found["small"] != "supported" and found["plain"] == "refuted"


def test_runs_that_are_still_moving_say_nothing() -> None:
    moving = table({4: 0.0, 256: 0.3, 512: 0.5}, drift=0.3)
    assert set(verdicts(moving).values()) == {"undecided"}
    one = study()
    found = {f.hypothesis: f for f in one.judge(one.planted("too_short", seed=0))}
    assert found["moves"].verdict == found["large"].verdict == "undecided"
    assert "β=0.5 b=512" in found["moves"].why


def test_noise_alone_does_not_fool_the_rules() -> None:
    one = study()
    found = {f.hypothesis: f.verdict for f in one.judge(one.planted("noise_alone", seed=2))}
    assert found["moves"] == found["large"] == "refuted"


def test_a_run_gives_a_row_and_so_does_one_that_diverged(tmp_path: Path) -> None:
    one = study()
    cell = next(c for c in one.plan("smoke") if c.factors["size"] == 256)
    steps = ("steps=8", "keep_steps=[4,5,6]", "model.widths=[4]", f"results_dir={tmp_path}")
    run = lab.start(*cell.command, *steps).train()
    few = Cell({**cell.factors, "drawn": 3}, cell.command)
    (row,) = one.read(few, run.folder)
    assert (row,) == tuple(one.read(few, run.folder))
    assert row["third"] > 0 and row["last"] == row["along"] and row["diverged"] == 0
    full: Any = plateau(run, 512, 1)
    assert full["last"] == full["sharpness"] >= full["along"]
    broken = lab.start(*cell.command, *steps, "optimizer.lr=1e6").train()
    assert plateau(broken, 256, 1) == {"diverged": 1.0}
