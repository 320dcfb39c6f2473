"""Measures pulled while all training outputs stay."""

from itertools import islice

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from optbench import lab
from optbench.errors import UserError
from optbench.lab.held_outputs import HeldError, HeldOutputs, Network
from optbench.lab.point import Point
from optbench.lab.pull import LEVERS, lever_values, random_direction, towards
from optbench.task import Split, Task, cross_entropy, half_mse


def _point(model: nn.Module, n: int, classes: int, loss: str = "mse") -> Point:
    torch.manual_seed(0)
    inputs, labels = torch.randn(n, 6).double(), torch.arange(n) % classes
    targets = labels if loss == "ce" else torch.randn(n, classes).double()
    split = Split(inputs, targets)
    task = Task(split, None, split, classes, cross_entropy if loss == "ce" else half_mse)
    return Point(model.double(), task)


def _linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(6, 2, bias=False)


def _net(activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 9), activation or nn.Tanh(), nn.Linear(9, 3))


def _jacobian(network: Network, w: Tensor) -> Tensor:
    found: Tensor = jacrev(lambda v: network.outputs(v).flatten())(w)
    return found


def test_the_kernel_is_that_of_the_dense_jacobian() -> None:
    network = Network(_point(_net(), 5, 3))
    J = _jacobian(network, network.start)
    # float64, entries of some tens: 1e-12 is a hundred roundings
    torch.testing.assert_close(network.kernel(network.start), J @ J.T, rtol=1e-12, atol=1e-12)


def test_a_projection_is_the_dense_one() -> None:
    network = Network(_point(_net(), 5, 3))
    held = HeldOutputs(network)
    v = torch.randn(len(network.start), dtype=torch.float64)
    J = _jacobian(network, network.start)
    dense = v - torch.linalg.pinv(J) @ (J @ v)
    # the condition of JJᵀ, about 1e4, times the accuracy of 1e-6 in ‖Jv‖, over J's least value
    torch.testing.assert_close(held.project(network.start, v), dense, rtol=0, atol=1e-5)


def test_the_smallest_weights_with_these_outputs_are_the_minimum_norm_interpolant() -> None:
    point = _point(_linear(), 4, 2)
    X, W = point.train.inputs, point.parameters[0].detach()
    least = torch.linalg.pinv(X) @ (X @ W.T)
    *_, last = lab.pull(point, "weight_norm", -1, steps=200)
    assert last.deviation < 1e-3
    # the last step is shorter than 1e-5 ‖w₀‖, and the norm flat to second order; outputs to 1e-3
    torch.testing.assert_close(last.weights.view(2, 6), least.T, rtol=0, atol=2e-3)


def test_a_random_direction_is_a_straight_way_in_a_linear_model() -> None:
    point = _point(_linear(), 4, 2)
    X, z = point.train.inputs, random_direction(point, 3)
    states = list(lab.pull(point, towards(z), 1, length=0.1, steps=5))
    free = z.view(2, 6) - z.view(2, 6) @ torch.linalg.pinv(X) @ X
    start = states[0].weights
    way = (free / free.norm()).flatten()
    for k, state in enumerate(states):
        # a few roundings a step
        expected = start + 0.1 * k * start.norm() * way
        torch.testing.assert_close(state.weights, expected, rtol=0, atol=1e-7)
        assert state.deviation < 1e-7


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", list(LEVERS))
def test_every_lever_moves_as_asked_and_the_outputs_stay(name: str, sign: int) -> None:
    point = _point(_net(), 5, 3, "ce")
    before = [p.detach().clone() for p in point.model.parameters()]
    states = list(islice(lab.pull(point, name, sign, length=0.01), 6))
    values = [sign * state.value for state in states]
    assert len(states) > 2 and values == sorted(values) and len(set(values)) == len(values)
    f = point.logits
    for state in states:
        weights = Network(point).named(state.weights)
        now = functional_call(point.model, weights, (point.train.inputs,))
        assert float((now - f).norm() / f.norm()) < 1e-3
    assert all(map(torch.equal, before, (p.detach() for p in point.model.parameters())))


def test_levers_are_the_measures_of_their_names() -> None:
    point = _point(_net(nn.ReLU()), 5, 3, "ce")
    network = Network(point)
    mine = lever_values(network, network.start, LEVERS)
    theirs = {name: lab.measure(point, [name])[name].value for name in LEVERS}
    theirs["trace"] = float(torch.trace(_dense_hessian(network)))
    # λ₁ is solved to 1e-3, its error is quadratic in that; the rest to rounding
    assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Tanh(), nn.ReLU()])
def test_a_path_norm_is_of_the_weights_whatever_the_activation(activation: nn.Module) -> None:
    network = Network(_point(_net(activation), 5, 3, "ce"))
    first, b, last, c = (p.square() for p in network.named(network.start).values())
    paths = torch.einsum("kh,hi->", last, first) + (last @ b).sum() + c.sum()
    found = lever_values(network, network.start, ["path_norm"])["path_norm"]
    # sums of about a hundred positive terms in float64
    assert found == pytest.approx(float(paths.sqrt()), rel=1e-13)
    outputs = network.outputs(network.start)
    net = network.model
    assert torch.equal(outputs, net(network.inputs)), "the activation is back"


def test_held_outputs_leave_a_homogeneous_network_no_fisher_rao_norm_to_pull() -> None:
    """Jw = 2f in a ReLU network of two layers without biases."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False))
    assert len(list(lab.pull(_point(net, 5, 3, "ce"), "fisher_rao_norm", -1, steps=3))) == 1
    assert len(list(lab.pull(_point(_net(), 5, 3, "ce"), "fisher_rao_norm", -1, steps=3))) == 4


def _dense_hessian(network: Network) -> Tensor:
    found: Tensor = torch.func.hessian(network.loss)(network.start)
    return found


@pytest.mark.parametrize("name", list(LEVERS))
def test_slopes_are_those_of_differences(name: str) -> None:
    network = Network(_point(_net(), 5, 3, "ce"))
    held, w = HeldOutputs(network), network.start
    leaf = w.clone().requires_grad_()
    (slope,) = torch.autograd.grad(LEVERS[name](network, leaf), leaf)
    way = held.project(w, torch.randn(len(w), dtype=torch.float64))
    way = way / way.norm()
    h = 1e-4
    ends = [lever_values(network, w + s * h * way, [name])[name] for s in (1, -1)]
    # central differences err by h² third derivatives; along P_⊥ the trace's A is constant to h
    assert float(slope @ way) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-2, abs=1e-5)


def test_states_load_into_a_model() -> None:
    point = _point(_linear(), 4, 2)
    state = next(lab.pull(point, "weight_norm", 1))
    twin = state.load(nn.Linear(6, 2, bias=False))
    torch.testing.assert_close(twin.weight.double(), point.model.weight, rtol=0, atol=1e-7)


def test_what_cannot_be_held_is_refused_by_name() -> None:
    with pytest.raises(HeldError, match=r"12 training outputs .* the model has 12: take fewer"):
        next(lab.pull(_point(_linear(), 6, 2), "weight_norm", 1))
    with pytest.raises(HeldError, match=r"1\.weight is in another kind of layer"):
        model = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 3))
        next(lab.pull(_point(model, 5, 3), "weight_norm", 1))
    with pytest.raises(UserError, match=r"no lever called shapness.*sharpness"):
        next(lab.pull(_point(_linear(), 4, 2), "shapness", 1))
    with pytest.raises(UserError, match=r"sign must be 1 \(up\) or -1 \(down\), got 2"):
        next(lab.pull(_point(_linear(), 4, 2), "trace", 2))
