import json
from dataclasses import dataclass

import pytest

from optbench.errors import UserError
from optbench.probes import Probe, State, Value, check_cadences, due
from tests.conftest import Command


@dataclass
class _Idle:
    every: int | str

    def __call__(self, state: State) -> dict[str, Value]:
        return {}


@dataclass
class _Paced(_Idle):
    next_step: int = 0


def _due(every: int | str, steps: int = 100) -> list[int]:
    probes: dict[str, Probe] = {"x": _Idle(every)}
    return [step for step in range(steps + 1) if due(probes, step, steps, steps_per_epoch=30)]


def test_cadences() -> None:
    assert _due(25) == [0, 25, 50, 75, 100]
    assert _due(40) == [0, 40, 80, 100]
    assert _due("epoch") == [0, 30, 60, 90, 100]
    log = _due("log", 10_000)
    assert log[:12] == [0, 1, 2, 3, 4, 6, 7, 8, 10, 13, 16, 20]
    assert len([step for step in log if 1000 <= step < 10_000]) == 10


def test_a_probe_can_follow_another_and_pace_itself() -> None:
    paced = _Paced("adaptive", next_step=7)
    probes: dict[str, Probe] = {"lead": _Idle(5), "follow": _Idle("lead"), "paced": paced}
    check_cadences(probes)
    assert list(due(probes, 5, 100, 1)) == ["lead", "follow"]
    assert list(due(probes, 6, 100, 1)) == []
    assert list(due(probes, 7, 100, 1)) == ["paced"]
    assert list(due(probes, 100, 100, 1)) == ["lead", "follow", "paced"]
    probes["lead"] = _Idle("never")
    assert [list(due(probes, step, 100, 1)) for step in (0, 5, 100)] == [["paced"], [], ["paced"]]


@pytest.mark.parametrize("every", [0, -1, 1.5, "often", True, None, "adaptive", "x"])
def test_what_is_no_cadence_is_refused(every: object) -> None:
    with pytest.raises(UserError, match=rf"probes\.x\.every must be .* got {every}"):
        check_cadences({"x": _Idle(every)})  # type: ignore[arg-type]


@pytest.mark.parametrize("probe", ["layers", "direction", "critical"])
def test_probes_of_the_update_take_a_number_and_never_as_all_others_do(
    optbench: Command, probe: str
) -> None:
    """Their metrics stand at the step after the n-th; `never` switches them off."""
    prefix = "layers" if probe == "layers" else "update"
    steps = []
    for every in ("4", "never"):
        words = ("probes=dynamics", f"probes.{probe}.every={every}", "steps=10", "batch_size=full")
        others = [
            f"probes.{p}.every=never" for p in ("layers", "direction", "critical") if p != probe
        ]
        done = optbench("task=digits_small", *words, *others, "probes.sharpness.every=never")
        assert done.code == 0, done.err
        lines = (done.folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        steps.append([r["step"] for r in records if any(k.startswith(prefix + "/") for k in r)])
    assert steps == [[1, 5, 9], []]
