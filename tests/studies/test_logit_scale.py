"""The study of the logits' scale: the rescaled sharpness, the share, and the planted worlds."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from optbench.lab import Point
from optbench.studies.declaration import read_study
from optbench.studies.frame import columns
from optbench.studies.logit_scale import ends, scaled_sharpness
from optbench.task import Split, Task, cross_entropy, half_mse


def _point(loss: str) -> Point:
    torch.manual_seed(0)
    x, classes = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    targets = classes if loss == "ce" else F.one_hot(classes, 3).double()
    criterion = cross_entropy if loss == "ce" else half_mse
    task = Task(Split(x, targets), None, None, 3, criterion, None)
    return Point(nn.Linear(4, 3, bias=False).double(), task)


def test_a_linear_model_under_squared_loss_has_the_square_of_the_factor() -> None:
    # ½‖c·Wx − y‖²: H = c² E xxᵀ ⊗ I, whatever y is; the solver's accuracy is 1e-3
    point = _point("mse")
    plain, double = (scaled_sharpness(point, f * point.logit_scale) for f in (1.0, 2.0))
    x = point.train.inputs
    assert plain == pytest.approx(float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1]), rel=1e-3)
    assert double == pytest.approx(4 * plain, rel=1e-3)


def test_it_is_the_sharpness_of_the_rescaled_outputs_under_cross_entropy() -> None:
    # c·Wx is the model of the weights cW; its Hessian by W has the factor c²
    point = _point("ce")
    found = scaled_sharpness(point, 5 * point.logit_scale)
    with torch.no_grad():
        next(iter(point.model.parameters())).mul_(5)
    moved = Point(point.model, point.task)
    assert found == pytest.approx(25 * float(moved.top.values[0]), rel=2e-3)  # two solves of 1e-3


def test_the_share_is_of_the_fall_from_the_greatest_value() -> None:
    run = {"task": "digits", "loss": "ce", "optimizer": "sgd", "seed": 1}
    rows = [
        run | {"step": 1, "sharpness": 2.0},
        run | {"step": 2, "sharpness": 8.0, "rescaled": 8.0},
        run | {"step": 3, "sharpness": 1.0, "rescaled": 4.0, "from_early": 0.5},
    ]
    found = ends(columns(rows))
    assert found["fall"].tolist() == [pytest.approx(-math.log(8))]
    assert found["since_early"].tolist() == [pytest.approx(math.log(2))]
    assert found["share"].tolist() == [pytest.approx(math.log(4) / math.log(8))]


@pytest.mark.parametrize("world", ["margin", "half", "scale"])
def test_margins_that_grow_without_the_scale_are_not_taken_for_logits(world: str) -> None:
    study = read_study("logit_scale").study
    found = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, 1))}
    assert found["logits"] == study.worlds[world]["logits"]
