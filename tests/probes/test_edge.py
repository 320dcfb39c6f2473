from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from optbench.dynamics import GradientEdge
from optbench.optimizers.by_shape import ByShape
from optbench.optimizers.sam import SAM
from optbench.optimizers.sign import Lion, Signum
from optbench.optimizers.steepest import SteepestDescent
from optbench.probes import State, Value
from optbench.probes.edge import Edge
from optbench.task import Split, Task, half_mse
from tests.dynamics.asked import edge, reordered, source

Make = Callable[[list[nn.Parameter]], Optimizer]


def _measure(
    optimizer: Optimizer, net: nn.Module, **found: Value
) -> tuple[dict[str, Value], list[str]]:
    said: list[str] = []
    split = Split(torch.zeros(1, 2), torch.zeros(1, 1))
    task = Task(split, None, None, 1, half_mse)
    return Edge()(State(1, 2, task, net, optimizer, True, 1, 0, dict(found), said.append)), said


@pytest.mark.parametrize(
    ("settings", "threshold"),
    [
        ({}, 2 / 0.1),
        ({"momentum": 0.9}, 3.8 / 0.1),
        ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8 / 0.1),
        ({"momentum": 0.5, "dampening": 0.5}, 3.0 / 0.5 / 0.1),
        ({"weight_decay": 0.5}, 2 / 0.1 - 0.5),
    ],
)
def test_thresholds_of_sgd_and_the_distance_to_them(
    settings: dict[str, float], threshold: float
) -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, **settings)  # type: ignore[arg-type]
    found, said = _measure(optimizer, net, **{"sharpness/lambda_max": 3.0})
    assert found["edge/threshold"] == pytest.approx(threshold, rel=1e-12)
    assert found["edge/distance"] == pytest.approx(3.0 / threshold, rel=1e-12)
    assert "closed form" in said[0] and "λ₁(H)" in said[0]


def test_what_is_not_known_or_not_measured_is_absent_never_a_look_alike() -> None:
    net = nn.Linear(2, 1)
    assert _measure(torch.optim.SGD(net.parameters(), lr=0.1), net)[0] == {}
    sharpness = {"sharpness/lambda_max": 3.0}
    found, said = _measure(torch.optim.Rprop(net.parameters()), net, **sharpness)
    assert found == {} and "edge/distance is absent: Rprop" in said[0]
    assert _measure(torch.optim.SGD(net.parameters(), lr=0.0), net, **sharpness)[0] == {}


def _trained(make: Make, steps: int = 30, full_batch: bool = True) -> tuple[State, list[str]]:
    """A small float64 net after a few steps, as a probe sees it."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    optimizer = make(list(net.parameters()))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = half_mse(net(x), y)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
    task = Task(Split(x, y), None, None, 2, half_mse)
    said: list[str] = []
    return State(steps, 100, task, net, optimizer, full_batch, 1, 0, say=said.append), said


def _dense(state: State) -> torch.Tensor:
    return state.shared.hessian(state, None) @ torch.eye(37, dtype=torch.float64)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, 1e-2),
        lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5, weight_decay=0.1),
        lambda p: torch.optim.Adam([{"params": p[:2], "lr": 1e-3}, {"params": p[2:], "lr": 1e-2}]),
        lambda p: SAM(p, lambda q: torch.optim.Adam(q, 1e-2), 0.05),
        lambda p: ByShape(
            p, lambda q: torch.optim.Adam(q, 1e-2), lambda q: torch.optim.SGD(q, 0.1)
        ),
    ],
)
def test_the_preconditioned_sharpness_is_that_of_the_dense_operator(make: Make) -> None:
    state, _ = _trained(make)
    found = Edge(k=2, accuracy=1e-8)(state)
    here = reordered(edge(state.optimizer), list(state.model.parameters()))
    if isinstance(here, GradientEdge):
        here = here.at(state.shared.loss_and_gradient(state, None)[1])
    H = _dense(state)
    dense = here.operator(lambda v: H @ v)(torch.eye(37, dtype=torch.float64))
    truth = torch.linalg.eigvalsh((dense + dense.T) / 2)
    # The accuracy asked for, 1e-8 of λ₁.
    assert found["edge/preconditioned_sharpness"] == pytest.approx(float(truth[-1]), rel=1e-8)
    assert found["edge/preconditioned_lambda_2"] == pytest.approx(
        float(truth[-2]), abs=1e-8 * float(truth[-1])
    )
    assert found["edge/threshold"] == here.threshold
    assert found["edge/distance"] == pytest.approx(float(truth[-1]) / here.threshold, rel=1e-8)
    assert isinstance(hvps := found["edge/hvps"], int) and hvps > 0


def test_sam_over_gradient_descent_is_compared_with_lambda_1_at_the_cost_of_a_gradient() -> None:
    state, said = _trained(lambda p: SAM(p, lambda q: torch.optim.SGD(q, 0.2), 0.05))
    state.found["sharpness/lambda_max"] = 3.0
    found = Edge()(state)
    norm = float(state.shared.loss_and_gradient(state, None)[1].norm())
    expected = norm / 0.1 * ((1 + 8 * 0.05 / (0.2 * norm)) ** 0.5 - 1)
    assert found["edge/threshold"] == pytest.approx(expected, rel=1e-10)
    assert "SAM" not in found and "closed form" in said[0]


@pytest.mark.parametrize(
    ("make", "geometry"),
    [
        (lambda p: Signum(p, 1e-3, momentum=0), "linf"),
        (lambda p: Lion(p, 1e-3), "linf"),
        (lambda p: SteepestDescent(p, 1e-2, "spectral"), "spectral"),
        (lambda p: ByShape(p, lambda q: torch.optim.Muon(q, 1e-2), torch.optim.AdamW), "spectral"),
    ],
)
def test_norm_sharpness_is_attained_and_its_threshold_stated(make: Make, geometry: str) -> None:
    state, said = _trained(make)
    probe = Edge(norm_hvps=40)
    found, H = probe(state), _dense(state)
    d = probe.state_dict()["direction"]
    assert found["edge/norm_sharpness"] == pytest.approx(float(d @ H @ d), rel=1e-10)
    assert found["edge/hvps"] == 40 and geometry in said[0]
    assert source(edge(state.optimizer)) in said[0]


def test_without_a_full_batch_a_threshold_on_the_gradient_is_absent_with_its_reason() -> None:
    state, said = _trained(lambda p: Signum(p, 1e-3), full_batch=False)
    assert Edge()(state) == {} and "mini-batch" in said[0]


def test_before_the_first_step_of_adam_it_is_silent() -> None:
    state, said = _trained(lambda p: torch.optim.Adam(p, 1e-2), steps=0)
    assert Edge()(state) == {} and said == []


def test_until_adam_has_averaged_20_gradients_nothing_is_measured_and_the_reason_is_said_once() -> (
    None
):
    probe, lines = Edge(), []
    for step in (1, 5, 19, 20):
        state, said = _trained(lambda p: torch.optim.Adam(p, 1e-2), step)
        found = probe(state)
        lines += said
        hessian = state.shared.hessian(state, None)
        if step < 20:  # no product, and no pair to start from
            assert (
                found == {} and hessian.hvps == 0 and probe.state_dict()["tracker"]["pairs"] is None
            )
    assert {"edge/threshold", "edge/distance", "edge/preconditioned_sharpness"} <= found.keys()
    assert found["edge/lr"] == 1e-2
    absent = [line for line in lines if "absent" in line]
    assert len(absent) == 1 and "until step 20" in absent[0] and "Adam" in absent[0]


def test_small_batches_wait_until_twice_as_many_examples_are_seen_as_the_hessian_is_over() -> None:
    for steps, examples, settled in (
        (59, None, False),
        (60, None, True),
        (29, 15, False),
        (30, 15, True),
    ):
        state, said = _trained(lambda p: torch.optim.Adam(p, 1e-2), steps, full_batch=False)
        state.steps_per_epoch = 30  # batches of one example, of 30
        assert bool(Edge(examples=examples)(state)) is settled
        assert (
            any(f"averaged {2 * (examples or 30)} gradients" in line for line in said)
            is not settled
        )


def test_what_is_measured_does_not_depend_on_when_it_was_asked_before_nor_on_a_resume() -> None:
    def numbers(probe: Edge) -> dict[str, Value]:
        found = probe(_trained(lambda p: torch.optim.Adam(p, 1e-2), 40)[0])
        return {key: value for key, value in found.items() if "seconds" not in key}

    asked, resumed = Edge(), Edge()
    for step in range(1, 20):
        assert asked(_trained(lambda p: torch.optim.Adam(p, 1e-2), step)[0]) == {}
    resumed.load_state_dict(asked.state_dict())
    assert numbers(Edge()) == numbers(asked) == numbers(resumed)


def test_after_unfreezing_it_is_absent_again_and_says_so_again() -> None:
    probe = Edge()
    state, said = _trained(lambda p: torch.optim.Adam(p[2:], 1e-2), 30)
    assert probe(state)["edge/lr"] == 1e-2
    first = next(iter(state.model.parameters()))
    state.optimizer.add_param_group({"params": [first]})
    first.grad = torch.ones_like(first)
    state.optimizer.step()
    state.shared.release()
    state.step += 1
    assert probe(state) == {} and any("absent until step 50" in line for line in said)


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, 1e-2), lambda p: Lion(p, 1e-3)])
def test_a_resumed_probe_goes_on_bit_for_bit(make: Make) -> None:
    one, other = Edge(), Edge()
    state, _ = _trained(make)
    one(state)
    other.load_state_dict(one.state_dict())
    first, second = one(_trained(make, 31)[0]), other(_trained(make, 31)[0])
    assert {k: v for k, v in first.items() if "seconds" not in k} == {
        k: v for k, v in second.items() if "seconds" not in k
    }


def test_it_leaves_model_and_optimizer_as_they_were() -> None:
    state, _ = _trained(lambda p: torch.optim.Adam(p, 1e-2))

    def everything() -> list[Any]:
        moments = [t for s in state.optimizer.state.values() for t in s.values()]
        return [*state.model.parameters(), *moments, *(p.grad for p in state.model.parameters())]

    before, random = [t.clone() for t in everything()], torch.get_rng_state()
    Edge()(state)
    assert all(torch.equal(a, b) for a, b in zip(everything(), before, strict=True))
    assert torch.equal(random, torch.get_rng_state())
