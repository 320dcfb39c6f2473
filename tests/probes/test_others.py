"""What sharpness of some examples is on others: values, when it is measured, when it is absent."""

import itertools
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from optbench.dynamics import edge
from optbench.dynamics.edges import EigenvalueEdge
from optbench.optimizers.sign import Signum
from optbench.probes import State
from optbench.probes.edge import Edge
from optbench.probes.others import EVERY, drawn
from optbench.probes.sharpness import Sharpness
from optbench.task import Split, Task, half_mse
from optbench.watching import watch
from tests.curvature.helpers import dense_hessian

N = 80


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, step: int = 0) -> State:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(300, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    said: list[str] = []
    task = Task(Split(x, y), None, None, 2, half_mse)
    return State(step, 100, task, model, optimizer, True, 1, 0, say=said.append)


def _model(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *more, nn.Linear(5, 2)).double()


def _signs(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return Signum(parameters, lr, momentum=0.0)


def _dense(state: State, split: Split) -> Tensor:
    return dense_hessian(state.model, half_mse, (split.inputs, split.targets))


def _both(state: State) -> tuple[Split, Split]:
    """The examples that are measured on, and the others."""
    return state.task.train.first(N), drawn(state.task.train, N, state.seed)


def test_sharpness_is_told_along_its_eigenvector_on_as_many_others() -> None:
    model = _model()
    state = _state(model, torch.optim.SGD(model.parameters(), 0.1))
    found = Sharpness(examples=N, accuracy=1e-9)(state)
    own, others = _both(state)
    u = torch.linalg.eigh(_dense(state, own))[1][:, -1]
    expected = u @ _dense(state, others) @ u
    # the eigenvector's relative error is the residual's, some 1e-5, over a gap of some tenths
    assert found["sharpness/held_out"] == pytest.approx(expected.item(), rel=1e-4)
    groups = itertools.starmap(Split, others.chunks(5))  # 16 of them
    q = torch.stack([u @ _dense(state, group) @ u for group in groups])
    error = (1 - N / 220) ** 0.5 * q.std() / 4
    assert found["sharpness/held_out_error"] == pytest.approx(error.item(), rel=1e-3)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_distance_of_adam_is_told_along_its_direction_on_others(weight_decay: float) -> None:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=weight_decay)
    state = _state(model, optimizer, 30)
    for _ in range(30):
        optimizer.zero_grad()
        half_mse(model(state.task.train.inputs), state.task.train.targets).backward()
        optimizer.step()
    found = Edge(examples=N, accuracy=1e-9)(state)
    known = edge(optimizer)
    assert isinstance(known, EigenvalueEdge)
    size = sum(p.numel() for p in model.parameters())
    root = torch.diag(known.inverse_sqrt(torch.ones(size, dtype=torch.float64)))
    decay = weight_decay * torch.eye(size, dtype=torch.float64)
    of_first, of_others = (root @ (_dense(state, split) + decay) @ root for split in _both(state))
    values, vectors = torch.linalg.eigh(of_first)
    assert found["edge/distance"] == pytest.approx(values[-1].item() / known.threshold, rel=1e-6)
    expected = vectors[:, -1] @ of_others @ vectors[:, -1] / known.threshold
    assert found["edge/held_out"] == pytest.approx(expected.item(), rel=1e-4)
    assert 0 < found["edge/held_out_error"] < found["edge/held_out"]  # type: ignore[operator]


@pytest.mark.parametrize("make", [_signs, torch.optim.Muon])
def test_the_distance_on_a_norm_ball_is_told_along_its_direction_on_others(
    make: Callable[..., torch.optim.Optimizer],
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 2, bias=False)))
    model.double()
    state = _state(model, make(model.parameters(), lr=0.01), 30)
    probe = Edge(examples=N)
    found = probe(state)
    threshold, d = found["edge/threshold"], probe.state_dict()["direction"]
    assert isinstance(threshold, float)
    of_first, of_others = (d @ _dense(state, split) @ d for split in _both(state))
    # products and sums of float64
    assert found["edge/distance"] == pytest.approx(of_first.item() / threshold, rel=1e-10)
    assert found["edge/held_out"] == pytest.approx(of_others.item() / threshold, rel=1e-10)
    assert 0 < found["edge/held_out_error"] < found["edge/held_out"]  # type: ignore[operator]


def test_on_a_norm_ball_it_is_measured_as_often_and_so_after_a_resume() -> None:
    model = _model()
    probe, taken = Edge(examples=N, norm_hvps=1), list[int]()
    optimizer = _signs(model.parameters(), lr=0.01)
    for step in (*range(0, 2 * EVERY + 2), 100):
        found = probe(_state(model, optimizer, step))
        taken += [step] if "edge/held_out" in found else []
        resumed = Edge(examples=N, norm_hvps=1)
        resumed.load_state_dict(probe.state_dict())
        probe = resumed
    assert taken == [0, EVERY, 2 * EVERY, 100]


def test_the_others_are_drawn_from_all_of_the_rest_each_time_the_same() -> None:
    x = torch.arange(300.0)
    others = drawn(Split(x, 2 * x), N, 0)
    assert torch.equal(others.targets, 2 * others.inputs)
    assert len(set(others.inputs.tolist())) == N and others.inputs.min() >= N
    # of 80 of the last 220, sorted: one in ten is above 277, but for a chance of (198/220)^80
    assert others.inputs.max() > 277
    assert torch.equal(drawn(Split(x, x), N, 0).inputs, others.inputs)
    assert not torch.equal(drawn(Split(x, x), N, 1).inputs, others.inputs)
    assert len(drawn(Split(x, x), 250, 0)) == 50


def test_it_is_measured_at_every_fourth_solve_and_at_the_end() -> None:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe, taken = Sharpness(examples=N, solve_every=1), list[int]()
    for step in (*range(0, 2 * EVERY + 2), 100):
        found = probe(_state(model, optimizer, step))
        taken += [step] if "sharpness/held_out" in found else []
    assert taken == [0, EVERY, 2 * EVERY, 100]


@pytest.mark.parametrize("examples", [None, 300, 270])
def test_it_is_absent_where_few_or_no_others_are_left(examples: int | None) -> None:
    model = _model()
    state = _state(model, torch.optim.SGD(model.parameters(), 0.1))
    assert not any("held_out" in name for name in Sharpness(examples=examples)(state))


def test_it_is_absent_with_its_reason_where_examples_affect_each_other() -> None:
    model = _model(nn.BatchNorm1d(5))
    state = _state(model, torch.optim.SGD(model.parameters(), 0.1))
    said: list[str] = []
    state.say = said.append
    found = Sharpness(examples=N)(state)
    assert "sharpness/lambda_max" in found and "sharpness/held_out" not in found
    (line,) = [line for line in said if "held_out" in line]
    assert line.startswith("sharpness/held_out is absent: a batch norm in train mode")


def test_where_nobody_knows_the_last_step_it_is_measured_at_every_fourth_solve() -> None:
    model = _model()
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(300, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    measure = watch(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        half_mse,
        [(x, y)],
        every=1,
        probes={"sharpness": Sharpness(1, examples=N, solve_every=1)},
    )
    taken = [step for step in range(2 * EVERY) if "sharpness/held_out" in measure.measure()]
    assert taken == [0, EVERY]


def _unlike(state: State) -> State:
    """The first examples are three times as large as the rest, and so some nine times as sharp."""
    state.task.train.inputs[:N] *= 3
    return state


def _sgd_at(model: nn.Module, distance: float, own: Tensor) -> torch.optim.Optimizer:
    sharpness = torch.linalg.eigvalsh(own)[-1].item()
    return torch.optim.SGD(model.parameters(), distance * 2 / sharpness)


@pytest.mark.parametrize("every", [1, 4])
def test_a_crossing_of_few_examples_is_held_against_others_until_they_confirm_it(
    every: int,
) -> None:
    model = _model()
    state = _unlike(_state(model, torch.optim.SGD(model.parameters(), 1.0)))
    own, others = _both(state)
    values, vectors = torch.linalg.eigh(_dense(state, own))
    ratio = (vectors[:, -1] @ _dense(state, others) @ vectors[:, -1] / values[-1]).item()
    assert ratio < 0.4
    # distances of the first examples, by step; the others' are at most .4 of them
    distances = [0.5, 1.1, 1.1, 0.9, 0.5, 1.2, 1.1 / ratio, 1.2, 1.2, 0.5, 0.5, 0.5]
    probe, taken = Sharpness(examples=N, solve_every=every), list[int]()
    for step, distance in enumerate(distances):
        optimizer = _sgd_at(model, distance, _dense(state, own))
        found = probe(_unlike(_state(model, optimizer, step)))
        taken += [step] if "sharpness/held_out" in found else []
        resumed = Sharpness(examples=N, solve_every=every)
        resumed.load_state_dict(probe.state_dict())
        probe = resumed
    in_turn = {0, 4, 8} if every == 1 else {0}  # the same weights: what is held is not solved for
    assert set(taken) - in_turn == {1, 2, 5, 6} and in_turn <= set(taken)


def test_a_crossing_of_adams_edge_is_held_against_others() -> None:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    state = _unlike(_state(model, optimizer, 30))
    for _ in range(30):
        optimizer.zero_grad()
        half_mse(model(state.task.train.inputs), state.task.train.targets).backward()
        optimizer.step()
    probe = Edge(examples=N)
    distance = probe(state)["edge/distance"]
    assert isinstance(distance, float)
    for group in optimizer.param_groups:
        group["lr"] *= 1.1 / distance
    taken = []
    for step in range(31, 35):
        found = probe(_unlike(_state(model, optimizer, step)))
        assert found["edge/distance"] == pytest.approx(1.1, rel=1e-3)
        taken += [step] if "edge/held_out" in found else []
    assert taken == [31, 32, 33, 34] and found["edge/held_out"] < 0.6  # type: ignore[operator]


def test_a_start_above_the_edge_of_few_examples_alone_is_no_warning() -> None:
    model = _model()
    state = _unlike(_state(model, torch.optim.SGD(model.parameters(), 1.0)))
    own, _ = _both(state)
    for distance, warned in ((4.0, False), (40.0, True)):
        state = _unlike(_state(model, _sgd_at(model, distance, _dense(state, own))))
        said: list[str] = []
        state.say = said.append
        state.found |= Sharpness(examples=N)(state)
        found = Edge(examples=N)(state)
        assert found["edge/distance"] == pytest.approx(distance, rel=1e-2)
        assert any("far above" in line for line in said) is warned
