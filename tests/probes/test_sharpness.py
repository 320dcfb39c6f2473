import pytest
import torch
from torch import nn

from optbench.curvature import Hessian, top_eigenpairs
from optbench.errors import UserError
from optbench.probes import State
from optbench.probes.sharpness import Sharpness
from optbench.task import Split, Task, half_mse


def _state(dtype: torch.dtype = torch.float64, step: int = 0) -> State:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(30, n, generator=generator, dtype=dtype) for n in (4, 2))
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 2)).to(dtype)
    task = Task(Split(x, y), None, None, 2, half_mse)
    said: list[str] = []
    return State(
        step, 100, task, net, torch.optim.SGD(net.parameters(), 0.1), True, 1, 0, say=said.append
    )


def _dense(state: State, examples: int) -> torch.Tensor:
    """All eigenvalues of the float64 Hessian, descending."""
    names = [name for name, _ in state.model.named_parameters()]
    shapes = [p.shape for p in state.model.parameters()]
    split = state.task.train.first(examples)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split([shape.numel() for shape in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        return half_mse(
            torch.func.functional_call(state.model, weights, (split.inputs,)), split.targets
        )

    flat = torch.cat([p.detach().flatten() for p in state.model.parameters()])
    values: torch.Tensor = torch.linalg.eigvalsh(
        torch.autograd.functional.hessian(loss, flat)
    ).flip(0)
    return values


@pytest.mark.parametrize("examples", [30, 10])
def test_eigenvalues_are_those_of_the_dense_hessian_within_the_bound_reported(
    examples: int,
) -> None:
    state = _state()
    found = Sharpness(k=3, accuracy=1e-8, examples=examples)(state)
    truth = _dense(state, examples)
    error = float(truth[0]) - float(found["sharpness/lambda_max"])  # type: ignore[arg-type]
    assert -1e-14 < error <= found["sharpness/lambda_max_bound"]  # type: ignore[operator]
    for i in (1, 2):  # accuracy 1e-8 of λ₁ for each
        assert found[f"sharpness/lambda_{i + 1}"] == pytest.approx(
            float(truth[i]), abs=1e-8 * float(truth[0])
        )


def test_a_resumed_probe_goes_on_bit_for_bit_and_a_warm_start_is_cheaper() -> None:
    one, other = Sharpness(audit_every=100), Sharpness(audit_every=100)
    cold = one(_state())
    other.load_state_dict(one.state_dict())
    state = _state(step=10)
    with torch.no_grad():
        for p in state.model.parameters():
            p.mul_(1.001)
    first, second = one(state), other(state)
    assert {k: v for k, v in first.items() if "seconds" not in k} == {
        k: v for k, v in second.items() if "seconds" not in k
    }
    assert first["sharpness/hvps"] < cold["sharpness/hvps"]  # type: ignore[operator]


def test_the_audit_finds_what_tracking_lost() -> None:
    state = _state()
    probe = Sharpness(audit_every=1)
    truth = _dense(state, 30)
    # Start in an invariant subspace without the top eigenvector: no residual shows what is missing.
    lost = Sharpness(audit_every=100)
    names = [p.numel() for p in state.model.parameters()]
    basis = torch.linalg.eigh(_hessian(state, sum(names)))[1].flip(1)[:, 1:4]
    with Hessian(state.model, half_mse, (state.task.train.inputs, state.task.train.targets)) as H:
        pairs = top_eigenpairs(H, start=basis, guards=2)
    for each in (probe, lost):
        each.load_state_dict(
            each.state_dict() | {"tracker": {"count": 0, "since": 3, "pairs": vars(pairs)}}
        )
    assert lost(state)["sharpness/lambda_max"] == pytest.approx(float(truth[1]), rel=1e-6)
    found = probe(state)
    assert found["sharpness/lambda_max"] == pytest.approx(float(truth[0]), rel=5e-3)


def _hessian(state: State, P: int) -> torch.Tensor:
    H = Hessian(state.model, half_mse, (state.task.train.inputs, state.task.train.targets))
    return H @ torch.eye(P, dtype=torch.float64)


def test_it_leaves_the_model_as_it_was() -> None:
    state = _state(torch.float32)
    for p in state.model.parameters():
        p.grad = torch.ones_like(p)
    before = {name: t.clone() for name, t in state.model.state_dict().items()}
    random = torch.get_rng_state()
    Sharpness(audit_every=1)(state)
    assert all(torch.equal(t, before[name]) for name, t in state.model.state_dict().items())
    assert all(
        p.grad is not None and torch.equal(p.grad, torch.ones_like(p))
        for p in state.model.parameters()
    )
    assert torch.equal(random, torch.get_rng_state())


def test_the_adaptive_cadence_speeds_up_while_sharpness_moves_and_slows_down_else() -> None:
    probe, state = Sharpness(every="adaptive", longest=40, share=100), _state()
    state.steps = 1000
    probe(state)
    assert probe.next_step == 11
    intervals = []
    for moved in (False, False, False, True, True):
        state.step = probe.next_step
        if moved:
            with torch.no_grad():
                for p in state.model.parameters():
                    p.mul_(1.2)
        probe(state)
        intervals.append(probe.next_step - state.step)
    assert intervals == [23, 41, 41, 21, 11]


def test_between_solves_a_product_or_two_are_enough_until_the_hessian_has_changed_too_much() -> (
    None
):
    state = _state()
    probe, every = Sharpness(), Sharpness(solve_every=1)
    assert probe(state)["sharpness/solved"] == 1
    every(state)
    # the fourth is due
    for scale, solved in ((1.002, 0), (1.002, 0), (1.002, 0), (1.002, 1), (1.002, 0), (1.5, 1)):
        with torch.no_grad():
            for p in state.model.parameters():
                p.mul_(scale)
        found, truth = probe(state), float(_dense(state, 30)[0])
        assert found["sharpness/solved"] == solved
        assert (found["sharpness/hvps"] <= 2) == (solved == 0)  # type: ignore[operator]
        value, bound = found["sharpness/lambda_max"], found["sharpness/lambda_max_bound"]
        assert value <= truth + 1e-12 and truth <= value + bound  # type: ignore[operator]
        assert bound <= 5e-3 * truth  # type: ignore[operator]
        assert every(state)["sharpness/solved"] == 1
    with pytest.raises(
        UserError, match=r"sharpness.solve_every must be a whole number, at least 1, got 0"
    ):
        Sharpness(solve_every=0)


def test_pyhessian_as_the_engine_gives_its_numbers_with_their_residual() -> None:
    state = _state()
    found = Sharpness(engine="pyhessian")(state)
    truth = _dense(state, 30)
    distance = float((truth - float(found["sharpness/lambda_max"])).abs().min())  # type: ignore[arg-type]
    assert distance <= found["sharpness/lambda_max_bound"]  # type: ignore[operator]
    assert state.model.training and all(p.grad is None for p in state.model.parameters())
