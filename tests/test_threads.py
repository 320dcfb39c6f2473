"""A small run takes one thread, on any machine; rounding depends on it."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optbench.lab import landscape_command, measures
from optbench.lab.point import Point
from optbench.run import together
from optbench.run.threads import SMALL, most_examples, multiply_adds, threads_of
from optbench.run.together import Way
from optbench.task import classification
from tests.conftest import Command

QUICK = ("task=digits", "steps=2", "probes=none")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(before)


def _experiment(model: nn.Module, batch: int, *shape: int, **probes: Any) -> Any:
    split = (torch.randn(20, *shape), torch.arange(20) % 3)
    task = classification(dict.fromkeys(("train", "val", "test"), split), 3, "ce")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    update = SimpleNamespace(model=model, optimizer=optimizer, parameters=[*model.parameters()])
    return SimpleNamespace(
        task=task, update=update, batches=SimpleNamespace(size=batch), probes=probes
    )


def _counted(run: Any) -> int | None:
    return multiply_adds(run.update.model, run.update.optimizer, run.task, most_examples(run))


def test_multiply_adds_are_those_of_the_layers() -> None:
    dense = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    assert _counted(_experiment(dense, 10, 5)) == 10 * (5 * 7 + 7 * 3)
    conv = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 3))
    assert _counted(_experiment(conv, 6, 2, 8, 8)) == 6 * (36 * 4 * 2 * 9 + 4 * 36 * 3)


@pytest.mark.parametrize(
    ("examples", "every", "rows"),
    [(None, 5, 20), (12, 5, 12), (99, "epoch", 20), (12, "never", 10)],
)
def test_the_examples_of_a_probe_count(examples: int | None, every: int | str, rows: int) -> None:
    probe = SimpleNamespace(examples=examples, every=every)
    assert _counted(_experiment(nn.Linear(5, 3), 10, 5, p=probe)) == rows * 5 * 3


def test_counting_changes_nothing_and_a_model_that_cannot_be_counted_keeps_its_threads() -> None:
    class Broken(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            raise RuntimeError("on whole batches only")

    experiment = _experiment(Broken(5, 3), 10, 5)
    assert _counted(experiment) is None
    with threads_of(experiment):
        assert torch.get_num_threads() == 2

    class Noisy(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs + torch.randn_like(inputs)

    normed = nn.Sequential(Noisy(), nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    experiment = _experiment(normed, 10, 5)
    before, rng = {k: v.clone() for k, v in normed.state_dict().items()}, torch.get_rng_state()
    with threads_of(experiment):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2 and torch.equal(rng, torch.get_rng_state())
    assert normed.training and all(
        torch.equal(before[k], v) for k, v in normed.state_dict().items()
    )


def test_at_the_number_several_threads_are_kept() -> None:
    for batch, threads in ((SMALL // 15, 1), (SMALL // 15 + 1, 2)):
        with threads_of(_experiment(nn.Linear(5, 3), batch, 5)):
            assert torch.get_num_threads() == threads


def test_a_run_records_its_threads_and_what_the_environment_says_is_obeyed(
    optbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(*words: str) -> int:
        folder = optbench(*QUICK, *words).folder
        number: int = json.loads((folder / "provenance.json").read_text())["hardware"]["threads"]
        return number

    assert threads() == 1 and torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads("seed=1") == 2


def test_a_small_model_is_measured_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(measures, "_read", lambda *_: seen.append(torch.get_num_threads()))
    for width in (3, SMALL // (20 * 5) + 1):
        run = _experiment(nn.Linear(5, width), 10, 5)
        measures.measure_point(Point(run.update.model, run.task), "weight_norm")
    assert seen == [1, 2] and torch.get_num_threads() == 2


def test_a_landscape_of_a_small_model_is_drawn_on_one_thread(
    optbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = optbench(*QUICK).folder, list[int]()
    directions = landscape_command._directions

    def watched(*given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return directions(*given)

    monkeypatch.setattr(landscape_command, "_directions", watched)
    settings = landscape_command.Settings(runs=(folder,), points=3, grid=0, along="random")
    assert landscape_command.draw_landscape(settings) == 0 and seen == [1]


def test_a_batch_takes_one_thread_where_that_pays_unless_the_environment_says_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way, seen = Way(True, "bmm", together.SMALL // 4), list[int]()
    for members in (3, 4):
        with way.threads(members):
            seen.append(torch.get_num_threads())
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    with way.threads(3):
        seen.append(torch.get_num_threads())
    assert seen == [1, 2, 2] and torch.get_num_threads() == 2


def test_a_task_without_training_examples_keeps_its_threads() -> None:
    model, empty = nn.Linear(5, 3), (torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    task = classification({"train": empty, "val": empty, "test": empty}, 3, "ce")
    assert multiply_adds(model, None, task, 10) is None
