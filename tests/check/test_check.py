"""`python -m optbench.check`: each fault is found by the check that is for it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from optbench.check import Row, run
from optbench.check.__main__ import main
from optbench.check.subject import entries
from optbench.check.targets import OF_AN_OPTIMIZER, Target, find
from tests.conftest import Call

Step = Callable[[], Tensor]


def _rows(target: Target) -> dict[str, Row]:
    return {row.check: row for row in run(target.checks, target.subject, target.excluded)}


@pytest.mark.parametrize("name", entries("optimizer"))
def test_every_optimizer_of_ours_passes_or_says_why_not(name: str) -> None:
    target = find(name)
    rows = _rows(target)
    assert {check: row.detail for check, row in rows.items() if row.verdict == "fail"} == {}
    excluded = {check for check, row in rows.items() if row.verdict == "excluded"}
    assert excluded == set(target.excluded), "a reason without a failure"


@pytest.mark.parametrize("name", ["digits", "quadratic", "generalization", "sharpness", "layers"])
def test_tasks_and_probes_of_ours_pass(name: str) -> None:
    assert [
        row
        for row in _rows(find(name)).values()
        if row.verdict not in ("pass", "reported", "not tried")
    ] == []


class Plain(torch.optim.Optimizer):
    """Momentum without a fault; its children have one each."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Step) -> Tensor:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.move(group, p)
        return loss

    def move(self, group: dict[str, Any], p: Tensor) -> None:
        m = self.state[p].setdefault("m", torch.zeros_like(p))
        m.mul_(0.5).add_(p.grad)
        p.sub_(group["lr"] * m)


class Forgets(Plain):
    def move(self, group: dict[str, Any], p: Tensor) -> None:
        self.memory = getattr(self, "memory", {})
        m = self.memory.setdefault(p, torch.zeros_like(p))
        m.mul_(0.5).add_(p.grad)
        p.sub_(group["lr"] * m)


class Random(Plain):
    generator = torch.Generator()

    def move(self, group: dict[str, Any], p: Tensor) -> None:
        p.sub_(group["lr"] * p.grad * torch.rand((), generator=self.generator))


class Leaks(Plain):
    steps: list[int] = []  # noqa: RUF012  # the fault

    def move(self, group: dict[str, Any], p: Tensor) -> None:
        self.steps.append(1)
        p.sub_(group["lr"] * p.grad / len(self.steps))


class OneRate(Plain):
    def move(self, group: dict[str, Any], p: Tensor) -> None:
        p.sub_(self.defaults["lr"] * p.grad)


class Decays(Plain):
    def step(self, closure: Step) -> Tensor:  # type: ignore[override]
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.99)
        return super().step(closure)


class NoGradients(Plain):
    @torch.no_grad()
    def step(self, closure: Step) -> Tensor:  # type: ignore[override]
        loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(group, p)
        return loss


class SinglePrecision(Plain):
    def move(self, group: dict[str, Any], p: Tensor) -> None:
        m = self.state[p].setdefault("m", torch.zeros_like(p, dtype=torch.float32))
        m.mul_(0.5).add_(p.grad)
        p.sub_(group["lr"] * m)


class Flat(Plain):
    def move(self, group: dict[str, Any], p: Tensor) -> None:
        p.sub_(group["lr"] * p.grad / len(p))


class Swaps(Plain):
    """Evaluates elsewhere, and comes back to another place."""

    def eval(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1.1)
        self.param_groups[0]["lr"] *= 0.5

    def train(self) -> None:
        pass


class Climbs(Plain):
    def move(self, group: dict[str, Any], p: Tensor) -> None:
        p.add_(group["lr"] * p.grad)


FAULTS = {
    Forgets: ("state round trip", "fail"),
    Random: ("deterministic", "fail"),
    Leaks: ("no leak between instances", "fail"),
    OneRate: ("groups with their own lr", "fail"),
    Decays: ("frozen parameters", "fail"),
    NoGradients: ("closure keeps gradients on", "warn"),
    SinglePrecision: ("float64", "warn"),
    Flat: ("empty and scalar parameters", "fail"),
    Swaps: ("evaluation between steps", "fail"),
    Climbs: ("descends on digits", "fail"),
}


def test_the_optimizer_without_a_fault_passes() -> None:
    target = find(f"{__name__}.Plain", ["lr=0.1"])
    rows = _rows(target)
    assert {row.verdict for row in rows.values()} <= {"pass", "reported", "not tried"}, rows
    assert rows["converges inside its edge and diverges outside"].verdict == "pass"


@pytest.mark.parametrize("cls", FAULTS)
def test_each_fault_is_found(cls: type[Plain]) -> None:
    check, verdict = FAULTS[cls]
    target = find(f"{__name__}.{cls.__name__}")
    chosen = [c for c in OF_AN_OPTIMIZER if c.__name__.replace("_", " ") == check]
    assert [row.verdict for row in run(chosen, target.subject, {})] == [verdict]
    reasons = {check: "known"}
    expected = "excluded" if verdict == "fail" else verdict
    assert [row.verdict for row in run(chosen, target.subject, reasons)] == [expected]


def test_a_probe_that_writes_is_found() -> None:
    target = find("generalization")
    build = target.subject.build

    class Writes:
        every = 1

        def __call__(self, state: Any) -> dict[str, float]:
            with torch.no_grad():
                next(iter(state.model.parameters())).mul_(1.001)
            return dict(build()(state))

    rows = _rows(replace(target, subject=replace(target.subject, build=Writes)))
    assert rows["only reads"].verdict == "fail" and rows["measures something"].verdict == "pass"


def test_exit_codes_and_json(called: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file_of_a_user.py").write_text(
        "import torch\nclass Climber(torch.optim.SGD):\n    def __init__(self, params, lr):\n"
        "        super().__init__(params, lr, maximize=True)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    done = called(main, tmp_path, "sgd", "optimizer.lr=0.05", "json=true")
    assert done.code == 0
    found = json.loads(done.out)
    assert {row["check"] for row in found["sgd"]} >= {"state round trip", "descends on digits"}
    assert any("= 40" in row["detail"] or "2/η" in row["detail"] for row in found["sgd"])
    done = called(main, tmp_path, "file_of_a_user.Climber")
    assert done.code == 1 and "failed: file_of_a_user.Climber" in done.out
    done = called(main, tmp_path, "adamm")
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert "there is no optimizer, task or probe called adamm. Did you mean adam" in done.err
    assert called(main, tmp_path, "sgd", "optimizer.lrr=1").code == 2
