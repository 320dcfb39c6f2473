"""The misclassification that `watch` takes by itself, and arguments that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optbench.probes.generalization import NoErrorError
from optbench.watching import misclassified, watch


class _Reshaped(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.shape = nn.Linear(6, torch.Size(shape).numel()), shape

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out.view(-1, *self.shape)


def _found(
    model: nn.Module, loss: Any, targets: Tensor, **options: Any
) -> tuple[dict[str, Any], list[str]]:
    torch.manual_seed(1)
    said, optimizer = list[str](), torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(len(targets), 6)
    return dict(
        watch(model, optimizer, loss, (x, targets), test=(x, targets), say=said.append, **options)()
    ), said


def test_classes_are_the_last_dimension_or_the_second() -> None:
    torch.manual_seed(2)
    scores = torch.randn(7, 5, 3)
    last, second = scores.argmax(2), scores.argmax(1)
    last[0, 0] = (last[0, 0] + 1) % 3
    assert float(misclassified(scores, last)) == 1 / 35  # exact: counts below 2^53
    assert float(misclassified(scores, second)) == 0
    last[1] = -100  # ignored: five of the 35
    assert float(misclassified(scores, last)) == 1 / 30
    assert float(misclassified(scores[:, 0], scores[:, 0].argmax(1))) == 0


@pytest.mark.parametrize(
    ("outputs", "targets", "match"),
    [
        (torch.zeros(4, 5, 5), torch.zeros(4, 5).long(), "two dimensions may be that of classes"),
        (
            torch.zeros(4, 1),
            torch.tensor([0, 1, 0, 1]),
            "targets up to 1 are not classes of 1 outputs",
        ),
        (
            torch.zeros(4, 3),
            torch.tensor([0, 1, 0, 3]),
            "targets up to 3 are not classes of 3 outputs",
        ),
        (
            torch.zeros(4),
            torch.zeros(4).long(),
            r"scores of classes for targets \(4,\), got \(4,\)",
        ),
        (torch.zeros(4, 3), torch.zeros(5).long(), "none fits"),
        ((torch.zeros(4, 3),), torch.zeros(4).long(), "got tuple: pass error="),
    ],
)
def test_there_is_no_error_where_classes_are_not_to_be_told(
    outputs: Any, targets: Tensor, match: str
) -> None:
    with pytest.raises(NoErrorError, match=match):
        misclassified(outputs, targets)


def test_ignored_targets_are_no_errors_in_chunks_either() -> None:
    model, targets = _Reshaped(3), torch.where(torch.arange(600) < 260, -100, torch.arange(600) % 3)
    found, _ = _found(model, F.cross_entropy, targets)
    torch.manual_seed(1)
    wrong = (model(torch.randn(600, 6)).argmax(1) != targets)[260:]
    assert found["train/error"] == pytest.approx(float(wrong.double().mean()), rel=1e-12)
    assert found["gap/error"] == 0


@pytest.mark.parametrize(
    ("model", "loss", "targets"),
    [
        (
            _Reshaped(1),
            lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t.to(o.dtype)),
            torch.arange(40) % 2,
        ),
        (_Reshaped(4, 4), F.cross_entropy, torch.arange(160).view(40, 4) % 4),
        (nn.LSTM(6, 3), lambda o, t: F.cross_entropy(o[0], t), torch.arange(40) % 3),
    ],
)
def test_an_error_that_is_not_to_be_had_is_said_and_the_loss_is_there(
    model: Any, loss: Any, targets: Tensor
) -> None:
    found, said = _found(model, loss, targets)
    assert {"train/loss", "test/loss", "gap/loss", "sharpness/lambda_max"} <= found.keys()
    assert not any(key.endswith("/error") for key in found)
    assert any(line.startswith("error is absent: ") and "pass error=" in line for line in said)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"batches": []}, "batches must hold at least one, got a list that is empty"),
        ({"batches": None}, "batches must be a pair .* got None"),
        ({"test": 3}, "test must be a pair .* got 3"),
        (
            {"probes": "sharpness"},
            "probes must be a mapping of names to probes, .* got 'sharpness'",
        ),
        ({"weight": 3}, "weight must be a function .* got 3"),
        ({"say": 3}, "say must be a function .* got 3"),
        ({"examples": 2.5}, "examples must be a positive number, or None for all, got 2.5"),
        ({"every": 1.5}, "every must be a positive number of steps, got 1.5"),
    ],
)
def test_arguments_that_cannot_be(changed: dict[str, Any], match: str) -> None:
    model = _Reshaped(3)
    given: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss": F.cross_entropy,
        "batches": (torch.randn(4, 6), torch.arange(4) % 3),
    }
    with pytest.raises(ValueError, match=match):
        watch(**given | changed)


def test_a_split_of_another_width_is_said_and_training_goes_on() -> None:
    torch.manual_seed(0)
    model, said = nn.Linear(6, 3), list[str]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    test = torch.randn(8, 5), y
    found = watch(model, optimizer, F.cross_entropy, (x, y), test=test, say=said.append)()
    assert "sharpness/lambda_max" in found
    assert any("does not run on the test split, inputs of shape (8, 5)" in line for line in said)


def test_a_model_without_data_is_refused() -> None:
    model = nn.Linear(6, 3, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="model must have data"):
        watch(model, optimizer, F.cross_entropy, (torch.randn(8, 6), torch.arange(8) % 3))
