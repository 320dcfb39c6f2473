"""Gradient descent at the edge of stability: every bound holds, at stated errors and costs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from optbench.curvature import Eigenpairs, Hessian, audit, top_eigenpairs
from optbench.curvature.chunks import Pair
from optbench.probes.tracking import Tracker
from perf.cases import CIFAR, cifar_run, descend, digits, digits_run, half_mse

Run = tuple[nn.Module, Pair, Iterator[int]]


def follow(
    run: Run, first: int, every: int = 10, accuracy: float = 5e-3, tracker: Tracker | None = None
) -> tuple[list[Eigenpairs], list[float], list[Tensor]]:
    """Warm-started pairs, solved or tracked; true λ_1 and u_1, u_2 (float64, five more digits)."""
    model, data, steps = run
    H = Hessian(model, half_mse, data, strategy="cached")
    double = Hessian(model, half_mse, data, dtype=torch.float64, strategy="cached")
    found: list[Eigenpairs] = []
    truth: list[float] = []
    vectors: list[Tensor] = []
    reference = None
    for step in steps:
        if step < first or step % every:
            continue
        with H, double:
            if tracker is not None:
                found.append(tracker.solve(H, "these", step, pytest.fail))
            else:
                found.append(
                    top_eigenpairs(H, accuracy=accuracy, start=found[-1] if found else None)
                )
            reference = top_eigenpairs(double, 2, accuracy=1e-8, guards=3, start=reference)
            truth.append(float(reference.values[0]))
            vectors.append(reference.vectors)
            if len(truth) % 10 == 1:
                assert not audit(double, reference, steps=12).lost
    return found, truth, vectors


def crossings(vectors: list[Tensor]) -> int:
    """How often the vector of λ_1 had been that of λ_2 the time before."""
    overlaps = [before.T @ after for before, after in pairwise(vectors)]
    return sum(bool(o[1, 0].abs() > o[0, 0].abs()) for o in overlaps)


def check(found: list[Eigenpairs], truth: list[float], worst: float, kinks: float = 0.0) -> None:
    assert all(pairs.converged for pairs in found)
    for pairs, exact in zip(found, truth, strict=True):
        error = exact - float(pairs.values[0])
        rounding = 1e-5 * exact  # 80 ε, which the bound has in it already
        assert -rounding - kinks * exact <= error <= float(pairs.bounds[0]) + kinks * exact
        assert error <= worst * exact


def test_digits() -> None:
    found, truth, vectors = follow(digits_run(0, steps=700), first=300)
    check(found, truth, 0.005)
    # among what was just checked are times at which λ_2 had overtaken λ_1
    assert crossings(vectors) >= 1
    assert median(pairs.hvps for pairs in found[1:]) <= 6
    assert median(truth[-20:]) == pytest.approx(2 / 0.5, rel=0.1)  # it is at the edge


def test_digits_tracked_from_the_start() -> None:
    found, truth, _ = follow(
        digits_run(1, lr=0.3, steps=450), first=0, tracker=Tracker("sharpness")
    )
    check(found, truth, 0.005)
    assert sum(pairs.held for pairs in found) > len(found) / 3  # while λ_1 is set apart
    assert all(pairs.hvps <= 2 for pairs in found if pairs.held)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "lr"), [(0, 0.3), (1, 0.3)])
def test_relu_long(seed: int, lr: float) -> None:
    """In float32 an input of a ReLU may lie on the other side of its kink: 7e-5 of λ_1 was seen."""
    torch.manual_seed(seed)
    layers = (nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    model, data = nn.Sequential(*layers), digits()
    found, truth, _ = follow((model, data, descend(model, data, lr, 1500)), first=300)
    check(found, truth, 0.005, kinks=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "lr"), [(0, 0.5), (1, 0.3), (2, 0.5), (4, 0.5), (5, 0.4), (6, 0.3), (7, 0.6)]
)
def test_digits_tracked_long(seed: int, lr: float) -> None:
    found, truth, _ = follow(
        digits_run(seed, lr, steps=1000), first=0, tracker=Tracker("sharpness")
    )
    check(found, truth, 0.005)


def test_digits_to_five_digits() -> None:
    found, truth, _ = follow(digits_run(1, lr=0.3, steps=500), first=400, accuracy=1e-5)
    check(found, truth, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "lr"), [(0, 0.5), (1, 0.3), (2, 0.5), (3, 0.4)])
@pytest.mark.parametrize("accuracy", [5e-3, 1e-5])
def test_digits_long(seed: int, lr: float, accuracy: float) -> None:
    found, truth, _ = follow(digits_run(seed, lr, steps=1000), first=300, accuracy=accuracy)
    check(found, truth, accuracy)
    assert median(pairs.hvps for pairs in found[1:]) <= (7 if accuracy == 5e-3 else 14)


@pytest.mark.slow
@pytest.mark.skipif(
    not CIFAR.exists(), reason="CIFAR-10's python pickles are not unpacked; set OPTBENCH_DATA"
)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("accuracy", [5e-3, 1e-5])
def test_cifar_subset(seed: int, accuracy: float) -> None:
    found, truth, _ = follow(cifar_run(seed, steps=650, count=300), first=400, accuracy=accuracy)
    check(found, truth, accuracy)
    assert median(pairs.hvps for pairs in found[1:]) <= (7 if accuracy == 5e-3 else 13)
