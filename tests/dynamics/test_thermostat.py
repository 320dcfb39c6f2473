"""The learning rate that is held at a share of the edge."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optbench.dynamics.dispatch import edge
from optbench.dynamics.edges import EigenvalueEdge
from optbench.dynamics.thermostat import EdgeThermostat
from optbench.errors import UserError
from optbench.optimizers.sam import SAM

SGD = partial(torch.optim.SGD, lr=1e-3)
BASES: dict[str, Callable[..., Any]] = {
    "sgd": SGD,
    "momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-4),
    "adam": partial(torch.optim.Adam, lr=1e-4, betas=(0.9, 0.99)),
    "sam": partial(SAM, base=SGD, rho=0.02),
}
CURVATURES = torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64)


class Growing:
    """½ Σ h_i w_i² − bᵀw with curvatures that grow by 1 % a step."""

    def __init__(self) -> None:
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.h = CURVATURES.clone()
        self.slope = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)

    def closure(self, optimizer: EdgeThermostat) -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (self.h * self.w.square()).sum() - self.slope @ self.w
        if optimizer.create_graph:
            (self.w.grad,) = torch.autograd.grad(loss, [self.w], create_graph=True)
        else:
            loss.backward()
        return loss

    def distance(self, optimizer: EdgeThermostat) -> float:
        """λ₁(P^-½(H + rH²)P^-½)/threshold from dense matrices, at the present weights."""
        found = edge(optimizer)
        known = found.at(self.h * self.w.detach() - self.slope)
        assert isinstance(known, EigenvalueEdge)
        h = torch.diag(self.h)
        operator = known.operator(lambda v: h @ v)
        dense = operator(torch.eye(3, dtype=torch.float64))
        return float(torch.linalg.eigvalsh((dense + dense.T) / 2)[-1]) / known.threshold

    def steps(self, optimizer: EdgeThermostat, count: int) -> None:
        for _ in range(count):
            optimizer.step(lambda: self.closure(optimizer))
            self.h *= 1.01


@pytest.mark.parametrize("base", ["sgd", "momentum", "sam"])
def test_the_distance_is_held_while_curvature_grows(base: str) -> None:
    problem = Growing()
    optimizer = EdgeThermostat([problem.w], BASES[base], dial=0.6, every=5, most=4.0)
    problem.steps(optimizer, 30)
    for _ in range(40):
        problem.steps(optimizer, 1)
        # five steps of 1 % lie between two measurements, and 1 % is the eigenvalue's accuracy;
        # SAM's r = ρ/‖g‖ moves too
        assert problem.distance(optimizer) == pytest.approx(0.6, rel=0.1)
    assert optimizer.hvps > 0 and problem.w.grad is not None
    assert not problem.w.grad.requires_grad


@pytest.mark.parametrize("base", ["rmsprop", "adam"])
def test_a_preconditioner_is_part_of_the_distance(base: str) -> None:
    problem = Growing()
    optimizer = EdgeThermostat([problem.w], BASES[base], dial=0.6, every=1, most=2.0)
    problem.steps(optimizer, 15)
    # P has not averaged enough gradients: the rate is as it was
    assert float(optimizer.param_groups[0]["lr"]) == 1e-4
    problem.steps(optimizer, 60)
    for _ in range(10):
        problem.steps(optimizer, 1)
        # after the step P has one gradient more than when it was measured
        assert problem.distance(optimizer) == pytest.approx(0.6, rel=0.1)


def test_the_rate_moves_by_no_more_than_it_may() -> None:
    problem = Growing()
    optimizer = EdgeThermostat([problem.w], SGD, dial=0.6, every=1, most=1.5)
    problem.steps(optimizer, 1)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1.5e-3, rel=1e-12)


def test_without_a_dial_it_is_the_base() -> None:
    one, other = Growing(), Growing()
    held = EdgeThermostat([one.w], BASES["adam"], dial=None)
    plain = BASES["adam"]([other.w])
    one.steps(held, 5)
    for _ in range(5):
        plain.zero_grad()
        loss = 0.5 * (other.h * other.w.square()).sum() - other.slope @ other.w
        loss.backward()
        plain.step()
        other.h *= 1.01
    assert torch.equal(one.w, other.w) and held.hvps == 0


@pytest.mark.parametrize("base", BASES)
def test_it_goes_on_bit_for_bit(base: str) -> None:
    whole = Growing()
    optimizer = EdgeThermostat([whole.w], BASES[base], every=3)
    whole.steps(optimizer, 28)
    half, again = copy.deepcopy(whole.w.detach()), copy.deepcopy(optimizer.state_dict())
    curvature = whole.h.clone()
    whole.steps(optimizer, 20)

    later = Growing()
    with torch.no_grad():
        later.w.copy_(half)
    later.h = curvature
    resumed = EdgeThermostat([later.w], BASES[base], every=3)
    resumed.load_state_dict(again)
    later.steps(resumed, 20)
    assert torch.equal(whole.w, later.w)
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert resumed.hvps == optimizer.hvps


def test_what_it_cannot_do_is_refused() -> None:
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(UserError, match=r"dial must be positive, got -1"):
        EdgeThermostat([w], SGD, dial=-1)
    with pytest.raises(UserError, match=r"most must be above 1, got 1"):
        EdgeThermostat([w], SGD, most=1)
    with pytest.raises(UserError, match=r"needs step\(closure\)"):
        EdgeThermostat([w], SGD).step()
