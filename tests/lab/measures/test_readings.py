"""What a reading says beside its value: notes, and reasons of absence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from optbench.curvature.errors import MeasurementError
from optbench.lab import Point, per_example
from optbench.lab.measures import known
from optbench.lab.measures.loss_curvature import lr_factors
from optbench.task import Split, Task, cross_entropy, error_of_classes

from .helpers import C, D, H, N, reading, task_of, two_layers, value


def _with_rates(model: nn.Sequential, first: float, last: float) -> torch.optim.SGD:
    groups = [
        {"params": list(model[0].parameters()), "lr": first},
        {"params": list(model[2].parameters()), "lr": last},
    ]
    return torch.optim.SGD(groups)


def test_raw_sharpness_says_where_it_is_not_the_edges() -> None:
    model, task = two_layers(), task_of()
    assert reading(Point(model, task, _with_rates(model, 0.1, 0.1)), "sharpness").note is None
    note = reading(Point(model, task, _with_rates(model, 0.4, 0.1)), "sharpness").note
    assert note is not None and "lr_preconditioned_sharpness" in note


def test_shares_of_the_rate_are_the_models_own_where_it_has_them() -> None:
    """μP's factors are relative to one base rate: over the largest, two widths had two units."""
    model, task = two_layers(), task_of()
    model.lr_factors = {  # type: ignore[assignment]
        name: 4.0 if name.startswith("0") else 0.5 for name, _ in model.named_parameters()
    }
    expected = [4.0, 4.0, 0.5, 0.5]
    assert lr_factors(Point(model, task)) == expected
    assert lr_factors(Point(model, task, _with_rates(model, 0.8, 0.1))) == expected
    # An optimizer that was given other rates trains by these.
    assert lr_factors(Point(model, task, _with_rates(model, 0.1, 0.4))) == [0.25, 0.25, 1.0, 1.0]
    doubled = Point(model, task)
    one = value(doubled, "lr_preconditioned_sharpness")
    model.lr_factors = {k: 2 * f for k, f in model.lr_factors.items()}  # type: ignore[assignment, operator, union-attr]
    assert value(Point(model, task), "lr_preconditioned_sharpness") == pytest.approx(
        2 * one,
        rel=2e-3,  # two solves, 1e-3 each
    )


@pytest.mark.parametrize("name", ["trace", "adaptive_trace", "logit_normalized_trace"])
def test_traces_say_their_standard_error(name: str) -> None:
    note = reading(Point(two_layers(), task_of()), name).note
    assert note is not None and note.startswith("standard error ")


def test_every_measure_says_its_cost() -> None:
    for of in known().values():
        assert of.cost and of.invariant in ("yes", "no", "global scale only")


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()])
def test_the_fisher_rao_norm_of_any_network_is_its_definition(activation: nn.Module) -> None:
    """E⟨w, ∂ℓ/∂w⟩² by one backward pass an example, with biases."""
    model, task = two_layers(activation), task_of()
    squares = []
    for x, y in zip(task.train.inputs, task.train.targets, strict=True):
        slopes = torch.autograd.grad(task.loss(model(x[None]), y[None]), list(model.parameters()))
        pairs = zip(model.parameters(), slopes, strict=True)
        squares.append(sum(float((p.detach() * g).sum()) for p, g in pairs) ** 2)
    expected = sum(squares) / len(squares)
    assert value(Point(model, task), "fisher_rao_norm") == pytest.approx(expected, rel=1e-9)


def test_the_tangent_kernel_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = two_layers(nn.Tanh()), task_of().train.inputs
    outputs, parameters = model(inputs).flatten(), list(model.parameters())
    slopes = [torch.autograd.grad(f, parameters, retain_graph=True) for f in outputs.unbind()]
    rows = torch.stack([torch.cat([g.flatten() for g in slope]) for slope in slopes])
    jacobian = rows.view(N, C, -1)
    expected = torch.einsum("icp,jcp->ij", jacobian, jacobian)
    whole = per_example.tangent_kernel(model, inputs)
    row = jacobian.shape[2] * 8 * 3
    monkeypatch.setattr(per_example, "MEMORY", 7 * row)  # blocks of 7, the last one of 4
    parts = per_example.tangent_kernel(model, inputs)
    for kernel in (whole, parts):
        torch.testing.assert_close(kernel, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = two_layers(), task_of()
    names = ("gsnr", "gradient_disparity", "input_jacobian_train", "agop_alignment")
    whole = [value(Point(model, task), name) for name in names]
    monkeypatch.setattr(per_example, "MEMORY", 10_000)
    parts = [value(Point(model, task), name) for name in names]
    assert parts == pytest.approx(whole, rel=1e-9)


def test_batch_norm_in_train_mode_is_refused() -> None:
    model = nn.Sequential(nn.Linear(D, H), nn.BatchNorm1d(H), nn.Linear(H, C)).double()
    task = task_of()
    with pytest.raises(MeasurementError, match="batch norm in train mode"):
        next(per_example.gradients(model, task.loss, task.train.inputs, task.train.targets))
    # A point reads gradients in eval mode, where an example's is its own.
    assert math.isfinite(value(Point(model.train(), task), "gsnr"))


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(11, H), nn.Linear(H, C)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.embedding(x).mean(1))
        return outputs


def test_tokens_have_no_input_jacobian() -> None:
    tokens, classes = torch.randint(0, 11, (N, 4)), torch.arange(N) % C
    split = Split(tokens, classes)
    point = Point(_Tokens().double(), Task(split, None, split, C, cross_entropy, error_of_classes))
    for name in ("input_jacobian_train", "input_jacobian_test", "agop_alignment"):
        assert reading(point, name).reason is not None
    assert "tokens" in str(reading(point, "input_jacobian_train").reason)
    assert math.isfinite(value(point, "gsnr"))


class _Branching(nn.Module):
    """A path that depends on the data, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(x)
        return outputs if bool(outputs.sum() > 0) else 2 * outputs


def test_what_vmap_cannot_do_is_absent_with_a_sentence() -> None:
    point = Point(_Branching().double(), task_of())
    for name in ("gsnr", "ntk_alignment", "input_jacobian_train", "local_learning_coefficient"):
        found = reading(point, name)
        assert math.isnan(found.value)
        assert "torch.func cannot take this model example by example" in str(found.reason)
    assert reading(point, "sharpness").reason is None


def test_inputs_too_large_for_an_outer_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optbench.lab.point.LARGEST_INPUT", D - 1)
    point = Point(two_layers(), task_of())
    assert "at most 4² are taken" in str(reading(point, "agop_alignment").reason)
    assert math.isfinite(value(point, "input_jacobian_train"))


class _Averaging(torch.optim.SGD):
    """As Schedule-Free: weights in eval mode are others than in training."""

    def eval(self) -> None:
        self._scale(3.0)

    def train(self) -> None:
        self._scale(1 / 3.0)

    @torch.no_grad()
    def _scale(self, factor: float) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(factor)


@pytest.mark.parametrize("name", ["path_norm", "nc3", "relative_flatness", "agop_alignment"])
def test_weights_are_those_that_the_function_is_read_with(name: str) -> None:
    model, task = two_layers(), task_of()
    found = value(Point(model, task, _Averaging(model.parameters(), 0.1)), name)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    # Tripling and back is exact but for rounding.
    assert found == pytest.approx(value(Point(model, task), name), rel=1e-9)


def test_a_compiled_model_is_read_as_itself() -> None:
    model, task = two_layers(), task_of()
    wrapped = nn.Module()
    wrapped._orig_mod = model  # what torch.compile returns holds its model so
    assert Point(wrapped, task).model is model
