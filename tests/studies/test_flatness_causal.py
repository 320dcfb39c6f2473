"""Networks made sharper with their function held."""

import numpy as np
import pytest
import torch
from torch import nn

from optbench.errors import UserError
from optbench.lab.flat_model import FlatModel
from optbench.lab.point import Point
from optbench.studies import flatness_causal
from optbench.studies.declaration import read_study
from optbench.studies.frame import REFUTED, SUPPORTED, length
from optbench.task import classification


def small_point() -> Point:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(30) % 3
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    task = classification({"train": (inputs, labels), "test": (inputs, labels)}, 3, "ce")
    return Point(model, task.to(torch.device("cpu"), torch.float64))


def changed(point: Point, alpha: float | None) -> Point:
    flat = FlatModel(point.model, point.task.loss, point.train)
    layers = flatness_causal.linear_layers(flat.model)
    if alpha is None:
        flatness_causal.permute(layers, torch.Generator().manual_seed(3))
    else:
        flatness_causal.rescale(layers, alpha)
    # the views of the flat vector have been written to, and not replaced
    assert not torch.equal(flat.weights, point.weights)
    return Point(flat.model, point.task)


@pytest.mark.parametrize("alpha", [0.1, 3.0, None])
def test_the_function_stays(alpha: float | None) -> None:
    point = small_point()
    # a few roundings of numbers of size 1
    torch.testing.assert_close(changed(point, alpha).logits, point.logits, rtol=0, atol=1e-13)


def test_rescaling_moves_flatness_and_permuting_does_not() -> None:
    point = small_point()
    before = float(point.top.values[0])
    # both eigenvalues are known to 1e-3
    assert float(changed(point, None).top.values[0]) == pytest.approx(before, rel=2e-3)
    # W₂'s block of H is multiplied by α²
    assert float(changed(point, 10.0).top.values[0]) > 30 * before


def test_training_on_is_that_of_torch_and_is_undone() -> None:
    point = small_point()
    start = FlatModel(point.model, point.task.loss, point.train)
    first = start.weights.clone()
    twin = FlatModel(point.model, point.task.loss, point.train)
    for _ in range(20):
        loss, gradient = twin.gradient()
        twin.weights.sub_(0.5 * gradient)
    loss, _ = twin.gradient()
    found = flatness_causal.train_on(start, point, "gd", 0.5, 100, loss, every=1)
    assert found["reached"] == 1 and found["steps_after"] == 20
    assert found["moved"] == pytest.approx(float((twin.weights - first).norm()), rel=1e-9)
    assert found["error"] == pytest.approx(flatness_causal.test_error(twin.model, point))
    assert torch.equal(start.weights, first)
    late = flatness_causal.train_on(start, point, "adam", 1e-3, 5, 1e-9, every=2)
    assert late["reached"] == 0 and np.isnan(late["error"])


def test_another_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"two linear layers, got 1"):
        flatness_causal.linear_layers(nn.Sequential(nn.Linear(2, 2)))


def test_a_sham_that_moves_the_loss_costs_its_pairs() -> None:
    study = read_study("flatness_causal").study
    table = dict(study.planted("nothing", 0))
    arms = flatness_causal.sharper_arms(table)
    assert arms == ["alpha 0.1", "alpha 10", "alpha 3"]
    rows, why = flatness_causal.effects(table, arms, "gd")
    assert length(rows) == 3 * 20 and "all are compared" in why
    sham = (table["arm"] == "permuted") & (table["task"] == "first")
    table["loss_before"] = np.where(sham, 0.11, table["loss_before"])
    rows, why = flatness_causal.effects(table, arms, "gd")
    assert length(rows) == 3 * 10 and "30 pairs had moved the training loss" in why


@pytest.mark.parametrize("world", flatness_causal.FlatnessCausal.worlds)
def test_no_planted_world_fools_the_rules(world: str) -> None:
    study = read_study("flatness_causal").study
    found = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, 0))}
    for name, right in study.worlds[world].items():
        assert found[name] != {SUPPORTED: REFUTED, REFUTED: SUPPORTED}[right], name
    if world == "sharper is worse":
        assert set(found.values()) == {SUPPORTED}
