"""SAM's gain at one loss and at one scale, and its control."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from optbench import lab
from optbench.errors import UserError
from optbench.optimizers.random_ascent import RandomAscent
from optbench.studies.declaration import read_study
from optbench.studies.frame import REFUTED, SUPPORTED, Table, columns
from optbench.studies.sam_gain import (
    LOSS,
    SCALED,
    UPDATES,
    SamGain,
    gains,
    scaled_loss,
)

F64 = torch.float64


def _study() -> SamGain:
    study = read_study("sam_gain").study
    assert isinstance(study, SamGain)
    return study


def _quadratic(rho: float) -> tuple[nn.Parameter, RandomAscent, Any]:
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=F64))
    optimizer = RandomAscent([w], lambda p: torch.optim.SGD(p, lr=0.1), rho)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 0.5 * w.square().sum()
        loss.backward()
        return loss

    return w, optimizer, closure


def test_the_control_takes_its_gradient_at_a_distance_of_rho() -> None:
    """Of ½‖w‖² the gradient at w + a is w + a: the step is −.1 (w + a), ‖a‖ = ρ."""
    w, optimizer, closure = _quadratic(0.3)
    before, drawn = w.detach().clone(), []
    for _ in range(3):
        loss = optimizer.step(closure)
        assert loss is not None
        assert float(loss.detach()) == pytest.approx(0.5 * float(before.square().sum()))
        away = (before - w.detach()) / 0.1 - before
        assert float(away.norm()) == pytest.approx(0.3)
        drawn.append(away)
        before = w.detach().clone()
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[1], drawn[2])


def test_a_resumed_control_draws_the_next_direction() -> None:
    w, optimizer, closure = _quadratic(0.3)
    optimizer.step(closure)
    kept, state = w.detach().clone(), copy.deepcopy(optimizer.state_dict())
    optimizer.step(closure)
    again, resumed, its_closure = _quadratic(0.3)
    with torch.no_grad():
        again.copy_(kept)
    resumed.load_state_dict(state)
    resumed.step(its_closure)
    torch.testing.assert_close(again, w, rtol=0, atol=0)


def test_what_the_control_refuses() -> None:
    w, optimizer, _ = _quadratic(0.3)
    with pytest.raises(UserError, match="needs a closure"):
        optimizer.step()
    with pytest.raises(UserError, match="rho must not be negative, got -1"):
        RandomAscent([w], lambda p: torch.optim.SGD(p, lr=0.1), -1)


def test_the_scaled_loss_does_not_see_growth_nor_shifts() -> None:
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(20, 3, generator=generator, dtype=F64)
    y = torch.arange(20) % 3
    first = scaled_loss(f, y, 3.0)
    shift = torch.randn(20, 1, generator=generator, dtype=F64)
    assert scaled_loss(7 * f + shift, y, 3.0) == pytest.approx(first, rel=1e-12)
    # two classes, all right by the same margin: centred outputs ±1, CE = log(1 + e^(−2s))
    sure = torch.tensor([[0.0, 5.0]] * 4, dtype=F64)
    target = torch.ones(4, dtype=torch.long)
    assert scaled_loss(sure, target, 3.0) == pytest.approx(math.log1p(math.exp(-6)), rel=1e-12)


def _table(by_loss: float, sham: float = 0.0) -> Table:
    """Three seeds; SAM gains 4 pp after all updates and `by_loss` at one loss."""
    rows = []
    for seed in range(3):
        for arm, rho in (("sgd", 0.0), ("sam", 0.1), ("sam", 0.3), ("sham", 0.1), ("sham", 0.3)):
            gain = {"sam": by_loss, "sham": sham}.get(arm, 0.0)
            errors = {UPDATES: 30 - 4 * (arm == "sam"), LOSS: 40 - gain, SCALED: 50 - gain}
            named = {"task": "parity", "batch": "16", "optimizer": arm, "rho": rho, "seed": seed}
            rows.append(named | {k: v + seed for k, v in errors.items()})
    return columns(rows)


def _values(table: Table) -> dict[str, float]:
    return {f.hypothesis: f.estimate.value for f in _study().judge(table)}


def test_gains_are_paired_and_the_loss_is_one() -> None:
    rows, missing = gains(_table(3.0, sham=1.0))
    assert len(rows) == 12 and missing == 0
    assert {(r["arm"], r[UPDATES], r[LOSS], r[SCALED]) for r in rows} == {
        ("sam", 4.0, 3.0, 3.0),
        ("sham", 0.0, 1.0, 1.0),
    }
    assert {r["beyond"] for r in rows if r["arm"] == "sam"} == {2.0}
    found = _values(_table(3.0, sham=1.0))
    assert found["gains"] == 3 and found["beyond_sham"] == 2 and found["sham"] == 1
    assert found["shrinks"] == found["shrinks_scaled"] == 0.5 * 4 - 3
    assert found["gains_at_updates"] == 4
    assert math.isnan(found["batch"])  # there is no full batch


def test_a_run_that_did_not_come_to_its_loss_costs_its_pairs() -> None:
    table = dict(_table(3.0))
    table[LOSS] = np.where((table["optimizer"] == "sam") & (table["seed"] == 0), np.nan, 1.0)
    found = {f.hypothesis: f for f in _study().judge(table)}
    assert found["gains"].n == 4 and found["gains"].verdict == "undecided"  # two seeds are left
    assert "2 pairs are left out" in found["gains"].why
    assert found["gains_at_updates"].n == 6


@pytest.mark.parametrize("world", SamGain.worlds)
def test_no_planted_world_fools_the_rules(world: str) -> None:
    study = _study()
    found = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, 0))}
    for name, right in study.worlds[world].items():
        assert found[name] == right or found[name] == "undecided", name
    assert set(found.values()) & {SUPPORTED, REFUTED}


def test_a_run_is_read(tmp_path: Path) -> None:
    study = _study()
    cell = study._cell("parity", "full", "sham", 0.3, 901, 60)
    study.keep, words = [0.69, 0.65], [w for w in cell.command if not w.startswith("keep=")]
    run = lab.start(*words, "keep=[0.69,0.65]", f"results_dir={tmp_path}").train()
    row = study._row(run.folder, 0.68, 0.68)
    assert row["done"] == 1 and 0 < row[UPDATES] < 60
    assert run.status == "done" and row["loss_at_updates"] == pytest.approx(run.last["train/loss"])
    assert math.isfinite(row["least_scaled_loss"])
