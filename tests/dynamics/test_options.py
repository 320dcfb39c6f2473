"""An option, a method or a hook that a rule has not understood is not passed over."""

from __future__ import annotations

import sys
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR

from optbench.dynamics import Edge, Term, combine
from optbench.dynamics.dispatch import closed_form
from tests.dynamics.asked import edge, source

from .imitations import (
    AddsKeys,
    CautiousLion,
    Lion,
    OtherName,
    RenamedLion,
    clipped,
    stepped,
    weights,
)


def _at_four(optimizer: Optimizer) -> float:
    """The threshold where ⟨g, s⟩ = ‖g‖₁ = 4, after a step along g."""
    (p,) = optimizer.param_groups[0]["params"]
    p.grad = torch.ones(4)
    optimizer.step()
    return float(edge(optimizer).at(torch.ones(4)).threshold)


@pytest.fixture
def lion_pytorch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Exports an imitation under the package's name."""

    def export(cls: type[Optimizer]) -> type[Optimizer]:
        package = ModuleType("lion_pytorch")
        renamed = type("Lion", (cls,), {"__module__": "lion_pytorch", "__init__": cls.__init__})
        package.Lion = renamed  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "lion_pytorch", package)
        return renamed

    return export


@pytest.mark.parametrize(("decoupled", "threshold"), [(False, 7999.6), (True, 7600.0)])
def test_lion_decays_as_its_flag_says(decoupled: bool, threshold: float, lion_pytorch: Any) -> None:
    lion = lion_pytorch(Lion)
    options = {"lr": 1e-3, "weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    optimizer = lion([torch.zeros(4, requires_grad=True)], **options)
    assert _at_four(optimizer) == pytest.approx(threshold, rel=1e-9)
    optimizer.param_groups[0]["lr"] = 2.5e-4
    # (2 − ηλ)·4/η, and (2 − λη/η₀)·4/η with η/η₀ = ¼
    assert _at_four(optimizer) == pytest.approx(31_600 if decoupled else 31_999.6, rel=1e-9)


def test_the_real_lion_decays_so_as_well() -> None:
    real = pytest.importorskip("lion_pytorch").Lion
    optimizer = real(
        [torch.zeros(4, requires_grad=True)], lr=1e-3, weight_decay=0.1, decoupled_weight_decay=True
    )
    assert _at_four(optimizer) == pytest.approx(7600, rel=1e-9)


@pytest.mark.parametrize(
    ("cls", "options", "told"),
    [
        (CautiousLion, {}, "cautious_factor=0.0"),
        (CautiousLion, {"cautious_factor": 0.5}, "cautious_factor=0.5"),
        (RenamedLion, {"decoupled_weight_decay": True}, "does not fit this version"),
        (RenamedLion, {}, "does not fit this version"),
    ],
)
def test_a_version_that_the_rule_does_not_know_goes_to_the_black_box(
    cls: Any, options: dict[str, Any], told: str, lion_pytorch: Any
) -> None:
    here = edge(
        stepped(lion_pytorch(cls)([torch.zeros(4, requires_grad=True)], lr=1e-3, **options))
    )
    assert source(here) == "unknown" and told in here.reason


def test_an_option_that_does_nothing_leaves_the_rule(lion_pytorch: Any) -> None:
    lion = lion_pytorch(CautiousLion)
    assert (
        _at_four(lion([torch.zeros(4, requires_grad=True)], lr=1e-3, cautious_factor=1.0)) == 8000
    )


@pytest.mark.parametrize("name", ["cautious", "use_gc", "adanorm", "anything"])
def test_what_pytorch_optimizer_takes_through_kwargs_is_not_overlooked(name: str) -> None:
    lion = pytest.importorskip("pytorch_optimizer").Lion
    for optimizer in (
        lion(weights(), lr=1e-3, **{name: True}),
        lion([{"params": weights(), name: True}], lr=1e-3),
    ):
        here = edge(stepped(optimizer))
        assert source(here) == "unknown" and f"{name}=True" in here.reason
    assert source(edge(stepped(lion(weights(), lr=1e-3, **{name: False})))) == "conjecture"
    scheduled = lion(weights(), lr=1e-3)
    StepLR(scheduled, 1)
    assert source(edge(stepped(scheduled))) == "conjecture"


class Flagged(SGD):
    """SGD of a torch to come: one more option, which a helper reads."""

    def __init__(
        self, params: Any, lr: float, centralize: bool = False, foreach: bool | None = None
    ) -> None:
        super().__init__(params, lr, foreach=foreach)
        for group in self.param_groups:
            group["centralize"] = centralize


class Unkept(SGD):
    def __init__(self, params: Any, lr: float, centralize: bool = False) -> None:
        super().__init__(params, lr)


class ThroughKwargs(SGD):
    def __init__(self, params: Any, **options: Any) -> None:
        self.centralize = options.pop("centralize", False)
        super().__init__(params, **options)


@pytest.mark.parametrize(
    ("cls", "options", "expected"),
    [
        (Flagged, {}, "closed form"),
        (Flagged, {"foreach": True}, "closed form"),
        (Flagged, {"centralize": True}, "probed"),
        (Unkept, {}, "probed"),
        (ThroughKwargs, {}, "closed form"),
        (ThroughKwargs, {"centralize": True}, "probed"),
    ],
)
def test_a_subclass_of_torchs_with_another_option(
    cls: Any, options: dict[str, Any], expected: str
) -> None:
    here = edge(stepped(cls(weights(), lr=0.05, **options)))
    assert source(here) == expected and here.threshold == pytest.approx(40, rel=1e-3)
    assert ("centralize" in here.reason) == (expected == "probed")


def test_a_rule_of_ones_own_says_what_it_has_understood() -> None:
    class Mine(OtherName):
        pass

    @closed_form(Mine, understood=("lr",), off={"factor": 1.0})
    def _mine(optimizer: Mine) -> Edge:
        return combine(
            [Term(p, lr=g["lr"]) for g in optimizer.param_groups for p in g["params"]], "2/η"
        )

    here = edge(stepped(Mine(weights(), lr=0.05, doubled=True)))
    assert source(here) == "probed" and here.threshold == pytest.approx(20, rel=1e-3)


class HelperOfItsOwn(Adam):
    """Half the step, by a method that Adam's step calls."""

    def _init_group(self, group: Any, params: Any, grads: Any, *lists: Any) -> Any:
        found = super()._init_group(group, params, grads, *lists)  # type: ignore[no-untyped-call]
        grads[:] = [g.sign() for g in grads]
        return found


class LooksLikeAdam(Adam):
    step = clipped(Adam.step)


@pytest.mark.parametrize(
    ("cls", "method"), [(HelperOfItsOwn, "_init_group"), (LooksLikeAdam, "step")]
)
def test_a_subclass_with_a_method_of_its_own_is_another_optimizer(cls: Any, method: str) -> None:
    here = edge(stepped(cls(weights(), lr=1e-3)))
    assert source(here) != "closed form" and f"has a {method} of its own" in here.reason


def _patched(self: SGD, closure: Any = None) -> None:
    for p in (p for group in self.param_groups for p in group["params"]):
        p.data -= 3 * p.grad


@pytest.mark.parametrize("cls", [SGD, AddsKeys])
def test_a_method_replaced_on_one_optimizer_is_seen(cls: Any) -> None:
    optimizer = cls(weights(), lr=0.05)
    optimizer.step = MethodType(_patched, optimizer)
    here = edge(optimizer)
    assert source(here) == "unknown" and "step was replaced on this" in here.reason


@pytest.mark.parametrize(("cls", "expected"), [(SGD, "closed form"), (AddsKeys, "probed")])
def test_torchs_schedules_replace_step_and_change_nothing(cls: Any, expected: str) -> None:
    optimizer = cls(weights(), lr=0.05)
    StepLR(optimizer, 1)
    assert "step" in vars(optimizer)
    assert source(edge(stepped(optimizer))) == expected


@pytest.mark.parametrize("cls", [SGD, AddsKeys, Lion])
def test_hooks_are_mentioned(cls: Any) -> None:
    optimizer = stepped(cls(weights(), lr=0.05))
    assert "hooks" not in edge(optimizer).reason

    def halve(*_: Any) -> None: ...

    optimizer.register_step_pre_hook(halve)
    here = edge(optimizer)
    assert (
        source(here) == "unknown"
        or "its step hooks (halve) are taken to change neither" in here.reason
    )


class Wraps(Optimizer):
    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        super().__init__([p for g in optimizer.param_groups for p in g["params"]], {})
        self.param_groups = optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)


def test_a_wrapper_is_not_probed_and_says_what_to_ask() -> None:
    here = edge(Wraps(SGD(weights(), 0.05)))
    assert source(here) == "unknown" and "holds another optimizer as .optimizer" in here.reason


def test_accelerates_wrapper_has_the_edge_of_what_it_wraps() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.Accelerator(cpu=True)
    here = edge(accelerate.optimizer.AcceleratedOptimizer(SGD(weights(), 0.05)))
    assert (source(here), here.threshold) == ("closed form", 40)
