"""Until when P has averaged too few gradients: closed forms of the distance, and who counts what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Muon, NAdam, Optimizer, RAdam, RMSprop

from optbench.dynamics.settling import LEAST, Unsettled, memory, unsettled
from optbench.optimizers.by_shape import ByShape
from optbench.optimizers.sam import SAM
from tests.dynamics.asked import distance, edge, reordered, source

from .test_edge_torch import top


def fed(optimizer: Optimizer, steps: int, *params: Tensor) -> None:
    """Steps with the gradient (1, 2, …) of every tensor given; the others have none."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        for p in params:
            p.grad = torch.arange(1.0, p.numel() + 1, dtype=p.dtype).reshape(p.shape)
        return torch.zeros(())

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]


def lacks(optimizer: Optimizer, updates: int = 0, batches: float = 1.0) -> Unsettled | None:
    return unsettled(edge(optimizer), optimizer, updates, batches)


@pytest.mark.parametrize(
    ("cls", "options", "shortfall"),
    [
        (Adam, {}, lambda t: 1 - 0.9**t),  # the first moment's bias correction
        (RMSprop, {"alpha": 0.99}, lambda t: (1 - 0.99**t) ** 0.5),  # the second moment has none
    ],
)
def test_the_distance_on_a_diagonal_quadratic_is_that_of_the_settled_p_over_a_known_function_of_t(
    cls: Any, options: dict[str, Any], shortfall: Callable[[int], float]
) -> None:
    """Far from the minimum the gradient g of ½wᵀdiag(h)w stands still, so that P is |g| times a shortfall."""
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    lr, h = 1e-9, torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64)
    optimizer = cls([w], lr=lr, eps=0.0, **options)
    settled = 2.5 * lr / (38 if cls is Adam else 2)  # λ₁(P⁻¹H) = max h/|g| = 5/2
    for t in range(1, 61):
        fed(optimizer, 1, w)
        here = edge(optimizer)
        assert distance(here, top(here, torch.diag(h))) == pytest.approx(
            settled / shortfall(t), rel=1e-9
        )
        assert (lacks(optimizer) is None) == (t >= 20)
    # what Adam's edge is off by when it is first given: 1/(1−.9²⁰) = 1.14, where the first step's
    # was 10
    assert cls is not Adam or 1 / shortfall(20) < 1.2


@pytest.mark.parametrize(
    ("cls", "options", "batches", "needed"),
    [
        (Adam, {}, 1.0, 20),
        (Adam, {"betas": (0.98, 0.999)}, 1.0, 100),  # 2/(1−.98)
        (Adam, {"betas": (0.0, 0.999)}, 1.0, 20),
        (Adam, {}, 125.0, 250),  # 1,000 examples in batches of 8, twice
        (NAdam, {"betas": (0.95, 0.999)}, 1.0, 40),
        (RAdam, {}, 1.0, 20),  # without a P in its first steps, and then with a new one
        (RMSprop, {"momentum": 0.95}, 1.0, 40),
        (Adagrad, {}, 1.0, 20),
    ],
)
def test_what_is_needed(cls: Any, options: dict[str, Any], batches: float, needed: int) -> None:
    w = torch.zeros(3, requires_grad=True)
    optimizer = cls([w], lr=1e-3, **options)
    for t in range(1, needed):
        fed(optimizer, 1, w)
        assert lacks(optimizer, batches=batches) == Unsettled(t, needed)
        assert lacks(optimizer, batches=batches).left == needed - t  # type: ignore[union-attr]
    fed(optimizer, 1, w)
    assert lacks(optimizer, batches=batches) is None


def test_what_learns_no_p_is_always_settled() -> None:
    w, v = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
    momentum = SGD([w, v], lr=0.1, momentum=0.9)
    unequal: list[dict[str, Any]] = [{"params": [w]}, {"params": [v], "lr": 0.5}]
    groups = SGD(unequal, lr=0.1)
    for optimizer in (momentum, groups, Muon([w], lr=0.1), SAM([w, v], lambda p: SGD(p, 0.1))):
        fed(optimizer, 1, w, v)
        assert lacks(optimizer) is None
    extra = reordered(edge(momentum), [v, torch.ones(1, requires_grad=True), w])
    assert extra.preconditioner is not None and extra.learns == (False, False, False)


def test_a_tensor_counts_from_its_own_first_gradient_and_not_if_it_does_not_move() -> None:
    early, late = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = Adam([{"params": [early]}, {"params": [late]}], lr=1e-3)
    fed(optimizer, 50, early)
    assert lacks(optimizer) is None
    fed(optimizer, 5, early, late)
    assert lacks(optimizer) == Unsettled(5, 20)
    assert unsettled(reordered(edge(optimizer), [late, early]), optimizer, 0) == Unsettled(5, 20)
    optimizer.param_groups[1]["lr"] = 0.0
    assert lacks(optimizer) is None


def test_wrappers_and_parts_are_looked_through() -> None:
    net = nn.Linear(3, 2)
    params = list(net.parameters())
    sam = SAM(params, lambda q: Adam(q, 1e-2, betas=(0.95, 0.999)), 0.05)
    fed(sam, 30, *params)
    assert lacks(sam) == Unsettled(30, 40)
    views = [nn.Parameter(torch.ones(2, 3, 2, 2)), nn.Parameter(torch.ones(2))]
    both = ByShape(views, lambda q: Adam(q, 1e-2), lambda q: SGD(q, 0.1))
    fed(both, 19, *views)
    assert lacks(both, updates=1000) == Unsettled(19, 20)  # of the matrix view, which Adam holds
    fed(both, 1, *views)
    assert lacks(both) is None


class Uncounted(Optimizer):
    """RMSprop without a count, which nobody described."""

    def __init__(self, params: Any, lr: float, decay: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    nu = self.state[p].setdefault("nu", torch.zeros_like(p))
                    nu.mul_(group["decay"]).addcmul_(p.grad, p.grad, value=1 - group["decay"])
                    p.sub_(group["lr"] * p.grad / (nu.sqrt() + 1e-8))


def test_a_probed_edge_settles_too_by_the_updates_done_where_the_optimizer_does_not_count() -> None:
    w = torch.zeros(3, requires_grad=True)
    optimizer = Uncounted([w], lr=1e-3)
    fed(optimizer, 3, w)
    assert source(edge(optimizer)) == "probed"
    assert lacks(optimizer, updates=3) == Unsettled(3, LEAST)
    assert lacks(optimizer, updates=20) is None


def test_memory_is_that_of_what_a_group_calls_its_momentum() -> None:
    assert memory({"betas": (0.9, 0.999), "momentum": 0.5}) == pytest.approx(10)
    assert memory({"betas": (torch.tensor(0.75), 0.9)}) == pytest.approx(4)
    assert memory({"momentum": 0.5}) == 2
    assert (
        memory({"lr": 0.1})
        == memory({"momentum": 0})
        == memory({"momentum": 1.0})
        == memory({"betas": ()})
        == 1
    )
