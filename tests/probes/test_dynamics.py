"""The probes of `probes=dynamics`, on problems with closed forms."""

import math

import pytest
import torch
from torch import nn

from optbench.probes import State
from optbench.probes.batch_sharpness import BatchSharpness
from optbench.probes.critical import Critical
from optbench.probes.direction import Direction
from optbench.probes.layers import Layers
from optbench.probes.noise import Noise
from optbench.probes.sharpening import Sharpening
from optbench.probes.sharpness import Sharpness
from optbench.task import Split, Task, half_mse


def _regression(n: int = 2000, full_batch: bool = True) -> State:
    """L = ½ a w², x ~ N(0, 1), no noise: gradients of examples are x²w, the Hessian mean x² = a."""
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(net.weight)
    task = Task(Split(x, torch.zeros_like(x)), None, None, 1, half_mse)
    return State(0, 100, task, net, torch.optim.SGD(net.parameters(), 0.5), full_batch, 1, 0)


def _a(state: State) -> float:
    return float(state.task.train.inputs.square().mean())


def _step(state: State, size: float) -> None:
    with torch.no_grad():
        for p in state.model.parameters():
            p.mul_(1 - size * _a(state))  # a gradient step of this size
    state.step += 1
    state.shared.release()


def test_on_a_quadratic_the_prediction_is_exact_and_the_curvature_that_of_the_axis() -> None:
    state, probe = _regression(), Direction()
    a = _a(state)
    assert probe(state) == {} and probe.next_step == 1
    _step(state, 0.5)
    found = probe(state)
    assert found["update/sharpness"] == pytest.approx(a, rel=1e-10)
    assert found["update/gradient_sharpness"] == pytest.approx(a, rel=1e-10)
    assert found["update/slope"] == pytest.approx(-0.5 * a * a, rel=1e-10)  # g = a, d = −½a
    true = a / 2 * ((1 - 0.5 * a) ** 2 - 1)
    assert found["update/loss_change"] == pytest.approx(true, rel=1e-10)
    assert found["update/predicted_change"] == pytest.approx(true, rel=1e-10)
    assert probe.next_step == 10


def test_critical_sharpness_on_a_quadratic_is_its_curvature() -> None:
    state, probe = _regression(), Critical()
    probe(state)
    _step(state, 0.5)
    found = probe(state)
    # κ·η = 2/a, found by regula falsi on a function that is linear here: exact but for the
    # bracket's 5 %.
    assert found["update/critical_sharpness"] == pytest.approx(_a(state), rel=1e-6)
    assert found["update/critical_step"] == pytest.approx(2 / (0.5 * _a(state)), rel=1e-6)


def test_a_measurement_that_comes_too_late_is_none() -> None:
    state, probe = _regression(), Direction(every=5)
    probe(state)
    state.step = 3
    assert probe(state) == {} and probe.next_step == 5


def test_batch_measures_have_their_gaussian_closed_forms_within_their_intervals() -> None:
    state, b = _regression(full_batch=False), 4
    found = BatchSharpness(size=b, batches=400, until=None)(state)
    x = state.task.train.inputs.square()
    # g_B = H_B w with H_B the mean of x²: batch sharpness E[H_B], interaction a E[H_B²]/a², IAS a.
    second = float((x.square().mean() - x.mean() ** 2) / b + x.mean() ** 2)
    a = _a(state)
    for name, truth in (
        ("batch/sharpness", a),
        ("batch/interaction", second / a),
        ("batch/interaction_aware_sharpness", a),
    ):
        low, high = (float(found[f"{name}_{end}"]) for end in ("low", "high"))  # type: ignore[arg-type]
        width = max(high - low, 1e-9)
        assert low - width / 2 <= truth <= high + width / 2, name  # 95 % widened to 99.99 %
    assert found["batch/count"] == 400


def test_noise_scale_is_the_variance_over_the_squared_gradient() -> None:
    state = _regression()
    found = Noise(size=8, batches=400)(state)
    x = state.task.train.inputs.square()
    truth = float(x.var(correction=1) / x.mean() ** 2)  # Σ = Var(x²)w², ‖g‖² = a²w²
    low, high = float(found["noise/scale_low"]), float(found["noise/scale_high"])  # type: ignore[arg-type]
    assert low - (high - low) / 2 <= truth <= high + (high - low) / 2


def test_full_batch_runs_have_no_batch_sharpness_and_say_so() -> None:
    state, said = _regression(), list[str]()
    state.say = said.append
    assert BatchSharpness(size="full")(state) == {} and "batch/sharpness is absent" in said[0]


def test_sharpening_of_a_quartic() -> None:
    """With f = tanh w and target 0 on x = 1: L = ½tanh²w, differentiated by hand."""
    one = torch.ones(3, 1, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh()).double()
    nn.init.constant_(net[0].weight, 0.3)  # type: ignore[arg-type]
    task = Task(Split(one, torch.zeros_like(one)), None, None, 1, half_mse)
    state = State(0, 10, task, net, torch.optim.SGD(net.parameters(), 0.1), True, 1, 0)
    assert Sharpening()(state) == {}  # no eigenvector at this step
    Sharpness()(state)
    found = Sharpening()(state)
    t = math.tanh(0.3)
    s = 1 - t * t
    first, third = t * s, -8 * t * s * s + 4 * t**3 * s  # L' and L''' of ½tanh²
    assert found["sharpening/rate"] == pytest.approx(-first * third, rel=1e-9)
    assert found["sharpening/stabilization"] == pytest.approx(third**2, rel=1e-9)


def test_norms_and_angles_of_layers() -> None:
    first = nn.Linear(2, 1)
    net = nn.Sequential(first, nn.Tanh(), nn.Linear(1, 1)).double()
    x = torch.ones(3, 2, dtype=torch.float64)
    task = Task(Split(x, x[:, :1]), None, None, 1, half_mse)
    state, probe = (
        State(0, 9, task, net, torch.optim.SGD(net.parameters(), 0.1), True, 1, 0),
        Layers(every=1),
    )
    with torch.no_grad():
        for p, values in zip(net.parameters(), ([[3.0, 0.0]], [4.0], [[1.0]], [0.0]), strict=True):
            p.copy_(torch.tensor(values))
    assert probe(state) == {}
    with torch.no_grad():
        first.bias.zero_()  # (3, 0, 4) → (3, 0, 0)
    state.step = 1
    found = probe(state)
    assert found["layers/0/weight_norm"] == pytest.approx(3.0)
    assert found["layers/0/update_norm"] == pytest.approx(4.0)
    assert found["layers/0/angle"] == pytest.approx(math.acos(3 / 5))
    assert found["layers/2/angle"] == found["layers/2/update_norm"] == 0.0
    assert float(found["layers/2/gradient_norm"]) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("probe", [Direction(), Critical(), Layers()])
def test_probes_of_the_update_leave_the_weights_bit_for_bit(
    probe: Direction | Critical | Layers,
) -> None:
    state = _regression()
    probe(state)
    _step(state, 0.3)
    before, random = [p.clone() for p in state.model.parameters()], torch.get_rng_state()
    probe(state)
    assert all(torch.equal(p, b) for p, b in zip(state.model.parameters(), before, strict=True))
    assert torch.equal(random, torch.get_rng_state())
