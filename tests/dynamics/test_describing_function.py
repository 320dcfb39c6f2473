"""Amplitudes of alternations of normalised steps, against closed forms and against the runs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench.dynamics.describing_function import Alternation, alternation, cycle
from optbench.dynamics.oscillating_eigenvalue import multiplier
from optbench.dynamics.training_map import TrainingMap
from optbench.optimizers.sign import Lion, Signum
from optbench.optimizers.steepest import SteepestDescent

NOTHING = torch.zeros(1), torch.zeros(1)


class Point(nn.Module):
    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.w


def _after(
    start: Tensor,
    loss: Callable[[Tensor, Any], Tensor],
    optimizer: Callable[..., Optimizer],
    n: int,
) -> tuple[Alternation, TrainingMap]:
    point = Point(start)
    steps = optimizer([point.w])
    for _ in range(n):
        steps.zero_grad()
        loss(point.w, None).backward()
        steps.step()
    step = TrainingMap(point, loss, NOTHING, steps)
    return alternation(step), step


def test_sign_descent_alternates_by_half_a_step_where_curvature_beats_the_mean_gradient() -> None:
    lr = 0.1
    curvature = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    slope = torch.tensor([0.02, 0.04, 0.0], dtype=torch.float64)

    def loss(w: Tensor, _: Any) -> Tensor:  # a valley floor that goes down along the last axis
        return (0.5 * curvature * w[:3] ** 2).sum() + (slope * w[:3]).sum() + w[3]

    start = torch.tensor([0.93, 0.71, 0.33, 0.0], dtype=torch.float64)
    found, _ = _after(start, loss, lambda p: Signum(p, lr, momentum=0), 40)
    # on a parabola the sign goes to and fro whatever the slope, since the centre moves with it
    assert found.measured.abs().tolist() == pytest.approx([lr / 2] * 3 + [0])
    assert found.predicted.abs().tolist() == pytest.approx([lr / 2] * 3 + [0], abs=1e-9)
    assert found.iterations < 60


@pytest.mark.parametrize("slope", [0.05, 0.1, 0.2])
def test_a_normalised_gradient_alternates_until_its_gain_times_curvature_is_two(
    slope: float,
) -> None:
    lr, a = 0.1, 3.0

    def loss(w: Tensor, _: Any) -> Tensor:
        return slope * w[0] + 0.5 * a * w[1] ** 2

    def normalised(params: Any) -> Optimizer:
        return SteepestDescent(params, lr, "spectral", normalised=True)  # a vector is a column

    start = torch.tensor([0.0, 0.02], dtype=torch.float64)
    found, step = _after(start, loss, normalised, 2000)
    amplitude = math.sqrt(max(0.0, (lr * a / 2) ** 2 - slope**2)) / a
    assert abs(found.predicted[1]) == pytest.approx(amplitude, abs=1e-6)
    assert abs(found.measured[1]) == pytest.approx(amplitude, abs=1e-6)
    mu = multiplier(step.product, step.size).value.real
    if amplitude == 0:
        assert mu == pytest.approx(1 - lr * a / slope)  # here the linear response is the edge
    else:
        # on either side of a standing alternation the gain is saturated: ∂(a x/√(c² + a²x²))/∂x
        assert mu == pytest.approx(1 - 8 * (slope / (lr * a)) ** 2) and 1 - lr * a / slope < -1


def test_muons_polar_factor_saturates_as_a_normalised_gradient_does() -> None:
    """About G = cI a turn is answered by (cI + xJ)/√(c² + x²)."""
    lr, a, c = 0.1, 3.0, 0.07
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)

    def loss(w: Tensor, _: Any) -> Tensor:
        return c * w.trace() + a * ((w * turn).sum() / 2) ** 2  # G = cI + a x J, x = ⟨w, J⟩/2

    def polar(params: Any) -> Optimizer:
        return SteepestDescent(params, lr, "spectral", normalised=True)

    found, _ = _after(0.01 * turn, loss, polar, 2000)
    amplitude = math.sqrt((lr * a / 2) ** 2 - c**2) / a
    for z in (found.predicted, found.measured):
        assert abs(float((z.reshape(2, 2) * turn).sum() / 2)) == pytest.approx(amplitude, abs=1e-6)


@pytest.mark.parametrize(("beta", "alternates"), [(0.0, True), (0.3, True), (0.6, False)])
def test_momentum_lets_a_mean_gradient_silence_the_alternation_sooner(
    beta: float, alternates: bool
) -> None:
    """(1−β)/(1+β) of aη/2 against a mean gradient that the state of the run keeps up."""
    lr, a = 0.1, 2.0
    point = Point(torch.tensor([lr / 2 + 0.04 / a], dtype=torch.float64))  # ḡ = 0.04, aη/2 = 0.1
    optimizer = Signum([point.w], lr, momentum=beta)

    def loss(w: Tensor, _: Any) -> Tensor:
        return (0.5 * a * w**2).sum()

    t = (1 - beta) / (1 + beta)
    if beta:
        optimizer.state[point.w]["momentum_buffer"] = torch.tensor(
            [0.04 - t * a * lr / 2], dtype=torch.float64
        )
    found = alternation(TrainingMap(point, loss, NOTHING, optimizer))
    assert alternates == (t * a * lr / 2 > 0.04)
    if alternates:
        assert abs(found.measured[0]) == pytest.approx(lr / 2)
        assert abs(found.predicted[0]) == pytest.approx(lr / 2, rel=1e-4)
    else:
        assert abs(found.measured[0]) < lr / 2 - 1e-3


def test_lions_filter_is_in_phase_at_minus_one() -> None:
    """β₁m + (1−β₁)g of an alternation is (1−β₁) − β₁(1−β₂)/(1+β₂) = .0955 of it: it stands."""
    lr = 0.1
    found, _ = _after(
        torch.tensor([lr / 2], dtype=torch.float64),
        lambda w, _: (0.5 * w**2).sum(),
        lambda p: Lion(p, lr),
        200,
    )
    assert abs(found.measured[0]) == pytest.approx(lr / 2)
    assert abs(found.predicted[0]) == pytest.approx(lr / 2, rel=1e-4)


def _band(k: int, beta: float) -> float:
    """Largest distance of the centre from the minimum, in η, at which Signum turns every k steps.

    m_j = h(kη/2 − jη) + chη(1 − 2βʲ/(1 + βᵏ)), c = β/(1 − β), is concave in j: least at an end.
    """
    c = beta / (1 - beta)
    first = k / 2 - c * (1 - beta**k) / (1 + beta**k)
    last = 1 - k / 2 + c * (1 - 2 * beta ** (k - 1) / (1 + beta**k))
    return min(first, last)


def _on_a_cycle(
    make: Callable[..., Optimizer], k: int, beta: float, offset: float, eta: float, key: str
) -> tuple[nn.Parameter, Optimizer]:
    """½hx² with h = 2 at the top of a triangle of height kη/2, its momentum that of the cycle."""
    c = beta / (1 - beta)
    w = nn.Parameter(torch.tensor([[(k / 2 + offset) * eta]], dtype=torch.float64))
    optimizer = make([w])
    # m before the first step down: what the last step up had, −m_{k−1} with the offset
    m = (1 - k / 2) + c * (1 - 2 * beta ** (k - 1) / (1 + beta**k))
    optimizer.state[w][key] = torch.tensor([[2 * eta * (offset - m)]], dtype=torch.float64)
    return w, optimizer


def _signs(w: nn.Parameter, optimizer: Optimizer, n: int) -> list[float]:
    found = []
    for _ in range(n):
        before = w.item()
        w.grad = 2 * w.detach()
        optimizer.step()
        found.append(math.copysign(1, before - w.item()))
    return found


CYCLES = [(1, 0.0), (1, 0.5), (2, 0.5), (3, 0.5), *((k, 0.9) for k in range(1, 8))]


@pytest.mark.parametrize(("k", "beta"), CYCLES)
def test_signum_on_a_parabola_turns_every_k_steps_where_its_centre_is_near_enough(
    k: int, beta: float
) -> None:
    for factor, stands in ((0.98, True), (1.02, False)):
        w, optimizer = _on_a_cycle(
            lambda p: Signum(p, 0.1, momentum=beta),
            k, beta, factor * _band(k, beta), 0.1, "momentum_buffer",
        )  # fmt: skip
        expected = ([1.0] * k + [-1.0] * k) * 20
        assert (_signs(w, optimizer, 40 * k) == expected) == stands


def test_cycles_of_signum_have_half_periods_of_up_to_seven_for_its_usual_momentum() -> None:
    assert [k for k in range(1, 60) if _band(k, 0.9) > 0] == [1, 2, 3, 4, 5, 6, 7]
    assert [k for k in range(1, 60) if _band(k, 0.0) > 0] == [1]
    assert min(range(1, 8), key=lambda k: _band(k, 0.9)) == 1
    assert _band(1, 0.9) == pytest.approx(0.1 / 1.9 / 2)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_cycle_of_signum_is_the_triangle_of_the_closed_form(k: int) -> None:
    eta, beta = 0.1, 0.9
    w, optimizer = _on_a_cycle(
        lambda p: Signum(p, eta, momentum=beta), k, beta, 0.3 * _band(k, beta), eta,
        "momentum_buffer",
    )  # fmt: skip
    point = Point(w.detach())
    optimizer.param_groups[0]["params"] = [point.w]
    optimizer.state[point.w] = optimizer.state.pop(w)
    step = TrainingMap(point, lambda x, _: x.square().sum(), NOTHING, optimizer)
    start = torch.where(torch.arange(step.size) == 0, k * eta / 2, 0.0).double()
    found = cycle(step, k, start=start)
    triangle = [k * eta / 2 - t * eta for t in range(k)]
    assert found.measured[:, 0].tolist() == pytest.approx(triangle, abs=1e-12)
    size = math.sqrt(sum(x * x for x in triangle))
    assert float(found.predicted[:, 0].norm()) == pytest.approx(size, rel=1e-4)


def test_adamuon_of_one_number_is_signum_and_has_its_cycles() -> None:
    """A polar factor of one number is its sign, which the second moment leaves, up to a scale."""
    made = pytest.importorskip("pytorch_optimizer").AdaMuon
    beta, k, eta = 0.95, 6, 0.1
    w = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))

    def adamuon(params: list[nn.Parameter], lr: float) -> Optimizer:
        group = {"params": params, "use_muon": True}
        found: Optimizer = made([group], lr=lr, betas=(beta, beta), weight_decay=0.0)
        return found

    trial = adamuon([w], 1e-3)
    _signs(w, trial, 1)
    w.data.fill_(1.0)
    _signs(w, trial, 1)
    scale = (1 - w.item()) / 1e-3
    assert [j for j in range(1, 60) if _band(j, beta) > 0] == list(range(1, 11))
    for factor, stands in ((0.9, True), (1.1, False)):
        held, optimizer = _on_a_cycle(
            lambda p: adamuon(p, eta / scale), k, beta, factor * _band(k, beta), eta, "m"
        )
        optimizer.state[held]["v"] = torch.ones(1, 1, dtype=torch.float64)
        expected = ([1.0] * k + [-1.0] * k) * 3
        assert (_signs(held, optimizer, 6 * k) == expected) == stands
