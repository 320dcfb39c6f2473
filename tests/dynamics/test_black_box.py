"""The black box agrees with the closed forms, and declines what it cannot describe."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import (
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

from optbench.dynamics import Edge, Term, combine
from optbench.dynamics.black_box.probed_edge import black_box
from optbench.dynamics.momentum_filters import first_instability
from tests.dynamics.asked import distance, edge, source

from .frozen import spd, warmed
from .test_edge_torch import CASES, SHAPES, guess, top


def stepped(cls: Callable[..., Optimizer], steps: int = 200, **options: Any) -> Optimizer:
    """An optimizer over two tensors after steps with random gradients."""
    g = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=g).requires_grad_() for s in [(3, 2), (4,)]]
    optimizer = cls(params, **options)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g)
        optimizer.step()
    return optimizer


box: Any = black_box  # of whichever type
AGREE: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1.0}),
    (SGD, {"lr": 0.1, "momentum": 0.7, "dampening": 0.5}),
    (Adam, {"lr": 0.01}),
    (Adam, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 1.0}),
    (AdamW, {"lr": 0.01, "weight_decay": 20.0}),
    (RMSprop, {"lr": 0.01, "momentum": 0.9}),
    (Adamax, {"lr": 0.01}),
    (NAdam, {"lr": 0.01, "momentum_decay": 10.0}),
]


@pytest.mark.parametrize(("cls", "options"), AGREE)
def test_agrees_with_the_closed_form(cls: type[Optimizer], options: dict[str, Any]) -> None:
    optimizer = stepped(cls, **options)
    probed, known = box(optimizer), edge(optimizer)
    assert source(probed) == "probed", probed.reason
    # η T(−1): settled to 1e-3 by construction; in fact to rounding
    assert probed.threshold == pytest.approx(known.threshold, rel=1e-3)
    # P has the next update's bias correction: √((1−.999²⁰¹)/(1−.999²⁰⁰)) − 1 < 3e-3
    for a, b in zip(probed.preconditioner or (), known.preconditioner or (), strict=True):
        torch.testing.assert_close(a, b, rtol=3e-3, atol=0)


# Those that change with time; ε a tenth of the gradients fed; a decay as large as they are.
DECLINED = (
    "nadam",
    "radam",
    "adagrad",
    "adadelta",
    "adafactor",
    "asgd",
    "adam groups",
    "rmsprop groups",
)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_every_closed_form_or_declines_where_it_may(name: str) -> None:
    """All cases of the bisection, groups included; after 400 steps bias correction is small."""
    cls, options, overrides = CASES[name]
    optimizer, _ = warmed(partial(cls, **options), SHAPES, overrides, 400)
    probed, known = box(optimizer), edge(optimizer)
    if source(probed) == "unknown" and name.startswith(DECLINED):
        return
    assert source(probed) == "probed", probed.reason
    hessian = spd(7, seed=0)
    at = guess(known, hessian)
    # P has the next update's bias correction: √((1−.999⁴⁰¹)/(1−.999⁴⁰⁰)) − 1 = 1e-3, and as much of
    # the gradient's
    assert distance(probed, top(probed, at * hessian)) == pytest.approx(1.0, abs=5e-3)


def test_groups_are_probed_one_by_one() -> None:
    p, q = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    groups = [{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.02, "momentum": 0.9}]
    probed, known = (f(SGD(groups, lr=1.0)) for f in (box, edge))
    assert probed.threshold == pytest.approx(known.threshold)
    for a, b in zip(probed.preconditioner or (), known.preconditioner or (), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("cls", "options", "reason"),
    [
        (Adagrad, {"lr": 0.01}, "time-dependent"),
        (NAdam, {"lr": 0.01}, "time-dependent"),
        (RAdam, {"lr": 0.01}, "time-dependent"),
        (Adadelta, {"lr": 1.0}, "time-dependent"),
        (Rprop, {"lr": 0.01}, "not against the gradient"),
        (LBFGS, {"lr": 0.1}, "not against the gradient"),
        (SparseAdam, {"lr": 0.01}, "raised"),
    ],
)
def test_declines_torch_optimizers(
    cls: type[Optimizer], options: dict[str, Any], reason: str
) -> None:
    found = black_box(cls([torch.ones(2, requires_grad=True)], **options))
    assert source(found) == "unknown"
    assert reason in found.reason
    assert "edge.register" in found.reason


class Plain(Optimizer):
    """w ← w − lr · f(g, w, t) for the tests."""

    def __init__(self, params: Any, lr: float = 0.1):
        super().__init__(params, {"lr": lr})

    def update(self, g: Tensor, w: Tensor, t: int) -> Tensor:
        return g

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                t = self.state[p]["step"] = self.state[p].get("step", 0) + 1
                with torch.no_grad():
                    p -= group["lr"] * self.update(p.grad, p, t)


class Sign(Plain):
    def update(self, g: Tensor, w: Tensor, t: int) -> Tensor:
        return g.sign()


class Cubic(Plain):
    def update(self, g: Tensor, w: Tensor, t: int) -> Tensor:
        return g**3


class Decaying(Plain):
    def update(self, g: Tensor, w: Tensor, t: int) -> Tensor:
        scaled: Tensor = g / t**0.5
        return scaled


class Ascent(Plain):
    def update(self, g: Tensor, w: Tensor, t: int) -> Tensor:
        return -g


class Delayed(Plain):
    """Uses the gradient before last: an alternation looks stable, slower oscillations are not."""

    def update(self, g: Tensor, w: Tensor, t: int) -> Tensor:
        past = self.state[w].setdefault("past", [])
        past.append(g.clone())
        return past[-3] if len(past) > 2 else torch.zeros_like(g)


class Needy(Plain):
    def __init__(self, params: Any, forgotten: float):
        super().__init__(params, lr=forgotten)


class Broken(Plain):
    def update(self, g: Tensor, w: Tensor, t: int) -> Tensor:
        raise RuntimeError("out of order")


class Random(Plain):
    def update(self, g: Tensor, w: Tensor, t: int) -> Tensor:
        return g * (1 + torch.rand(()))


class Closure(Plain):
    """Insists on a closure."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is None:
            raise ValueError("closure needed")
        closure()
        super().step()


class Coupled(Plain):
    """A scalar RMSprop over the whole tensor: P is not elementwise."""

    def update(self, g: Tensor, w: Tensor, t: int) -> Tensor:
        nu = 0.99 * self.state[w].get("nu", torch.zeros(())) + 0.01 * (g**2).mean()
        self.state[w]["nu"] = nu
        m = 0.9 * self.state[w].get("m", torch.zeros_like(g)) + 0.1 * g.flip(0)
        self.state[w]["m"] = m
        scaled: Tensor = (m + g) / nu.sqrt()
        return scaled


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Sign, "sign-like"),
        (Cubic, "non-linear"),
        (Decaying, "time-dependent"),
        (Ascent, "not against the gradient"),
        (Delayed, "divergence"),
        (Broken, "out of order"),
        (Random, "time-dependent"),
        (Coupled, "couples"),
    ],
)
def test_declines_what_it_cannot_describe(cls: type[Plain], reason: str) -> None:
    found = black_box(stepped(cls, steps=0 if cls is Broken else 3))
    assert source(found) == "unknown", found
    assert reason in found.reason


def test_a_forgotten_constructor_argument_is_named() -> None:
    found = black_box(Needy([torch.ones(1, requires_grad=True)], 0.1))
    assert "'forgotten'" in found.reason


def test_an_optimizer_that_needs_its_closure_is_probed() -> None:
    found = box(Closure([torch.ones(1, requires_grad=True)], lr=0.1))
    assert found.threshold == pytest.approx(20.0, rel=1e-3)


def test_unknown_optimizers_reach_the_black_box_and_a_rule_replaces_it() -> None:
    class Mine(Plain):
        pass

    optimizer = Mine([torch.ones(2, requires_grad=True)], lr=0.5)
    assert source(edge(optimizer)) == "probed"
    assert edge(optimizer).threshold == pytest.approx(4.0, rel=1e-3)

    @edge.register(Mine)  # type: ignore[untyped-decorator]
    def _(optimizer: Mine) -> Edge:
        group = optimizer.param_groups[0]
        return combine([Term(p, lr=group["lr"]) for p in group["params"]], "2/η")

    assert source(edge(optimizer)) == "closed form"
    assert edge(optimizer).threshold == 4.0


def test_a_subclass_with_its_own_step_is_not_taken_for_its_parent() -> None:
    class Halved(SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    with torch.no_grad():
                        p -= 0.5 * group["lr"] * p.grad

    found = edge(Halved([torch.ones(1, requires_grad=True)], lr=0.1))
    assert source(found) == "probed"
    assert found.threshold == pytest.approx(40.0, rel=1e-3)


def test_nothing_of_the_user_changes() -> None:
    for optimizer in (stepped(Adam, lr=0.01), stepped(SGD, lr=0.1, momentum=0.9)):
        params = [p for g in optimizer.param_groups for p in g["params"]]
        before = copy.deepcopy((optimizer.state_dict(), params, [p.grad for p in params]))
        random = torch.random.get_rng_state()
        black_box(optimizer)
        edge(optimizer)
        after = (optimizer.state_dict(), params, [p.grad for p in params])
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert torch.equal(random, torch.random.get_rng_state())


def test_first_instability_of_known_filters() -> None:
    beta = 0.9
    ema = (1 - beta) * beta ** torch.arange(400, dtype=torch.float64)
    a, theta = first_instability(ema.numpy())
    assert a == pytest.approx(38.0, rel=1e-6)
    assert theta == pytest.approx(torch.pi)
    # w_{t+1} = w_t − a w_{t−1}: roots of z² − z + a leave the circle at a = 1, θ = π/3
    a, theta = first_instability([0.0, 1.0] + [0.0] * 398)
    assert a == pytest.approx(1.0, rel=1e-2)
    assert theta == pytest.approx(torch.pi / 3, rel=1e-2)
