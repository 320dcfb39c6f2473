"""The multiplier probe: its value, what it costs, where it is absent, and that it only reads."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from optbench.models.mlp import mlp
from optbench.optimizers.sign import Signum
from optbench.probes import State
from optbench.probes.multiplier import Multiplier
from optbench.run.update import Update
from optbench.task import Split, Task, half_mse
from tests.conftest import Command


class Staircase(torch.optim.SGD):
    """Gradient descent that counts gradients in billionths."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step on the gradient, rounded in a way that no small change survives."""
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_((p.grad * 1e9).floor().sin(), alpha=group["lr"])
        return loss


def _state(make: type[torch.optim.Optimizer], full_batch: bool = True, **options: float) -> State:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=g), torch.randn(20, 2, generator=g)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mlp((3,), 2, widths=[8])
    task = Task(Split(x, y), None, None, 2, half_mse)
    optimizer = make(model.parameters(), **options)  # type: ignore[arg-type]
    return State(0, 100, task, model, optimizer, full_batch, 1, 0, say=lambda _: None)


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items()}


def _train(state: State, steps: int) -> None:
    update = Update(state.model, state.task.loss, state.optimizer)
    for _ in range(steps):
        update(state.task.train.inputs, state.task.train.targets)
    state.step += steps
    state.shared.release()


def test_gradient_descent_is_at_minus_one_where_its_sharpness_is_two_over_eta() -> None:
    state, probe = _state(torch.optim.SGD, lr=0.3), Multiplier()
    assert probe(state) == {}
    _train(state, 3)
    hessian = state.shared.hessian(state, None)
    top = float(torch.linalg.eigvalsh(hessian @ torch.eye(hessian.size)).max())
    for group in state.optimizer.param_groups:
        group["lr"] = 2 / top
    found = _numbers(probe(state))
    assert found["edge/multiplier"] == pytest.approx(-1, abs=2e-3)  # H in float32, tolerance 1e-3
    assert found["edge/multiplier_angle"] == 1
    assert found["edge/multiplier_modulus"] == pytest.approx(-found["edge/multiplier"])
    assert found["edge/multiplier_residual"] < 1e-3
    cold = found["edge/multiplier_products"]
    assert 5 < cold < 20
    resumed = Multiplier()
    resumed.load_state_dict(probe.state_dict())
    assert _numbers(resumed(state))["edge/multiplier_products"] <= cold


def test_two_steps_of_an_orbit_are_the_square_where_one_step_is_constant() -> None:
    state, probe = _state(torch.optim.SGD, lr=1e-3), Multiplier(orbit=2, along=5)
    _train(state, 1)
    state.optimizer.param_groups[0]["lr"] = 1e-3
    found = _numbers(probe(state))
    # at a small rate F changes by the rate times the change of H: 1e-3 of 1e-3
    assert found["edge/multiplier_orbit"] == pytest.approx(found["edge/multiplier"], abs=2e-3)
    assert found["edge/multiplier_growth"] == pytest.approx(found["edge/multiplier"], abs=2e-3)


def test_sign_descent_alternates_as_predicted() -> None:
    state, probe = _state(Signum, lr=0.01, momentum=0.0), Multiplier(amplitude=True)
    _train(state, 300)
    found = _numbers(probe(state))
    assert found["edge/multiplier"] == pytest.approx(1)
    weights = sum(p.numel() for p in state.model.parameters())
    assert 0 < found["edge/alternation"] <= 0.005 * weights**0.5 * 1.0001
    # 50 signs have several alternations that stand: 3 % apart at 3,500 weights, here 12 %
    assert found["edge/alternation_predicted"] == pytest.approx(found["edge/alternation"], rel=0.2)


def test_absent_for_mini_batches_and_where_a_step_has_jumps() -> None:
    said: list[str] = []
    state = _state(torch.optim.SGD, full_batch=False, lr=0.1)
    state.say = said.append
    assert Multiplier()(state) == {}
    rough = _state(Staircase, lr=0.01)
    rough.say = said.append
    _train(rough, 3)
    assert Multiplier()(rough) == {}
    assert "same data" in said[0] and "not smooth" in said[1]


def test_of_an_optimizer_without_a_known_edge_and_bit_for_bit_the_same_run(
    optbench: Command,
) -> None:
    common = ("task=digits", "task.train_size=200", "model.widths=[8]", "steps=8", "seed=1")
    of = "optimizer=adan"
    with_it = optbench(*common, of, "probes=multiplier", "probes.multiplier.every=4")
    without = optbench(*common, of)
    ends = [
        torch.load(outcome.folder / "checkpoint.pt", weights_only=True)
        for outcome in (with_it, without)
    ]
    assert '"edge/multiplier":' in (with_it.folder / "metrics.jsonl").read_text()
    weights = [end["model"] for end in ends]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_frozen_layer_is_left_out() -> None:
    state, probe = _state(torch.optim.Adam, lr=1e-2), Multiplier()
    first = next(m for m in state.model.modules() if isinstance(m, nn.Linear))
    first.weight.requires_grad_(False)
    _train(state, 3)
    assert _numbers(probe(state))["edge/multiplier_residual"] < 1e-3
