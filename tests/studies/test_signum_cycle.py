"""Autocorrelations of known series, a cycle on a parabola, and the rules on planted worlds."""

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn

from optbench.lab.snapshot import Snapshot
from optbench.optimizers.sign import Signum
from optbench.studies.declaration import read_study
from optbench.studies.frame import REFUTED, SUPPORTED
from optbench.studies.signum_cycle import SignumCycle, autocorrelation, look


def test_a_square_wave_of_period_four_turns_at_lag_two() -> None:
    wave = torch.tensor([1.0, 1.0, -1.0, -1.0] * 16)[:, None]
    found = autocorrelation(wave)
    assert [found[f"lag_{lag}"] for lag in (2, 4, 6)] == pytest.approx([-1, 1, -1])
    assert abs(found["lag_1"]) < 0.05


def test_a_cycle_of_signum_on_a_parabola_is_read_off() -> None:
    """w of ½w² at the top of its triangle of half-period two, its momentum that of the cycle."""
    eta, beta = 0.1, 0.9
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, eta)
    optimizer = Signum(model.parameters(), lr=eta, momentum=beta)
    m = -eta * beta / (1 - beta) * (1 - 2 * beta / (1 + beta**2))  # −m₁ of k = 2: 1 − k/2 is 0
    optimizer.state[model.weight]["momentum_buffer"] = torch.tensor([[m]], dtype=torch.float64)
    ones = torch.ones(1, 1, dtype=torch.float64)
    task = SimpleNamespace(
        loss=lambda outputs, targets: 0.5 * outputs.square().sum(),
        train=SimpleNamespace(inputs=ones, targets=ones),
    )
    at = cast(Snapshot, SimpleNamespace(model=model, optimizer=optimizer, task=task))
    found = look(at, with_amplitude=True)
    assert [found[f"lag_{lag}"] for lag in (2, 4)] == pytest.approx([-1, 1])
    assert found["amplitude"] == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("world", list(SignumCycle.worlds))
@pytest.mark.parametrize("draw", range(5))
def test_planted_worlds_are_told_apart(world: str, draw: int) -> None:
    study = read_study("signum_cycle").study
    said = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, draw))}
    for hypothesis, right in study.worlds[world].items():
        assert said[hypothesis] != {SUPPORTED: REFUTED, REFUTED: SUPPORTED}[right], said


def test_a_run_that_diverged_leaves_its_claim_undecided() -> None:
    study = read_study("signum_cycle").study
    table = dict(study.planted("period four", 0))
    table["lag_2"] = table["lag_2"].copy()
    table["lag_2"][0] = math.nan
    said = {f.hypothesis: f.verdict for f in study.judge(table)}
    assert said["turns"] == "undecided" and said["wanders"] == SUPPORTED
