"""Function-preserving rescaling, w' = D w: what stays, and by which formula the rest moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optbench.lab import Point
from optbench.lab.measures import known

from ...curvature.helpers import dense_hessian
from .helpers import H, linear, reading, rescaled, task_of, two_layers, value

LAYER = torch.full((H,), 10.0).double()
NEURONS = torch.linspace(0.2, 5, H).double()
# They claim invariance, and have it for a layer as a whole only.
OF_A_LAYER = {"agop_alignment", "relative_flatness"}


@pytest.mark.parametrize(
    "name", sorted(m.name for m in known().values() if m.invariant == "yes" and not m.dear)
)
def test_single_neurons_leave_what_is_invariant(name: str) -> None:
    model, task = two_layers(), task_of()
    twin, _ = rescaled(model, NEURONS)
    before, after = (value(Point(m, task), name) for m in (model, twin))
    if name in OF_A_LAYER:
        # Factors from 0.2 to 5 have moved them to 0.83 and 79 times the value.
        assert not before / 1.01 < after < before * 1.01
    else:
        # Two solves, each with an error quadratic in a residual of 3e-3 at most.
        assert after == pytest.approx(before, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("factors", [LAYER, NEURONS], ids=["layer", "neurons"])
def test_the_hessian_moves_as_its_two_sides_do(factors: torch.Tensor) -> None:
    """H' = D⁻¹ H D⁻¹ and g' = D⁻¹ g."""
    model, task = two_layers(), task_of()
    twin, d = rescaled(model, factors)
    data = (task.train.inputs, task.train.targets)
    moved = dense_hessian(model, task.loss, data) / torch.outer(d, d)
    point = Point(twin, task)
    # The accuracy of eigenvalues is 1e-3.
    expected = float(torch.linalg.eigvalsh(moved)[-1])
    assert value(point, "sharpness") == pytest.approx(expected, rel=1e-3)
    # Hutchinson's variance over 30 products, without what deflation takes off; four deviations.
    spread = (2 * (moved.square().sum() - moved.diagonal().square().sum()) / 30).sqrt()
    assert value(point, "trace") == pytest.approx(float(moved.trace()), abs=4 * float(spread))
    gradient = Point(model, task).value_and_gradient[1] / d
    assert value(point, "gradient_norm") == pytest.approx(float(gradient.norm()), rel=1e-9)
    weights = nn.utils.parameters_to_vector(model.parameters()).detach() * d
    assert value(point, "weight_norm") == pytest.approx(float(weights.norm()), rel=1e-12)


def test_sharpness_rises_with_the_factor_of_a_layer() -> None:
    """The second layer's block is α² of what it was, and λ₁ is at least its largest eigenvalue."""
    model, task = two_layers(), task_of()
    data = (task.train.inputs, task.train.targets)
    start = sum(p.numel() for p in model[0].parameters())
    block = dense_hessian(model, task.loss, data)[start : start + 3 * H, start : start + 3 * H]
    twin, _ = rescaled(model, LAYER)
    for name in ("sharpness", "logit_normalized_sharpness", "gradient_disparity"):
        assert value(Point(twin, task), name) > value(Point(model, task), name)
    least = 100 * float(torch.linalg.eigvalsh(block)[-1])
    assert value(Point(twin, task), "sharpness") >= least * (1 - 1e-3)


class _Times(nn.Module):
    """c f(x), the factor being no weight."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.factor * self.model(x)
        return outputs


@pytest.mark.parametrize(
    "name",
    [
        "logit_normalized_sharpness",
        "logit_normalized_adaptive_sharpness",
        "logit_normalized_trace",
        "margin",
    ],
)
def test_a_factor_on_the_outputs_leaves_what_is_at_one_scale(name: str) -> None:
    model, task = two_layers(), task_of()
    before, after = (value(Point(_Times(model, c), task), name) for c in (1.0, 7.0))
    assert after == pytest.approx(before, rel=1e-9)  # the same matrix but for rounding


def test_adaptive_sharpness_of_weights_of_zero_is_of_the_others() -> None:
    """|W| H |W| has a row and a column of zeros for each."""
    model, task = two_layers(), task_of()
    with torch.no_grad():
        linear(model, 0).weight[:3] = 0
        linear(model, 0).bias[:3] = 0
    data = (task.train.inputs, task.train.targets)
    w = nn.utils.parameters_to_vector(model.parameters()).detach().abs()
    scaled = w[:, None] * dense_hessian(model, task.loss, data) * w
    found = reading(Point(model, task), "adaptive_sharpness")
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(scaled)[-1]), rel=1e-3)
