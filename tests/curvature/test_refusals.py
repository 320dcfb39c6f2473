"""Invalid arguments: each public function says what is wrong, and none returns a number."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from optbench.curvature import (
    GaussNewton,
    Hessian,
    MeasurementError,
    NotConvergedWarning,
    Preconditioned,
    Restricted,
    audit,
    block_densities,
    block_heterogeneity,
    diagonal,
    loss_and_gradient,
    mean_loss,
    rayleigh,
    spectral_density,
    top_eigenpairs,
    trace,
)

from .helpers import Matrix, small

A = Matrix(torch.diag(torch.arange(20.0, dtype=torch.float64)))
PAIRS = top_eigenpairs(A, accuracy=1e-6)


def _hessian(seed: int = 0) -> Hessian:
    model, data = small(seed)
    return Hessian(model, F.mse_loss, data)


def _nan() -> Hessian:
    model, data = small()
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0] = torch.nan
    return Hessian(model, F.mse_loss, data)


@pytest.mark.parametrize(
    "ask",
    [
        lambda H: trace(H, 3),
        lambda H: diagonal(H, 3),
        lambda H: spectral_density(H, 3),
        lambda H: top_eigenpairs(H),
        lambda H: rayleigh(H, torch.ones(H.size).double()),
        lambda H: H @ torch.ones(H.size).double(),
        lambda H: Preconditioned(H, torch.ones(H.size)) @ torch.ones(H.size).double(),
        lambda H: block_densities(H, {"a": ["0.weight"]}, 3),
    ],
)
def test_weights_that_are_not_numbers(ask: Callable[[Hessian], object]) -> None:
    with pytest.raises(FloatingPointError, match=r"weights must be finite, got 0\.weight"):
        ask(_nan())


X, Y = torch.randn(16, 4), torch.arange(16) % 2
WRONG: dict[str, tuple[nn.Module, tuple[torch.Tensor, torch.Tensor], str]] = {
    "width": (nn.Linear(5, 2), (X, Y), "inputs of shape (16, 4), torch.float32"),
    "whole inputs": (nn.Linear(4, 2), (X.long(), Y), "inputs of shape (16, 4), torch.int64"),
    "class": (nn.Linear(4, 2), (X, Y + 5), "Target"),
    "real targets": (nn.Linear(4, 2), (X, Y.float()), "targets of shape (16,), torch.float32"),
    "no data": (
        nn.Linear(4, 2, device="meta"),
        (X, Y),
        "parameters must have data, got some on device meta",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_torch_cannot_run_is_said_with_the_data(case: str) -> None:
    model, data, said = WRONG[case]
    with pytest.raises(MeasurementError, match=re.escape(said)):
        top_eigenpairs(Hessian(model, F.cross_entropy, data))


def test_infinite_weights() -> None:
    model, data = small()
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="weights must be finite"):
        top_eigenpairs(Hessian(model, F.mse_loss, data))


@pytest.mark.parametrize("number", [0.0, torch.nan, torch.inf])
def test_a_start_without_direction(number: float) -> None:
    with pytest.raises(ValueError, match="start must have columns with a direction"):
        top_eigenpairs(A, start=torch.full((20, 1), number))


def _no_graph(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(outputs.detach(), targets)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_a_loss_that_depends_on_nothing(kind: type[Hessian]) -> None:
    model, data = small()
    losses: list[Any] = [_no_graph, lambda o, t: t.square().mean(), lambda o, t: torch.ones(())]
    for loss in losses:
        with pytest.raises(MeasurementError, match="does not depend on the parameters"):
            top_eigenpairs(kind(model, loss, data))
        with pytest.raises(MeasurementError, match="does not depend on the parameters"):
            loss_and_gradient(Hessian(model, loss, data))
    with pytest.raises(MeasurementError, match=r"scalar mean, got shape \(20, 3\)"):
        top_eigenpairs(Hessian(model, lambda o, t: o, data))


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "pairs of another model": (
        lambda: audit(_hessian(1), top_eigenpairs(_hessian())),
        "of this operator at its present",
    ),
    "pairs of another size": (lambda: audit(_hessian(), PAIRS), "vectors of 20 entries for P = 53"),
    "altered pairs": (
        lambda: audit(A, replace(PAIRS, values=PAIRS.values * 1.1)),
        "of this operator",
    ),
    "audit without steps": (lambda: audit(A, PAIRS, steps=0), "steps must be positive, got 0"),
    "a vector of zeros": (lambda: rayleigh(A, torch.zeros(20).double()), "must have a direction"),
    "a vector of NaN": (
        lambda: rayleigh(A, torch.full((20,), torch.nan).double()),
        "must have a direction",
    ),
    "a vector of another size": (
        lambda: rayleigh(A, torch.ones(3).double()),
        r"shape \(20,\), got \(3,\)",
    ),
    "deflating others": (
        lambda: trace(_hessian(), deflate=PAIRS),
        "P = 53 entries, got vectors of 20",
    ),
    "confidence": (lambda: trace(A, confidence=1.0), "between 0 and 1, got 1.0"),
    "one sample": (lambda: diagonal(A, 1), "at least 2"),
    "half a step": (lambda: spectral_density(A, 2.5), "whole number, got 2.5"),  # type: ignore[arg-type]
    "a width": (
        lambda: spectral_density(A, 3).smoothed(width=-1.0),
        "width must be positive, got -1",
    ),
    "no pairs": (lambda: top_eigenpairs(A, 0), "k must be between 1 and P = 20, got 0"),
    "true pairs": (lambda: top_eigenpairs(A, True), "k must be a whole number, got True"),
    "more pairs": (lambda: top_eigenpairs(A, 21), "got 21"),
    "tolerance": (lambda: top_eigenpairs(A, tol=float("nan")), "tol must be a number, got nan"),
    "guards": (lambda: top_eigenpairs(A, guards=-1), "not be negative, got -1"),
    "a start of another size": (lambda: top_eigenpairs(A, start=torch.ones(3, 1)), r"got \(3, 1\)"),
    "rows twice": (lambda: Restricted(A, torch.tensor([1, 1])), "different indices below P = 20"),
    "rows beyond": (lambda: Restricted(A, torch.tensor([20])), "different indices below P = 20"),
    "no rows": (lambda: Restricted(A, torch.tensor([], dtype=torch.long)), "different indices"),
    "P of zero": (lambda: Preconditioned(A, torch.zeros(20)), "positive and finite, got 0"),
    "no model": (lambda: loss_and_gradient(A), "must be a Hessian or GaussNewton, got Matrix"),  # type: ignore[arg-type]
    "no model either": (lambda: mean_loss(A), "must be a Hessian or GaussNewton, got Matrix"),  # type: ignore[arg-type]
    "blocks of nothing": (
        lambda: block_densities(_hessian(), {"a": ["b"]}),
        "parameters that the operator acts on",
    ),
    "one block": (
        lambda: block_heterogeneity({"a": spectral_density(A, 3)}),
        "at least two blocks, got 1",
    ),
    "no operator": (
        lambda: top_eigenpairs(torch.eye(3)),  # type: ignore[arg-type]
        "must be an Operator, such as a Hessian, got Tensor",
    ),
    "trace of a tensor": (lambda: trace(torch.eye(3)), "must be an Operator"),  # type: ignore[arg-type]
    "density of nothing": (lambda: spectral_density(None), "must be an Operator"),  # type: ignore[arg-type]
    "pairs that are none": (lambda: audit(A, None), "must be Eigenpairs, got NoneType"),  # type: ignore[arg-type]
    "a sum with a number": (lambda: A + 1, "must be an Operator"),  # type: ignore[operator]
    "a factor": (lambda: A * "2", "factor must be a number, got '2'"),  # type: ignore[operator]
    "a seed": (lambda: trace(A, seed=1.5), "seed must be a whole number, got 1.5"),  # type: ignore[arg-type]
    "trust": (lambda: top_eigenpairs(A, trust=-1.0), "trust must not be negative"),
    "layers": (
        lambda: Hessian(*small()[:1], F.mse_loss, [], layers="slow"),  # type: ignore[arg-type]
        "layers must be 'fast' or 'torch', got 'slow'",
    ),
    "half a chunk": (
        lambda: Hessian(*small()[:1], F.mse_loss, [], chunk=2.5),  # type: ignore[arg-type]
        "chunk must be a whole number",
    ),
    "memory": (
        lambda: Hessian(*small()[:1], F.mse_loss, [], memory="1G"),  # type: ignore[arg-type]
        "memory must be a number",
    ),
    "no loss": (lambda: Hessian(*small()[:1], None, []), "loss must be a function"),  # type: ignore[arg-type]
    "no batches": (
        lambda: Hessian(*small()[:1], F.mse_loss, 5),  # type: ignore[arg-type]
        "one \\(inputs, targets\\) pair or an iterable",
    ),
    "a weight": (
        lambda: Hessian(*small()[:1], F.mse_loss, [], weight=3),  # type: ignore[arg-type]
        "weight must be a function",
    ),
    "a number": (lambda: A @ 3.0, "v must be a tensor, got float"),  # type: ignore[operator]
    "a function": (
        lambda: Hessian(lambda x: x, F.mse_loss, []),  # type: ignore[arg-type]
        "must be a torch.nn.Module, got function",
    ),
    "lazy": (lambda: Hessian(nn.LazyLinear(3), F.mse_loss, []), "do a forward pass first"),
    "a sum": (
        lambda: Hessian(small()[0], nn.MSELoss(reduction="sum"), []),
        "reduce by 'mean', got 'sum'",
    ),
    "complex": (
        lambda: Hessian(nn.Linear(3, 2, dtype=torch.complex64), F.mse_loss, []),
        "parameters must be real",
    ),
    "half": (
        lambda: Hessian(nn.Linear(3, 2).bfloat16(), F.mse_loss, []),
        "pass dtype=torch.float32",
    ),
    "integers": (
        lambda: Hessian(small()[0], F.mse_loss, [], dtype=torch.int8),
        "float32 or float64, got torch.int8",
    ),
}


@pytest.mark.filterwarnings("ignore::optbench.curvature.NotConvergedWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    ask, match = REFUSED[name]
    with pytest.raises(ValueError, match=match) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_no_complex_advice_changes_the_matrix() -> None:
    with pytest.raises(MeasurementError) as caught:
        Hessian(nn.Linear(3, 2, dtype=torch.complex64), F.mse_loss, [])
    assert "dtype=" not in str(caught.value)


def test_a_search_that_ends_too_early_says_so() -> None:
    wide = Matrix(torch.diag(torch.linspace(1, 0.99, 400, dtype=torch.float64)))
    with pytest.warns(
        NotConvergedWarning, match=r"did not converge in \d+ products \(max_hvps=8\)"
    ):
        pairs = top_eigenpairs(wide, accuracy=1e-8, max_hvps=8)
    assert not pairs.converged
