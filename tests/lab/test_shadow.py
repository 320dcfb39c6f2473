"""Steps that are not taken."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from optbench import lab
from optbench.lab.shadow import Shadow, direction
from optbench.optimizers.sam import SAM
from optbench.task import half_mse

WORDS = (
    "task=digits",
    "task.train_size=60",
    "task.loss=ce",
    "model.widths=[8]",
    "batch_size=20",
    "probes=none",
    "device=cpu",
    *lab.QUIET,
)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sam", "muon", "lookahead"])
def test_the_direction_is_the_step_that_the_run_takes(tmp_path: Path, optimizer: str) -> None:
    words = [*WORDS, f"optimizer={optimizer}", "schedule=cosine"]
    run = lab.start(*words, results_dir=tmp_path, seed=1).train(keep_steps=[4, 5], steps=6)
    snapshot = run.at(step=4)
    before = [p.detach().clone() for p in snapshot.model.parameters()]
    step = direction(snapshot)
    after = run.at(step=5)
    taken = [b.detach() - a for a, b in zip(before, after.model.parameters(), strict=True)]
    assert torch.equal(step, torch.cat([d.flatten() for d in taken]))
    assert all(map(torch.equal, before, (p.detach() for p in snapshot.model.parameters())))
    assert torch.equal(direction(snapshot), step), "asked twice, it says the same"


def _problem() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    return model, torch.randn(9, 3).double(), torch.randn(9, 2).double()


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(half_mse(model(x), y), list(model.parameters()))
    return gradient.flatten()


def test_a_shadow_of_gradient_descent_has_the_negative_gradient() -> None:
    model, x, y = _problem()
    shadow = Shadow(model, half_mse, lambda p: torch.optim.SGD(p, 0.1))
    torch.testing.assert_close(shadow.step(x, y), -0.1 * _gradient(model, x, y), rtol=0, atol=1e-14)


def test_a_shadow_of_sam_climbs_first() -> None:
    model, x, y = _problem()
    gradient = _gradient(model, x, y)
    climbed = copy.deepcopy(model)
    with torch.no_grad():
        climbed.weight.add_((0.05 * gradient / gradient.norm()).view_as(climbed.weight))
    shadow = Shadow(model, half_mse, lambda p: SAM(p, lambda q: torch.optim.SGD(q, 0.1), 0.05))
    expected = -0.1 * _gradient(climbed, x, y)
    torch.testing.assert_close(shadow.step(x, y), expected, rtol=0, atol=1e-9)


def test_a_shadow_remembers_the_path_and_does_not_move_it() -> None:
    """Momentum's buffer of a driver's two gradients: g₁, then βg₁ + g₂."""
    model, x, y = _problem()
    driver = torch.optim.SGD(model.parameters(), 0.3)
    shadow = Shadow(model, half_mse, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    gradients = []
    for _ in range(2):
        weights = copy.deepcopy(model.state_dict())
        step = shadow.step(x, y)
        assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
        gradients.append(_gradient(model, x, y))
        driver.zero_grad()
        half_mse(model(x), y).backward()
        driver.step()
    expected = -0.1 * (0.9 * gradients[0] + gradients[1])
    torch.testing.assert_close(step, expected, rtol=0, atol=1e-14)
