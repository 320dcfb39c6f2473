"""Orbits and their centres, where everything is known, and the rules on planted worlds."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from optbench.lab.snapshot import Snapshot
from optbench.optimizers.sign import Signum
from optbench.studies.declaration import read_study
from optbench.studies.edge_plateaus import EdgePlateaus, foretold, with_and_without
from optbench.studies.frame import REFUTED, SUPPORTED

ETA = 0.1
CURVATURES = torch.tensor([4.0, 9.0, 16.0], dtype=torch.float64)


def _half_square(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


def _quadratic(weights: list[float], make: Any) -> Snapshot:
    """½Σ h_i w_i², after a step that leaves it at the weights: H is diagonal."""
    model = nn.Linear(3, 1, bias=False).double()
    inputs = torch.diag((3 * CURVATURES).sqrt())  # the loss is a mean over three examples
    targets = torch.zeros(3, 1, dtype=torch.float64)
    optimizer: Optimizer = make(model.parameters())
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    train = SimpleNamespace(inputs=inputs, targets=targets)
    task = SimpleNamespace(loss=_half_square, train=train)
    return cast(Snapshot, SimpleNamespace(model=model, optimizer=optimizer, task=task))


def test_an_orbit_of_signs_on_a_quadratic_is_foretold_exactly() -> None:
    """w = ±η/2: S = Σh, ‖g‖₁ = Σhη/2, so that S is at its threshold; the loss is Σhη²/8."""
    at = _quadratic([ETA / 2, -ETA / 2, ETA / 2], lambda p: Signum(p, lr=ETA, momentum=0))
    found = foretold(at)
    for name in ("measured", "predicted", "level", "floor", "amplitude"):
        assert found[name] == pytest.approx(1, rel=1e-9), name


def test_a_sign_that_the_mean_gradient_holds_is_foretold_not_to_turn() -> None:
    """The first weight is far off and only drifts; the centre has the orbit of the others."""
    at = _quadratic([30.5 * ETA, -ETA / 2, ETA / 2], lambda p: Signum(p, lr=ETA, momentum=0))
    found = foretold(at)
    gradient = 4 * 30 * ETA + (9 + 16) * ETA / 2  # of x₀ and x₁, the first weight on average
    assert found["measured"] == pytest.approx(ETA * 29 / (2 * gradient), rel=2e-3)
    assert found["amplitude"] == pytest.approx(1, rel=1e-6)
    # the centre of three states lies half a step farther along the drift than x₀ and x₁ do
    assert found["level"] == pytest.approx(1, abs=0.02)


def test_gradient_descent_on_a_quadratic_is_as_far_from_its_edge_on_the_orbit_as_at_the_centre() -> (
    None
):
    found = with_and_without(_quadratic([1.0, 1.0, 1.0], lambda p: SGD(p, lr=ETA)))
    for name in ("formula", "multiplier", "formula_centre", "centre"):
        # ηλ₁/2; the critical rate is found to half a per cent
        assert found[name] == pytest.approx(ETA * 16 / 2, rel=5e-3), name


@pytest.mark.parametrize("world", list(EdgePlateaus.worlds))
@pytest.mark.parametrize("draw", range(5))
def test_planted_worlds_are_told_apart(world: str, draw: int) -> None:
    study = read_study("edge_plateaus").study
    assert isinstance(study, EdgePlateaus)
    said = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, draw))}
    for hypothesis, right in study.worlds[world].items():
        assert said[hypothesis] != {SUPPORTED: REFUTED, REFUTED: SUPPORTED}[right], said


def test_a_run_that_diverged_leaves_its_claims_undecided() -> None:
    study = read_study("edge_plateaus").study
    table = dict(study.planted("theory", 0))
    lost = (table["optimizer"] == "adafactor") & (table["seed"] == 9)
    table["multiplier"] = torch.where(
        torch.tensor(lost), torch.nan, torch.tensor(table["multiplier"])
    ).numpy()
    said = {f.hypothesis: f.verdict for f in study.judge(table)}
    assert said["moving"] == "undecided" and said["sign_level"] == SUPPORTED
