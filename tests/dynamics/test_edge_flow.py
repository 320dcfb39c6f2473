"""The Edge Flow against closed forms, a conserved quantity and gradient descent, in float64."""

import math
from itertools import islice, pairwise

import pytest
import torch
from torch import Tensor

from optbench.dynamics.central_flow import GradientDescent, State, discrete
from optbench.dynamics.edge_flow import Growth, Oscillating, edge_flow, oscillation_at
from optbench.dynamics.flat_loss import FlatLoss
from optbench.errors import UserError

F64 = torch.float64


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def _at(center: Tensor, off: Tensor) -> Oscillating:
    rho = float(off.norm())
    return Oscillating(center, off / rho, rho, math.nan)


def test_on_a_parabola_center_and_oscillation_are_exponentials() -> None:
    """c(t) = e^{−ηHt} c(0), and ε = ρu has ε(t) = e^{(ηH − 2)t} ε(0), in steps."""
    curvatures, lr, steps = _vector(21.0, 19.0, 1.0), 0.1, 8
    loss = FlatLoss(lambda w: 0.5 * (curvatures * w.square()).sum())
    center, off = _vector(1.0, -2.0, 3.0), 1e-2 * _vector(1.0, 2.0, -1.0)
    errors = []
    for substeps in (16, 32):
        *_, last = islice(edge_flow(loss, lr, _at(center, off), substeps), steps)
        error = last.center - (-lr * curvatures * steps).exp() * center
        exact = ((lr * curvatures - 2) * steps).exp() * off
        error_off = (last.magnitude * last.direction - exact).norm() / exact.norm()
        assert float(last.direction.norm()) == pytest.approx(1, abs=1e-12)
        errors.append((float(error.norm()), float(error_off)))
    # Euler: the error halves with the step; its second order is a tenth of that here
    assert errors[0][0] < 0.05 and errors[0][1] < 0.05
    for k in (0, 1):
        assert errors[1][k] == pytest.approx(errors[0][k] / 2, rel=0.1)


@pytest.mark.parametrize(("growth", "rate"), [("first_order", 0.3), ("per_step", math.log(1.3))])
def test_the_magnitude_grows_at_its_rate(growth: Growth, rate: float) -> None:
    """Along an eigenvector of ηλ = 2.3; as 1 − ηλ = −1.3, so gradient descent grows per step."""
    loss = FlatLoss(lambda w: 11.5 * w.square().sum())
    start = _at(_vector(0.0), _vector(1e-3))
    last = list(islice(edge_flow(loss, 0.1, start, 2, growth), 10))[-1]
    assert last.magnitude == pytest.approx(1e-3 * math.exp(10 * rate), rel=1e-12)
    if growth == "per_step":
        rule, begin = GradientDescent(0.1), State(_vector(1e-3), _vector(0.0))
        run = list(islice(discrete(loss, rule, begin), 10))[-1]
        assert abs(float(run.weights[0])) == pytest.approx(last.magnitude, rel=1e-12)


def _valley(w: Tensor) -> Tensor:
    """L = ½ (1 + v) u² − b v: curvature 1 + v along u, and v rises at rate b."""
    loss: Tensor = 0.5 * (1 + w[1]) * w[0].square() - 0.01 * w[1]
    return loss


def test_self_stabilization_conserves_what_it_must() -> None:
    """In the valley y = v − (2/η − 1) has y' = −η (½ρ² − b), ρ' = η y ρ, like prey and predator.

    So ½ y² + ¼ ρ² − b log ρ is conserved, and the curvature swings about 2/η for ever.
    """
    lr, b = 0.5, 0.01

    def conserved(at: Oscillating) -> float:
        y = float(at.center[1]) - (2 / lr - 1)
        return 0.5 * y**2 + 0.25 * at.magnitude**2 - b * math.log(at.magnitude)

    start = _at(_vector(0.0, 2.9), _vector(0.05, 0.0))
    drifts, period = [], 120
    for substeps in (8, 16):
        path = list(islice(edge_flow(FlatLoss(_valley), lr, start, substeps), period))
        drifts.append(conserved(path[-1]) - conserved(start))
        above = [float(at.center[1]) > 2 / lr - 1 for at in path]
        assert sum(a != b for a, b in pairwise(above)) >= 2  # passes, returns
    assert abs(drifts[0]) < 0.05 * abs(conserved(start))
    assert drifts[1] == pytest.approx(drifts[0] / 2, rel=0.2)  # Euler


def test_it_rests_where_gradient_descent_turns_to_and_fro() -> None:
    """L = ½ (1 + v) u² + ½ c (v − 3.2)²: the cycle is u ↦ −u, v = 2/η − 1, ½u² = c (3.2 − v)."""
    lr, c = 0.5, 0.4

    def function(w: Tensor) -> Tensor:
        return 0.5 * (1 + w[1]) * w[0].square() + 0.5 * c * (w[1] - 3.2).square()

    loss = FlatLoss(function)
    start = _at(_vector(0.0, 2.9), _vector(0.3, 0.0))
    *_, last = islice(edge_flow(loss, lr, start, 4), 400)
    *_, before, run = islice(
        discrete(loss, GradientDescent(lr), State(_vector(0.3, 2.9), torch.zeros(2).double())), 400
    )
    torch.testing.assert_close(last.center, (before.weights + run.weights) / 2, rtol=0, atol=1e-6)
    assert last.magnitude == pytest.approx(abs(float(run.weights[0])), rel=1e-6)
    assert last.magnitude == pytest.approx(math.sqrt(2 * c * (3.2 - (2 / lr - 1))), rel=1e-6)
    mean = (loss.value(before.weights) + loss.value(run.weights)) / 2
    assert last.predicted_loss(loss) == pytest.approx(mean, rel=1e-9)


def test_it_begins_halfway_between_two_steps_along_the_top_eigenvector() -> None:
    """On a parabola of ηλ = 2 the iterates alternate: c is the minimum, ρ the distance to it."""
    loss = FlatLoss(lambda w: 10.0 * w[0].square() + 0.5 * w[1].square())
    start = oscillation_at(loss, 0.1, _vector(-0.3, 4.0))
    torch.testing.assert_close(start.center, _vector(0.0, 4.0), rtol=0, atol=1e-6)
    assert start.magnitude == pytest.approx(0.3, rel=1e-6)
    assert start.curvature == pytest.approx(20.0, rel=1e-3)


def test_a_single_euler_step_and_a_flow_that_diverges_are_refused() -> None:
    start = _at(_vector(0.0, 2.9), _vector(0.3, 0.0))
    with pytest.raises(UserError, match="substeps must be at least 2, got 1"):
        next(edge_flow(FlatLoss(_valley), 0.1, start, substeps=1))
    wild = edge_flow(FlatLoss(lambda w: w.square().sum().exp()), 1e3, start)
    with pytest.raises(FloatingPointError, match="the flow diverged"):
        list(islice(wild, 50))
