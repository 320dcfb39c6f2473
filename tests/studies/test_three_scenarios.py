"""SAM on the product of two signs: task, network, descent and rules."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from optbench.tasks.xor import sign_error, xor
from torch import nn

from optbench import lab
from optbench.errors import UserError
from optbench.lab.point import Point
from optbench.models.two_layer import two_layer
from optbench.studies.declaration import read_study
from optbench.studies.frame import Cell, Table, columns
from optbench.studies.three_scenarios import BIAS, NORM, PLAIN, SAM, SGD, ThreeScenarios, descend


def _study() -> ThreeScenarios:
    study = read_study("three_scenarios").study
    assert isinstance(study, ThreeScenarios)
    return study


def test_targets_are_the_product_of_two_signs_and_zero_is_wrong() -> None:
    task = xor(3, bits=5, train_size=40, val_size=10)
    assert task.val is not None and len(task.val) == 10
    for split in task.splits.values():
        assert torch.equal(split.inputs.abs(), torch.ones_like(split.inputs))
        assert torch.equal(split.targets[:, 0], split.inputs[:, 0] * split.inputs[:, 1])
    outputs, targets = torch.tensor([[2.0], [-0.1], [0.0]]), torch.tensor([[1.0], [1.0], [1.0]])
    assert float(sign_error(outputs, targets)) == pytest.approx(2 / 3)
    again, other = xor(3, bits=5, train_size=40), xor(4, bits=5, train_size=40)
    assert torch.equal(task.train.inputs, again.train.inputs)
    assert not torch.equal(task.train.inputs, other.train.inputs)
    with pytest.raises(UserError, match=r"task.bits must be at least 2, got 1"):
        xor(0, bits=1)


def test_the_network_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    net = two_layer((2, 3), 1, width=7, norm="simple").double()
    assert isinstance(net, nn.Sequential)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    first, last = (layer for layer in net if isinstance(layer, nn.Linear))
    assert last.bias is None
    h = (x.flatten(1) @ first.weight.T + first.bias).relu()
    h = h / torch.linalg.vector_norm(h, dim=1, keepdim=True).clamp(min=1e-3)
    torch.testing.assert_close(net(x), h @ last.weight.T)
    # a dead hidden layer gives 0, with a gradient of 0 and not NaN
    with torch.no_grad():
        first.weight.zero_(), first.bias.fill_(-1.0)
    net(x).sum().backward()
    assert not net(x).any()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
    assert two_layer((6,), 1, bias=False)[0].bias is None
    with pytest.raises(UserError, match=r"model.norm must be simple or none, got layer"):
        two_layer((6,), 1, norm="layer")


def test_the_trace_at_zero_loss_is_the_mean_square_of_the_output_gradient() -> None:
    """∇²L = mean ∇f ∇fᵀ + (f − y) ∇²f, whose last term is 0 where f = y."""
    torch.manual_seed(0)
    task = xor(0, bits=4, train_size=8, test_size=8).to(torch.device("cpu"), torch.float64)
    net = two_layer((4,), 1, width=6, norm="simple").double()
    with torch.no_grad():
        task.train.targets.copy_(net(task.train.inputs))
    squares = []
    for x in task.train.inputs:
        gradients = torch.autograd.grad(net(x[None]).sum(), list(net.parameters()))
        squares.append(sum(float(g.square().sum()) for g in gradients))
    trace = lab.measure(Point(net, task), ["trace"])["trace"].value
    assert trace == pytest.approx(np.mean(squares), rel=0.05)  # an estimate


def test_descent_stops_at_the_loss_of_a_quadratic() -> None:
    """f = wx with one example x = y = 1 from w = 0: the loss is ½ (1 − lr)^(2t)."""
    task = xor(0, bits=2, train_size=1, test_size=1).to(torch.device("cpu"), torch.float64)
    task.train.inputs.copy_(torch.tensor([[1.0, 0.0]]))
    task.train.targets.fill_(1.0)
    net = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    loss, steps = descend(net, task, lr=0.1, loss=1e-3)
    assert steps == math.ceil(math.log(2e-3) / (2 * math.log(0.9)))
    assert loss == pytest.approx(0.5 * 0.9 ** (2 * steps))
    assert descend(net, task, lr=0.1, loss=1e-3)[1] == 0


def _table(error: dict[tuple[str, str], float], sizes: tuple[int, ...] = (90,)) -> Table:
    """Ten seeds about these errors; the seed's own part is common to all arms."""
    rows = [
        {
            "architecture": name,
            "optimizer": optimizer,
            "examples": size,
            "seed": seed,
            "reached": 1.0,
            "error": max(0.0, value + 0.2 * math.sin(seed) + 0.1 * math.cos(9 * seed + value)),
            "trace": 10 + value,
        }
        for (name, optimizer), value in error.items()
        for size in sizes
        for seed in range(10)
    ]
    return columns(rows)


def _verdicts(table: Table) -> dict[str, str]:
    return {f.hypothesis: f.verdict for f in _study().judge(table)}


def test_differences_are_of_the_right_arms() -> None:
    arms = {(PLAIN, SGD): 40, (PLAIN, SAM): 10, (BIAS, SGD): 40, (BIAS, SAM): 40.1}
    table = _table(arms | {(NORM, SGD): 40, (NORM, SAM): 44})
    found = {f.hypothesis: f for f in _study().judge(table)}
    assert found["gain_no_bias"].estimate.value == pytest.approx(-30, abs=0.2)
    assert found["bias_errs_more"].estimate.value == pytest.approx(30, abs=0.2)
    assert found["bias_is_flatter"].estimate.value == pytest.approx(math.log(50.1 / 20))
    assert {name: f.verdict for name, f in found.items() if name != "within"} == {
        "gain_no_bias": "supported",
        "gain_bias": "refuted",
        "gain_norm": "refuted",
        "bias_errs_more": "supported",
        "bias_is_flatter": "undecided",  # no spread, no interval
    }
    assert found["gain_no_bias"].n == 10


def test_a_size_at_the_floor_or_at_chance_is_left_out() -> None:
    same = {(name, o): 0.0 for name in (PLAIN, BIAS, NORM) for o in (SGD, SAM)}
    assert set(_verdicts(_table(same)).values()) == {"undecided"}
    chance = dict.fromkeys(same, 49.0)
    assert set(_verdicts(_table(chance)).values()) == {"undecided"}
    # one arm off the floor is enough, whichever it is
    worse = same | {(PLAIN, SAM): 6.0}
    assert _verdicts(_table(worse))["gain_no_bias"] == "refuted"


def test_a_run_that_diverged_costs_its_pair() -> None:
    arms = {(name, o): 40.0 - 10 * (o == SAM) for name in (PLAIN, BIAS, NORM) for o in (SGD, SAM)}
    table = _table(arms)
    lost = (table["optimizer"] == SAM) & (table["seed"] == 3) & (table["architecture"] == PLAIN)
    table["reached"][lost] = 0.0
    found = {f.hypothesis: f for f in _study().judge(table)}
    assert (found["gain_no_bias"].n, found["gain_bias"].n) == (9, 10)
    assert "1 did not come to the loss" in found["gain_no_bias"].why
    assert {f.verdict for f in _study().judge(columns([{"reached": 0.0, "seed": 1}]))} == {
        "undecided"
    }


def test_the_floor_does_not_refute_what_is_true_at_fewer_examples() -> None:
    study = _study()
    for seed in range(3):
        assert "refuted" not in _verdicts(study.planted("floor", seed)).values()
        told = _verdicts(study.planted("three_scenarios", seed))
        assert told["gain_no_bias"] == told["gain_norm"] == told["bias_errs_more"] == "supported"
        assert told["gain_bias"] != "supported"


def test_a_run_is_read_once(tmp_path: Path) -> None:
    study = _study()
    cell = next(c for c in study.plan("smoke") if c.factors["optimizer"] == SAM)
    words = [w for w in cell.command if not w.startswith("steps=")]
    run = lab.start(*words, f"results_dir={tmp_path}").train(steps=300)
    (row,) = study.read(cell, run.folder)
    assert row["reached"] in (0.0, 1.0) and 0 <= row["error"] <= 60 and row["trace"] > 0
    (place,) = run.folder.glob("solution-*.json")
    place.write_text('{"error": 7.0}')
    assert study.read(Cell(cell.factors, cell.command), run.folder)[0]["error"] == 7.0
