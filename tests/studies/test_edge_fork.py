"""Forks of one checkpoint, below and above the edge."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from optbench.lab.flat_model import FlatModel, losses
from optbench.lab.point import Point
from optbench.lab.similarity import linear_cka
from optbench.studies import edge_fork, edge_fork_runs
from optbench.studies.declaration import read_study
from optbench.studies.frame import REFUTED, SUPPORTED
from optbench.task import Split, classification, half_mse


def quadratic(curvatures: tuple[float, ...]) -> FlatModel:
    """½ Σ h_i w_i², as the loss of a linear model without bias on targets of 0, at w = 1."""
    size = len(curvatures)
    inputs = torch.diag(torch.tensor(curvatures, dtype=torch.float64).sqrt()) * math.sqrt(size)
    model = nn.Linear(size, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(model.weight)
    return FlatModel(model, half_mse, Split(inputs, torch.zeros(size, 1, dtype=torch.float64)))


def test_a_path_is_that_of_gradient_descent_with_its_oscillation_smoothed() -> None:
    start = quadratic((4.0, 1.0))
    path = edge_fork_runs.walk(start, 0.5, steps=6, marks=6)
    # η h = 2 and ½: w_t = ((−1)^t, 2^−t), so that the first is smoothed to 0
    for t, w in enumerate(path.weights, 1):
        expected = 2.0**-t * (2 + 2 + 0.5) / 4  # (2^(1−t) + 2·2^−t + 2^(−1−t))/4
        # a few roundings of numbers of size 1: 1e-15
        torch.testing.assert_close(w, w.new_tensor([0.0, expected]), rtol=0, atol=1e-14)
        # a = ‖second difference‖/4 = ‖(4, 2^−t/2)‖/4
        assert float(path.amplitudes[t - 1]) == pytest.approx(math.hypot(4, 2.0**-t / 2) / 4)
    torch.testing.assert_close(start.weights, torch.ones_like(start.weights))  # set back
    assert edge_fork_runs.walk(start, 5.0, steps=50, marks=5).diverged


def test_a_kick_moves_the_gradient_and_not_the_weights() -> None:
    start = quadratic((4.0, 1.0))
    side = start.weights.new_tensor([0.0, 0.25])
    path = edge_fork_runs.walk(start, 0.1, 1, 1, lambda time: side)
    first = 1 - 0.1 * 1.25  # gradient at w + side
    second = first - 0.1 * (first - 0.25)  # and at w − side
    expected = (1 + 2 * first + second) / 4
    assert float(path.weights[0][1]) == pytest.approx(expected, rel=1e-13)


def test_the_loss_is_met_between_two_marks() -> None:
    start = quadratic((1.0, 0.5))
    path = edge_fork_runs.walk(start, 0.5, steps=20, marks=5)
    assert all(a > b for a, b in pairwise(path.losses.tolist()))
    wanted = float(path.losses[3]) * 0.3 + float(path.losses[2]) * 0.7
    found = edge_fork_runs.first_at(start, path, wanted)
    assert found is not None and start.loss_at(found) == pytest.approx(wanted, rel=1e-4)
    assert edge_fork_runs.first_at(start, path, 1e-9) is None
    assert edge_fork_runs.common_loss(1.0, [path]) == pytest.approx(float(path.losses[-1]))
    assert edge_fork_runs.common_loss(float(path.losses[-1]), [path]) is None


def test_alignment_of_features_knows_rotations_and_scales_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    assert linear_cka(x, 3 * x @ turn + 7) == pytest.approx(1, abs=1e-12)
    centred = x - x.mean(0)
    a, b = torch.linalg.qr(centred).Q[:, :2].split(1, dim=1)
    # orthogonal columns have no alignment; of (a, b) with a, two of equal size, it is 1/√2
    assert linear_cka(a, b) == pytest.approx(0, abs=1e-12)
    assert linear_cka(torch.cat([a, b], 1), a) == pytest.approx(1 / math.sqrt(2), rel=1e-12)


def small_point() -> Point:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    labels = torch.arange(40) % 5
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    task = classification({"train": (inputs, labels), "test": (inputs, labels)}, 5, "mse")
    return Point(model, task.to(torch.device("cpu"), torch.float64))


def test_groups_follow_their_alignment() -> None:
    point = small_point()
    u = point.top.vectors[:, 0]
    groups = edge_fork.Groups(point, u)
    each = losses(point.model, half_mse, point.train)
    assert float(each.mean()) == pytest.approx(point.value_and_gradient[0], rel=1e-12)
    # the mean gradient of a class, by autograd
    of_class = torch.arange(40) % 5 == 3
    loss = half_mse(point.model(point.train.inputs[of_class]), point.train.targets[of_class])
    g = torch.cat([x.flatten() for x in torch.autograd.grad(loss, point.parameters)])
    assert groups._class_along[3] == pytest.approx(abs(float(g @ u)), rel=1e-9)
    assert groups._class_held["gradient"][3] == pytest.approx(float(g.norm()), rel=1e-9)
    assert groups.by_example(groups._along) == pytest.approx(1)
    assert groups.by_example(-groups._along) == pytest.approx(-1)
    assert groups.by_class(groups._class_along[np.arange(40) % 5]) == pytest.approx(1)


def test_a_fork_has_all_arms_at_one_loss() -> None:
    shares = {"below": 0.3, "near": 0.8, "above": 1.2}
    rows = edge_fork.fork_once(small_point(), shares, marks=40, seed=0)
    at_loss = {row["arm"]: row for row in rows if row["match"] == "loss"}
    assert set(at_loss) == set(edge_fork.ARMS)
    values = [row["loss"] for row in at_loss.values()]
    # met to 1e-4 each
    assert max(values) / min(values) < 1 + 3e-4
    assert at_loss["above"]["sharpness"] < at_loss["below"]["sharpness"]


@pytest.mark.parametrize("world", edge_fork.EdgeFork.worlds)
def test_no_planted_world_fools_the_rules(world: str) -> None:
    study = read_study("edge_fork").study
    found = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, 0))}
    for name, right in study.worlds[world].items():
        assert found[name] != {SUPPORTED: REFUTED, REFUTED: SUPPORTED}[right], name


def test_forks_at_unequal_loss_are_left_out() -> None:
    study = read_study("edge_fork").study
    table = dict(study.planted("nothing", 0))
    table["loss"] = np.where(table["arm"] == "above", 0.13, table["loss"])
    found = {f.hypothesis: f for f in study.judge(table)}
    for name in ("error_digits", "error_mnist1d", "features"):
        assert found[name].verdict == "undecided" and found[name].n == 0
    assert found["error_at_equal_time_digits"].n == 30
    assert found["tasks_differ"].n == 60


def test_a_hypothesis_of_a_task_rests_on_that_task_alone() -> None:
    study = read_study("edge_fork").study
    found = {f.hypothesis: f for f in study.judge(study.planted("opposite signs", 1))}
    assert found["error_digits"].n == 30 and found["features"].n == 60
    # +3 and −3 pp, each of 30 forks with noise .5 √2: three standard errors are .4
    assert found["error_digits"].estimate.value == pytest.approx(3, abs=0.4)
    assert found["error_mnist1d"].estimate.value == pytest.approx(-3, abs=0.4)
    assert found["tasks_differ"].estimate.value == pytest.approx(6, abs=0.6)
    assert edge_fork.of_task("error_at_equal_time_digits", ["digits"]) == (
        "error_at_equal_time",
        "digits",
    )
    assert edge_fork.of_task("tasks_differ", ["digits", "mnist1d"]) == ("tasks_differ", None)
    only = study.judge(edge_fork.of(study.planted("opposite signs", 1), "digits"))
    assert {f.hypothesis: f.verdict for f in only}["tasks_differ"] == "undecided"
