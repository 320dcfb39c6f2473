"""The learning coefficient where it is known; tolerances are five standard errors of the chains.

Their number and seed are fixed, so a test does not flicker.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from optbench import lab
from optbench.curvature.errors import MeasurementError
from optbench.lab import Point
from optbench.lab.measures import chosen
from optbench.lab.measures.learning_coefficient import Chains, learning_coefficient
from optbench.task import Split, Task, half_mse

from .helpers import task_of, two_layers

EXAMPLES, INPUTS = 400, 6
BETA = EXAMPLES / math.log(EXAMPLES)  # nβ
MANY = Chains(chains=64, burn_in=200, draws=300, localization=0.01)


def _task(inputs: Tensor, targets: Tensor) -> Task:
    return Task(Split(inputs, targets), None, None, 1, half_mse)


def _regression() -> tuple[Point, Tensor]:
    """Noiseless linear regression at its minimum, and the eigenvalues of its Hessian XᵀX/n."""
    torch.manual_seed(0)
    x = torch.randn(EXAMPLES, INPUTS).double()
    model = nn.Sequential(nn.Linear(INPUTS, 1, bias=False)).double()
    point = Point(model, _task(x, model(x).detach()))
    return point, torch.linalg.eigvalsh(x.T @ x / EXAMPLES)


@pytest.mark.parametrize("localization", [0.01, 30.0])
def test_of_a_regular_minimum(localization: float) -> None:
    """½ Σ nβλ/(nβλ + γ): half the number of parameters where γ is small."""
    point, eigenvalues = _regression()
    found = learning_coefficient(point, replace(MANY, localization=localization))
    scaled = BETA * eigenvalues
    expected = float((0.5 * scaled / (scaled + localization)).sum())
    assert found.value == pytest.approx(expected, abs=5 * found.stderr)
    assert found.stderr < 0.03
    if localization < 1:
        assert expected == pytest.approx(INPUTS / 2, rel=1e-3)


def test_the_step_does_not_bias_a_quadratic() -> None:
    """At 20 times a small step the value is the same; SGLD's would be 1/(1 − ½ha) too large."""
    point, eigenvalues = _regression()
    largest = BETA * float(eigenvalues[-1])
    for share in (0.05, 1.0):
        settings = replace(MANY, burn_in=400, draws=600, step=share / largest)
        found = learning_coefficient(point, settings)
        assert found.value == pytest.approx(INPUTS / 2, abs=5 * found.stderr)
        assert found.stderr < 0.06


def test_batches_of_a_quarter() -> None:
    """Noiseless, so that all batches have the same minimum; their noise adds 2 % at most here."""
    point, _ = _regression()
    found = learning_coefficient(point, replace(MANY, batch_size=EXAMPLES // 4))
    assert found.value == pytest.approx(INPUTS / 2, abs=5 * found.stderr + 0.06)


class _Power(nn.Module):
    """x w^k, at w = 0."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k, self.w = k, nn.Parameter(torch.zeros(1).double())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w**self.k


@pytest.mark.parametrize("k", [2, 3])
def test_of_a_singular_minimum(k: int) -> None:
    """L = ½w^{2k}: 1/2k, though the Hessian at the minimum is 0."""
    ones = torch.ones(EXAMPLES, 1).double()
    point = Point(_Power(k), _task(ones, 0 * ones))
    found = learning_coefficient(point, replace(MANY, chains=200, burn_in=400, draws=400))
    # γ = 0.01 takes off 0.0002, by quadrature.
    assert found.value == pytest.approx(1 / (2 * k), abs=5 * found.stderr)
    assert found.stderr < 0.01


def test_it_is_dear_and_only_reads() -> None:
    model, task = two_layers().train(), task_of()
    name = "local_learning_coefficient"
    assert name in {m.name for m in chosen("everything")} - {m.name for m in chosen("all")}
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again = (lab.measure(Point(model, task), name)[name] for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert first.value == again.value
    assert "standard error" in str(first.note)


def test_what_cannot_be_estimated_says_so() -> None:
    point, _ = _regression()
    with pytest.raises(MeasurementError, match="diverged at step 1"):
        learning_coefficient(point, replace(MANY, step=1.0))
    few = Point(point.model, point.task, examples=2)
    with pytest.raises(MeasurementError, match="three examples"):
        learning_coefficient(few, MANY)
    weighed = Point(point.model, replace(point.task, weight=lambda x, y: 1.0))
    with pytest.raises(MeasurementError, match="weighs its batches"):
        learning_coefficient(weighed, replace(MANY, batch_size=10))
