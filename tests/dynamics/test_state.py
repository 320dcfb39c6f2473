"""State that a class keeps in its groups or on itself is not taken for hyperparameters."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from optbench.dynamics.black_box import probed_edge as box
from optbench.dynamics.black_box.scalar_gain import Gain, probe
from tests.dynamics.asked import distance, edge, sam_edge, source

from .frozen import Frozen, spd, warmed
from .imitations import (
    AddsKeys,
    CountsOnItself,
    InAClosure,
    InAFunction,
    KeepsBuffersOnItself,
    OtherName,
    WarmsUp,
    grows,
    stepped,
    weights,
)
from .test_edge_torch import guess, top

black_box = box.black_box


@pytest.mark.parametrize(
    ("cls", "threshold"),
    [(AddsKeys, 38_000), (CountsOnItself, 38_000), (KeepsBuffersOnItself, 2 * 1.9 / 1e-3)],
)
def test_state_that_a_step_adds_starts_anew_in_copies(cls: Any, threshold: float) -> None:
    here = edge(stepped(cls(weights(), lr=1e-3)))
    assert source(here) == "probed", here.reason
    assert here.threshold == pytest.approx(threshold, rel=1e-3)


@pytest.mark.parametrize("cls", [AddsKeys, CountsOnItself])
def test_p_of_such_a_class_is_where_stability_is_lost(cls: Any) -> None:
    optimizer, params = warmed(partial(cls, lr=0.01), [(2, 3), (3,)], [{"lr": 0.03}], 400)
    here = edge(optimizer)
    assert source(here) == "probed", here.reason
    hessian = spd(9, seed=0)
    if cls is AddsKeys:  # the other counts where Frozen does not rewind
        found = Frozen(optimizer, params).critical(hessian, guess(here, hessian))
        assert distance(here, top(here, found * hessian)) == pytest.approx(1.0, abs=5e-3)
    adam, _ = warmed(
        partial(Adam, lr=0.01, betas=(0.9, 0.99), eps=1e-6), [(2, 3), (3,)], [{"lr": 0.03}], 400
    )
    ratio = top(here, hessian) / here.threshold / (top(edge(adam), hessian) / edge(adam).threshold)
    # a step count of its own for every parameter, or one for the group: no bias is left after 400
    assert ratio == pytest.approx(1.0, rel=1e-2)


def test_a_buffer_on_the_optimizer_is_where_stability_is_lost() -> None:
    threshold = edge(stepped(KeepsBuffersOnItself(weights(), 0.1))).threshold
    make = partial(KeepsBuffersOnItself, lr=0.1)
    assert not grows(make, 0.99 * threshold) and grows(make, 1.01 * threshold)


@pytest.mark.parametrize("make", [AddsKeys, CountsOnItself, partial(SGD, momentum=0.9)])
def test_nothing_is_probed_twice_at_the_same_hyperparameters(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = []

    def counted(optimizer: Optimizer, group: dict[str, Any]) -> Gain:
        probed.append(group)
        return probe(optimizer, group)

    monkeypatch.setattr(box, "probe", counted)
    optimizer = make(weights(), lr=1e-3)
    for _ in range(3):
        black_box(stepped(optimizer, 2))
    assert len(probed) == 1
    optimizer.param_groups[0]["lr"] *= 1.000001
    black_box(optimizer)
    assert len(probed) == 2


@pytest.mark.parametrize("cls", [OtherName, InAFunction, InAClosure])
@pytest.mark.parametrize("doubled", [False, True])
def test_the_black_box_copies_a_flag_wherever_it_is_kept(cls: Any, doubled: bool) -> None:
    make = partial(cls, lr=0.05, doubled=doubled)
    here = edge(stepped(make(weights())))
    assert here.threshold == pytest.approx(20 if doubled else 40, rel=1e-3), here.reason
    assert not grows(make, 0.99 * here.threshold) and grows(make, 1.01 * here.threshold)


def test_a_step_size_that_its_state_decides_is_unknown_until_it_has_settled() -> None:
    optimizer = stepped(WarmsUp(weights(), lr=0.05), 50)
    here = edge(optimizer)
    assert source(here) == "unknown" and "its state is part of the rule" in here.reason
    assert edge(stepped(optimizer, 100)).threshold == pytest.approx(40, rel=1e-3)


OPTIMI: list[tuple[str, dict[str, Any], float]] = [
    ("SGD", {"lr": 0.05}, 40),
    ("SGD", {"lr": 0.05, "momentum": 0.9}, 76),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": True}, 760),
    ("SGD", {"lr": 0.05, "weight_decay": 0.01, "decouple_lr": True}, 1.99 / 0.05),
    ("SGD", {"lr": 0.05, "kahan_sum": True}, 40),
    ("Adam", {"lr": 1e-3}, 38_000),
    ("Adam", {"lr": 1e-3, "betas": (0.8, 0.95)}, 18_000),
    ("AdamW", {"lr": 1e-3, "decouple_lr": True, "weight_decay": 1e-3}, 38_000 * 0.9995),
    ("RAdam", {"lr": 1e-3}, 38_000),
    ("StableAdamW", {"lr": 1e-3}, 38_000),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "options", "threshold"), OPTIMI)
def test_torch_optimi(name: str, options: dict[str, Any], threshold: float) -> None:
    make = partial(getattr(pytest.importorskip("optimi"), name), **options)
    here = edge(stepped(make(weights())))
    assert source(here) == "probed", here.reason
    assert here.threshold == pytest.approx(threshold, rel=1e-4)
    if here.plain:
        assert not grows(make, 0.99 * threshold) and grows(make, 1.01 * threshold)


def test_attributes_come_back_as_they_were() -> None:
    optimizer = stepped(CountsOnItself(weights(), 1e-3))
    held: list[Tensor] = optimizer.param_groups[0]["params"]
    before = optimizer.rounds, [p.detach().clone() for p in held]  # type: ignore[attr-defined]
    edge(optimizer)
    assert optimizer.rounds == before[0]  # type: ignore[attr-defined]
    assert all(torch.equal(p, q) for p, q in zip(held, before[1], strict=True))


@pytest.mark.parametrize("cls", [AddsKeys, OtherName])
def test_where_a_number_is_from_is_said_by_the_source_alone(cls: Any) -> None:
    here = edge(stepped(cls(weights(), lr=1e-3)))
    assert source(here) == "probed" and here.formula == f"{here.threshold:.4g}"
    assert "probed" not in sam_edge(here, 0.1).formula
