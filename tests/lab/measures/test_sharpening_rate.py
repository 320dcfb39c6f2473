"""Progressive sharpening against a closed form, and against the dense Hessian along gradient flow."""

import copy
import math

import pytest
import torch
from torch import nn

from optbench import lab
from optbench.lab import Point
from optbench.task import Split, Task, half_mse
from tests.lab.test_measures import _dense, _mlp, _task


def _value(point: Point) -> float:
    reading = lab.measure(point, ["progressive_sharpening"])["progressive_sharpening"]
    assert reading.reason is None, reading.reason
    return reading.value


def test_two_scalar_layers_in_closed_form() -> None:
    # L = ½(ab − y)², e = ab − y, at a = b: λ₁ = a² + |a² + e|, ∇λ₁ by hand
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    a, y = 1.5, 1.0
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(a)
    one = torch.ones(1, 1, dtype=torch.float64)
    task = Task(Split(one, y * one), None, None, 1, half_mse, None)
    e = a * a - y
    gradient = e * a  # of either weight
    # u = (1, 1)/√2: uᵀHu = (a² + b²)/2 + 2ab − y; its derivative by a is a + 2b = 3a
    sharpness, rise = a * a + 2 * a * a - y, 2 * gradient * 3 * a
    expected = -(rise / sharpness) * (e * e / 2) / (2 * gradient**2)
    # a central difference of a quadratic is exact; λ₁ and its vector are to rounding
    assert _value(Point(model, task)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_it_is_the_slope_of_the_dense_sharpness_along_the_flow(loss: str) -> None:
    torch.manual_seed(1)
    task, model = _task(loss), _mlp()
    point = Point(model, task)
    gradient = point.value_and_gradient[1]
    logs = []
    step = 1e-5 / float(gradient.norm())  # error of the difference: 1e-10, of rounding: 1e-10/1e-5
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            flat = nn.utils.parameters_to_vector(moved.parameters()) + sign * step * gradient
            nn.utils.vector_to_parameters(flat, moved.parameters())
        sharpness = float(torch.linalg.eigvalsh(_dense(moved, task))[-1])
        logs.append((math.log(sharpness), math.log(Point(moved, task).value_and_gradient[0])))
    (s1, l1), (s0, l0) = logs
    # the eigenvector has the accuracy that the measures ask for, 1e-3 of λ₁
    assert _value(point) == pytest.approx(-(s1 - s0) / (l1 - l0), rel=0.02)
