"""What `edge` says beyond the threshold: groups, schedules, order, reasons."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import ASGD, LBFGS, SGD, Adam, AdamW, Muon, NAdam, Optimizer, RAdam, Rprop
from torch.optim.lr_scheduler import StepLR

from optbench.dynamics import GradientEdge, NormBallEdge
from tests.dynamics.asked import distance, edge, reordered, source

from .frozen import spd
from .test_edge_torch import top


def made(cls: Any, steps: int = 3, **options: Any) -> Optimizer:
    g = torch.Generator().manual_seed(0)
    p = torch.randn(4, generator=g).requires_grad_()
    optimizer: Optimizer = cls([p], **options)
    for _ in range(steps):
        p.grad = torch.randn(4, generator=g)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("cls", "options", "threshold"),
    [
        (SGD, {"lr": 0.1}, 20.0),
        (SGD, {"lr": 0.1, "momentum": 0.9}, 38.0),
        (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, 3.8 / 2.8 * 10),
        (SGD, {"lr": 0.1, "weight_decay": 5.0}, 15.0),
        (Adam, {"lr": 0.01}, 3800.0),
        (AdamW, {"lr": 0.01, "weight_decay": 0.1}, 19 * (200 - 0.1)),
        (RAdam, {"lr": 0.01, "betas": (0.9, 0.999)}, 3800 * (1 - 0.9**3)),  # not yet rectified
        (ASGD, {"lr": 0.1, "lambd": 0.0}, 20.0),
    ],
)
def test_textbook_numbers(cls: Any, options: dict[str, Any], threshold: float) -> None:
    assert edge(made(cls, **options)).threshold == pytest.approx(threshold, rel=1e-6)


def test_plain_edges_are_on_the_hessian_itself() -> None:
    def product(v: Tensor) -> Tensor:
        return v

    e = edge(made(SGD, lr=0.1, momentum=0.9, weight_decay=1.0))
    assert e.plain
    assert e.operator(product) is product
    assert not edge(made(Adam, lr=0.1)).plain


def test_adam_preconditioner_is_the_last_updates() -> None:
    optimizer = made(Adam, lr=0.01)
    (p,) = optimizer.param_groups[0]["params"]
    state = optimizer.state[p]
    expected = (1 - 0.9**3) * ((state["exp_avg_sq"] / (1 - 0.999**3)).sqrt() + 1e-8)
    (found,) = edge(optimizer).preconditioner
    torch.testing.assert_close(found, expected)
    # the update it makes: −lr m / P for the state's m
    before = p.detach().clone()
    p.grad = torch.zeros(4)
    optimizer.step()
    after = edge(optimizer).preconditioner
    torch.testing.assert_close(before - p.detach(), 0.01 * state["exp_avg"] / after[0])


def test_a_schedule_acts_at_once() -> None:
    optimizer = made(SGD, lr=0.1)
    schedule = StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    schedule.step()
    assert edge(optimizer).threshold == pytest.approx(40.0)


def test_tensor_learning_rates_are_read() -> None:
    assert edge(made(Adam, lr=torch.tensor(0.01))).threshold == pytest.approx(3800.0)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (made(Adam, steps=0, lr=0.1), "no step taken yet"),
        (made(SGD, lr=0.1, maximize=True), "maximize"),
        (made(Rprop, lr=0.1), "Rprop"),
        (LBFGS([torch.ones(2, requires_grad=True)]), "L-BFGS"),
        (made(SGD, lr=0.1, momentum=1.0), "momentum=1"),
        (made(SGD, lr=0.1, weight_decay=30.0), "weight_decay=30"),
        (made(AdamW, lr=0.1, weight_decay=30.0), "decoupled decay"),
        (SGD([torch.ones(2, dtype=torch.complex64, requires_grad=True)], lr=0.1), "complex"),
    ],
)
def test_unknown_edges_say_why(optimizer: Optimizer, reason: str) -> None:
    e = edge(optimizer)
    assert source(e) == "unknown"
    assert reason in e.reason


def test_a_zero_learning_rate_never_diverges() -> None:
    assert edge(made(SGD, lr=0.0)).threshold == math.inf


def test_a_group_without_gradients_does_not_move() -> None:
    p, q = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = Adam([p, q], lr=0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    e = edge(optimizer)
    assert e.preconditioner is not None
    assert bool(e.preconditioner[1].isinf().all())
    assert torch.equal(e.inverse_sqrt(torch.ones(3))[2:], torch.zeros(1))


def test_groups_are_exact_not_averaged() -> None:
    p, q = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    e = edge(SGD([{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.4}]))
    # w ← w − diag(.1, .4) H w is at its edge with λ₁(diag(.1, .4) H) = 2
    hessian = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    rates = torch.diag(torch.tensor([0.1, 0.4], dtype=torch.float64))
    exact = float(torch.linalg.eigvals(rates @ hessian).real.max()) / 2
    assert distance(e, top(e, hessian)) == pytest.approx(exact, rel=1e-6)


def test_reordering_moves_everything_along() -> None:
    g = torch.Generator().manual_seed(0)
    p, q, r = (torch.randn(n, generator=g).requires_grad_() for n in (2, 3, 1))
    groups = [{"params": [q], "lr": 0.1, "weight_decay": 1.0}, {"params": [p], "lr": 0.3}]
    e = edge(SGD(groups))
    model_order = reordered(e, [p, q, r])
    hessian = spd(6, seed=1)
    moved = top(model_order, hessian)
    swap = torch.tensor([2, 3, 4, 0, 1])  # q then p, as positions in p, q, r
    assert moved == pytest.approx(top(e, hessian[swap][:, swap]), rel=1e-6)
    with pytest.raises(ValueError, match="pass every trainable parameter"):
        reordered(e, [p])
    same = edge(SGD([p, q], lr=0.1))
    assert reordered(same, [q, p]).plain


def test_blocks_of_vectors_go_through_as_well() -> None:
    e = edge(made(Adam, lr=0.1))
    block = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    columns = torch.stack([e.inverse_sqrt(column) for column in block.T], dim=1)
    torch.testing.assert_close(e.inverse_sqrt(block), columns)


def test_edge_only_reads() -> None:
    for optimizer in (made(Adam, lr=0.1, amsgrad=True), made(NAdam, lr=0.1)):
        before = copy.deepcopy((optimizer.state_dict(), optimizer.param_groups))
        edge(optimizer)
        assert str(before) == str((optimizer.state_dict(), optimizer.param_groups))


def test_muon_is_a_conjecture_with_momentum_only() -> None:
    def muon(momentum: float) -> Any:
        p = torch.ones(4, 3, requires_grad=True)
        return edge(Muon([p], lr=0.1, momentum=momentum, weight_decay=0.0))

    assert source(muon(0.9)) == "conjecture"
    e = muon(0.0)
    assert source(e) == "closed form"
    assert isinstance(e, GradientEdge)
    gradient = torch.randn(12, generator=torch.Generator().manual_seed(0))
    nuclear = float(torch.linalg.svdvals(gradient.reshape(4, 3)).sum())
    known = e.at(gradient)
    assert isinstance(known, NormBallEdge) and known.norm == "spectral"
    assert known.radii == pytest.approx((math.sqrt(4 / 3),))
    assert known.threshold == pytest.approx(2 * math.sqrt(4 / 3) * nuclear / 0.1)
    with pytest.raises(ValueError, match="one flat vector"):
        e.at(gradient[:3])


@pytest.mark.parametrize("what", ["adam", None, SGD])
def test_what_is_no_optimizer_is_refused(what: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a torch\.optim\.Optimizer, got"):
        edge(what)
