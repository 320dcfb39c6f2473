"""A small run takes one thread, on any machine; rounding depends on it."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optbench.run.threads import SMALL, fitting_threads, multiply_adds
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


def test_multiply_adds_are_those_of_the_layers() -> None:
    dense = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    assert multiply_adds(_experiment(dense, 10, 5)) == 10 * (5 * 7 + 7 * 3)
    conv = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 3))
    assert multiply_adds(_experiment(conv, 6, 2, 8, 8)) == 6 * (36 * 4 * 2 * 9 + 4 * 36 * 3)


@pytest.mark.parametrize(
    ("examples", "every", "rows"),
    [(None, 5, 20), (12, 5, 12), (99, "epoch", 20), (12, "never", 10)],
)
def test_the_examples_of_a_probe_count(examples: int | None, every: int | str, rows: int) -> None:
    probe = SimpleNamespace(examples=examples, every=every)
    assert multiply_adds(_experiment(nn.Linear(5, 3), 10, 5, p=probe)) == rows * 5 * 3


def test_counting_changes_nothing_and_a_model_that_cannot_be_counted_keeps_its_threads() -> None:
    class Broken(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            raise RuntimeError("on whole batches only")

    experiment = _experiment(Broken(5, 3), 10, 5)
    assert multiply_adds(experiment) is None
    with fitting_threads(experiment):
        assert torch.get_num_threads() == 2

    class Noisy(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs + torch.randn_like(inputs)

    normed = nn.Sequential(Noisy(), nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    experiment = _experiment(normed, 10, 5)
    before, rng = {k: v.clone() for k, v in normed.state_dict().items()}, torch.get_rng_state()
    with fitting_threads(experiment):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2 and torch.equal(rng, torch.get_rng_state())
    assert normed.training and all(
        torch.equal(before[k], v) for k, v in normed.state_dict().items()
    )


def test_at_the_number_several_threads_are_kept() -> None:
    for batch, threads in ((SMALL // 15, 1), (SMALL // 15 + 1, 2)):
        with fitting_threads(_experiment(nn.Linear(5, 3), batch, 5)):
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
