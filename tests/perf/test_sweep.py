"""The sweep tells right from wrong: on cases that are right, and on models made to fail."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optbench.curvature import chunk_loss as objective
from optbench.curvature import second_derivatives as differences
from perf.sweep.cases import CASES
from perf.sweep.compare import Verdict, compare
from perf.sweep.subject import function, layer


class ForgetfulCube(torch.autograd.Function):
    """x³ that keeps 3 x², a constant to torch: the gradient is right, its derivative is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(3 * x**2)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return g * slope  # type: ignore[no-any-return]


class DoubledSine(torch.autograd.Function):
    """sin x with twice its slope: the gradient is not the loss's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * g * x.cos()  # type: ignore[no-any-return]


class Drifting(nn.Linear):
    """A layer that writes its weight whenever it is called."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            self.bias.add_(0.01)
        return super().forward(input)


@pytest.mark.parametrize(
    "name",
    [
        "layers/Linear",
        "layers/BatchNorm2d train",
        "layers/tied weights",
        "shapes/Dropout",
        "sequences/LSTM",
        "losses/CrossEntropyLoss label_smoothing",
    ],
)
def test_right_cases_are_right(name: str) -> None:
    result = compare(CASES[name])
    assert result.verdict is Verdict.RIGHT, result.remark


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if optbench compared nothing with differences of the gradient."""
    monkeypatch.setattr(differences, "WRONG", float("inf"))


@pytest.mark.usefixtures("unsaid")
def test_a_wrong_second_derivative_is_found() -> None:
    result = compare(function(lambda z: ForgetfulCube.apply(z), 4))  # type: ignore[no-untyped-call]
    assert result.verdict is Verdict.WRONG
    assert "torch's own double backward is off by" in result.remark


def test_a_wrong_second_derivative_that_is_said_is_told_apart() -> None:
    result = compare(function(lambda z: ForgetfulCube.apply(z), 4))  # type: ignore[no-untyped-call]
    assert result.verdict is Verdict.SAID


@pytest.mark.usefixtures("unsaid")
def test_a_gradient_that_is_not_the_loss_s_is_found() -> None:
    assert compare(function(lambda z: DoubledSine.apply(z), 4)).verdict is Verdict.WRONG  # type: ignore[no-untyped-call]


def test_a_moved_weight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(layer(lambda: Drifting(3, 2), 3)).verdict is Verdict.RIGHT
    monkeypatch.setattr(objective, "untouched", lambda _: contextlib.nullcontext([]))
    assert compare(layer(lambda: Drifting(3, 2), 3)).verdict is Verdict.MOVED


def test_an_error_is_not_taken_for_a_result() -> None:
    def broken(z: Tensor) -> Tensor:
        if torch.is_grad_enabled() and z.requires_grad:
            raise KeyError("from within the model")
        return z

    assert compare(function(broken, 4)).verdict is Verdict.WRONG  # there is no reference either


def test_a_missing_package_is_skipped() -> None:
    def missing() -> nn.Module:
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401

        raise AssertionError

    assert compare(layer(missing, 3)).verdict is Verdict.SKIPPED
