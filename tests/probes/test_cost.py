"""What measuring is foretold to cost, and how the time left follows from it."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from optbench.curvature.errors import MeasurementError
from optbench.probes import cost, due
from optbench.probes.after_update import AfterUpdate
from optbench.probes.cost import Costs, times_left


@dataclass
class Idle:
    """A probe that finds nothing."""

    every: int | str

    def __call__(self, state: Any) -> dict[str, float]:
        return {}


CADENCES: list[int | str] = [1, 2, 7, 10, 1000, "epoch", "log", "never"]


@pytest.mark.parametrize("every", CADENCES)
@pytest.mark.parametrize("after", [0, 1, 6, 99, 100])
def test_times_left_are_those_at_which_it_will_be_due(every: int | str, after: int) -> None:
    probes: dict[str, Any] = {"one": Idle(every), "other": Idle("one")}
    steps, per_epoch = 100, 8
    expected = sum(
        "one" in due(probes, step, steps, per_epoch) for step in range(after + 1, steps + 1)
    )
    assert times_left(probes, after, steps, per_epoch) == {"one": expected, "other": expected}


@pytest.mark.parametrize("every", [1, 7, 10, 99])
def test_a_probe_of_the_update_is_called_at_the_step_after_too(every: int) -> None:
    probe, steps, called = AfterUpdate(every), 100, 0
    probes: dict[str, Any] = {"layers": probe}
    for step in range(steps + 1):
        if due(probes, step, steps, 1):
            called += step > 0
            kept = step % every == 0 and step < steps
            probe.next_step = step + 1 if kept else (step // every + 1) * every
    assert times_left(probes, 0, steps, 1) == {"layers": called}


def test_a_cold_first_call_is_not_what_later_ones_are_taken_to_cost() -> None:
    probes: dict[str, Any] = {"sharpness": Idle(10)}
    costs = Costs()
    costs.note("sharpness", 9.0)
    assert costs.left(probes, 0, 100, 1) == {"sharpness": (10, 90.0)}
    costs.expected["sharpness"] = 2.0
    assert costs.left(probes, 0, 100, 1) == {"sharpness": (10, 20.0)}
    for _ in range(4):
        costs.note("sharpness", 3.0)
    assert costs.left(probes, 50, 100, 1) == {"sharpness": (5, 15.0)}


def test_the_cost_of_all_probes_is_said_the_dearest_first() -> None:
    probes: dict[str, Any] = {"loss": Idle(1), "sharpness": Idle(50), "trace": Idle(100)}
    costs = Costs({"loss": 0.5, "sharpness": 40.0, "trace": 1.0})
    assert costs.foretold(probes, 0, 100, 1) == (
        "measuring will take about 131 s: sharpness 80 s (2 times), loss 50 s (100 times)"
    )
    assert Costs({"loss": 1e-3}).foretold({"loss": Idle(1)}, 0, 100, 1) is None


def test_runs_that_share_what_is_expected_ask_once() -> None:
    class Asked(Idle):
        def later_products(self, state: Any) -> float:
            raise AssertionError("asked again")

    costs = Costs(expected={"sharpness": 2.0})
    costs.expect({"sharpness": Asked(10)}, state=cast(Any, None))
    assert costs.expected == {"sharpness": 2.0}


def test_what_was_expected_is_forgotten_whole_where_a_probe_cannot_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Asked(Idle):
        def later_products(self, state: Any) -> float:
            if self.every == 2:
                raise MeasurementError("no product can be computed")
            return 6.0

    monkeypatch.setattr(cost, "_seconds_of_a_product", lambda *_: 0.1)
    inputs = torch.zeros(4)
    state = SimpleNamespace(
        task=SimpleNamespace(train=SimpleNamespace(inputs=inputs)),
        steps_per_epoch=1,
        shared=SimpleNamespace(release=lambda: None),
    )
    costs = Costs()
    costs.expect({"one": Asked(1), "other": Asked(2)}, cast(Any, state))
    assert costs.expected == {} and costs.updates == {}
    costs.expect({"one": Asked(1)}, cast(Any, state))
    assert costs.expected == {"one": pytest.approx(0.6)} and costs.updates == {"one": 18.0}
