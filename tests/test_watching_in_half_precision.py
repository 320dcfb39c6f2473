"""`watch` on weights in half precision: losses are taken of the outputs in single, λ₁ of the weights in single."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optbench.watching import watch
from tests.references import lambda_by_double_backward

CLASSES = torch.tensor([0.2, 1.0, 4.0])
CLOSE = 5e-3  # relative error of λ₁: the bound that the probe asks for
# Relative error of a mean of at most 600 losses in single precision. Outputs are in half, in chunks
# as in the whole.
SUMS = 2e-6


def _class_weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, weight=CLASSES.to(outputs.dtype))


def _found(
    dtype: torch.dtype, loss: Any, outputs: int
) -> tuple[Any, nn.Module, Tensor, Tensor, list[str]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs)).to(dtype)
    x, labels, said = torch.randn(600, 6), (torch.arange(600) % 3).sort().values, list[str]()
    x = x.to(dtype)
    y = labels if outputs > 1 else 2 * x[:, :1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = watch(model, optimizer, loss, (x, y), test=(x[:300], y[:300]), say=said.append)()
    return found, model, x, y, said


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("loss", "outputs"), [(F.cross_entropy, 3), (_class_weighted, 3), (F.mse_loss, 1)]
)
def test_losses_have_their_digits(dtype: torch.dtype, loss: Any, outputs: int) -> None:
    found, model, x, y, said = _found(dtype, loss, outputs)
    with torch.no_grad():
        double = [model(x[:n]).double() for n in (600, 300)]
    targets = y if outputs > 1 else y.double()
    train, test = (float(loss(o, targets[: len(o)])) for o in double)
    assert found["train/loss"] == pytest.approx(train, rel=SUMS)
    assert found["gap/loss"] == pytest.approx(test - train, abs=2 * SUMS * train)
    expected = lambda_by_double_backward(model, loss, x, y)
    assert found["sharpness/lambda_max"] == pytest.approx(expected, rel=CLOSE)
    assert not any("rounded" in line for line in said)


def test_a_loss_that_rounds_by_itself_is_said() -> None:
    constants = CLASSES.bfloat16()
    found, model, x, y, said = _found(
        torch.bfloat16, lambda o, t: F.cross_entropy(o, t, weight=constants), 3
    )
    with torch.no_grad():
        train = float(F.cross_entropy(model(x).double(), y, weight=constants.double()))
    # Units of 2^-9, of the value and of each of a few thousand terms of sums; seen: 3e-3.
    assert found["train/loss"] == pytest.approx(train, rel=1e-2)
    line = "loss is rounded to torch.bfloat16 by the model or its loss: a relative error of 4e-03"
    assert line in said


def test_a_model_that_rounds_its_own_loss_is_said() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square().mean()

    torch.manual_seed(0)
    model, x, said = Own(6, 3, dtype=torch.bfloat16), torch.randn(40, 6), list[str]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch(model, optimizer, lambda outputs, _: outputs, (x, x), error=None, say=said.append)()
    assert any(line.startswith("loss is rounded to torch.bfloat16") for line in said)
