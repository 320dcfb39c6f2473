"""Directional, critical, batch and norm sharpness, and sharpening, against closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optbench.dynamics.critical_step import critical_step
from optbench.dynamics.edges import MatVec
from optbench.dynamics.minibatch_curvature import (
    batch_sharpness,
    interaction,
    interaction_aware_sharpness,
)
from optbench.dynamics.norm_sharpness import norm_sharpness
from optbench.dynamics.progressive_sharpening import sharpening
from optbench.optimizers.norms import Geometry, dual_norm, lmo

from .frozen import spd


def quadratic(size: int = 5) -> tuple[Tensor, Tensor, Callable[[Tensor], float], MatVec]:
    """w, H, ½wᵀHw and its product."""
    h = 3 * spd(size, seed=5)
    w = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return w, h, lambda x: float(0.5 * x @ h @ x), lambda v: h @ v


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-4, 1e3), st.floats(1e-3, 1e3))
def test_critical_step_of_a_quadratic(lr: float, start: float) -> None:
    w, h, loss, hvp = quadratic()
    g = h @ w
    found = critical_step(lambda s: loss(w - s * lr * g), start=start, max_forwards=60)
    exact = 2 * float(g @ g) / float(g @ h @ g) / lr
    # regula falsi is exact on a quadratic: rounding of the loss only
    assert found.step == pytest.approx(exact, rel=1e-6)
    assert found.low <= found.step <= found.high
    assert found.sharpness(lr) == pytest.approx(float(g @ hvp(g) / (g @ g)), rel=1e-6)


def test_critical_step_is_cheap_and_bounded() -> None:
    w, h, loss, _ = quadratic()
    g = h @ w
    assert critical_step(lambda s: loss(w - s * 0.3 * g)).forwards <= 6
    quartic = critical_step(lambda s: (1 - s) ** 4, tolerance=1e-3)
    assert quartic.step == pytest.approx(2.0, rel=1e-3)
    assert critical_step(lambda s: s, max_forwards=20).step == 0.0
    assert math.isinf(critical_step(lambda s: s, max_forwards=20).sharpness(0.1))
    falling = critical_step(lambda s: -s, max_forwards=20)
    assert math.isinf(falling.step)
    assert falling.sharpness(0.1) == 0.0
    overflow = critical_step(lambda s: math.inf if s > 3 else -s, tolerance=1e-3)
    assert overflow.step == pytest.approx(3.0, rel=1e-2)
    with pytest.raises(ValueError, match="must be positive"):
        critical_step(lambda s: s, start=0.0)


def gaussian_batches(size: int, seed: int) -> Iterator[tuple[Tensor, MatVec]]:
    """1-D regression ½(wx)² with x ~ N(0, 1) at w = 1: g_B = h_B = mean x²."""
    g = torch.Generator().manual_seed(seed)
    while True:
        h = (torch.randn(size, generator=g, dtype=torch.float64) ** 2).mean()
        yield h.reshape(1), lambda v, h=h: h * v  # type: ignore[misc]


def test_batch_sharpness_of_gaussian_regression() -> None:
    """g_BᵀH_Bg_B/‖g_B‖² = mean x²: mean 1, variance 2/b. The interval is tested on 300 repeats."""
    b, n = 4, 50
    found = [batch_sharpness(gaussian_batches(b, seed), n) for seed in range(300)]
    covered = sum(e.low <= 1 <= e.high for e in found) / 300
    # 95 % nominal, ± 4 standard errors of 1.3 %, and a skewed sample costs some
    assert 0.89 < covered < 0.995
    mean = sum(e.value for e in found) / 300
    assert mean == pytest.approx(1.0, abs=4 * math.sqrt(2 / b / n / 300))
    half = sum(e.high - e.low for e in found) / 600
    assert half == pytest.approx(2.01 * math.sqrt(2 / b / n), rel=0.05)


def test_interactions_of_gaussian_regression() -> None:
    """With H = 1, g = 1: E[gHg]/‖g‖² = E[m²] = 1 + 2/b, and IAS = 1 exactly."""
    b = 4
    gradients = (g for g, _ in gaussian_batches(b, 0))
    one = torch.ones(1, dtype=torch.float64)
    gni = interaction(gradients, lambda v: v, one, 20000)
    # var(m²) = 4·2/b + … < 4 for b = 4: 4 standard errors
    assert gni.value == pytest.approx(1 + 2 / b, abs=4 * math.sqrt(4 / 20000))
    assert gni.low < 1 + 2 / b < gni.high
    ias = interaction_aware_sharpness(gradients, lambda v: v, 100)
    assert (ias.value, ias.high - ias.low) == (1.0, 0.0)


def test_ratio_of_batch_means() -> None:
    """E[g H_B g]/E[g g] = E[m³]/E[m²] = (b+4)/b for m = mean of b squared normals."""
    b = 6
    ms = torch.stack([g for g, _ in itertools.islice(gaussian_batches(b, 3), 40000)])
    assert float((ms**3).mean() / (ms**2).mean()) == pytest.approx((b + 4) / b, rel=0.02)


def test_interaction_aware_sharpness_in_two_dimensions() -> None:
    """E[gᵀHg]/E‖g‖² = tr(HC)/tr C for g ~ N(0, C)."""
    h, c = torch.tensor([5.0, 1.0]), torch.tensor([1.0, 3.0])
    g = torch.Generator().manual_seed(0)
    draws = (c.sqrt() * torch.randn(2, generator=g) for _ in itertools.count())
    found = interaction_aware_sharpness(draws, lambda v: h * v, 4000)
    assert found.low < float((h * c).sum() / c.sum()) < found.high
    assert found.relative < 0.05


def test_batches_stop_on_the_interval_and_refuse_nonsense() -> None:
    found = batch_sharpness(gaussian_batches(64, 0), 10000, until=0.05)
    assert found.batches < 200
    assert found.relative <= 0.05
    with pytest.raises(ValueError, match="at least 2"):
        batch_sharpness(gaussian_batches(4, 0), 1)
    with pytest.raises(ValueError, match="got 1"):
        batch_sharpness(itertools.islice(gaussian_batches(4, 0), 1), 5)
    with pytest.raises(ValueError, match="0/0"):
        batch_sharpness([(torch.zeros(1), lambda v: v)] * 3, 3)


def brute_force(h: Tensor, radii: Tensor) -> float:
    """Max dᵀHd over all corners d = ±radii."""
    n = len(h)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n - 1)), dtype=h.dtype)
    corners = radii * torch.cat([torch.ones(len(signs), 1, dtype=h.dtype), signs], dim=1)
    return float(((corners @ h) * corners).sum(1).max())


@pytest.mark.parametrize("definite", [True, False])
def test_max_norm_sharpness_against_all_corners(definite: bool) -> None:
    """A lower bound always; within 60 products it is the maximum nearly always for d ≤ 15."""
    exact = 0
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        n = 4 + seed % 12
        a = torch.randn(n, n, generator=g, dtype=torch.float64)
        h = a @ a.T if definite else (a + a.T) / 2
        p = torch.zeros(n, dtype=torch.float64)
        found = norm_sharpness(lambda v, h=h: h @ v, [p], "linf")  # type: ignore[misc]
        best = brute_force(h, torch.ones(n, dtype=torch.float64))
        assert found.hvps <= 60
        assert found.value <= best * (1 + 1e-12)
        assert found.value >= 0.9 * best
        assert float(found.direction @ h @ found.direction) == pytest.approx(found.value)
        exact += found.value > best * (1 - 1e-9)
    print(f"EXACT {exact}/30")
    assert exact >= 25


def test_max_norm_sharpness_with_radii() -> None:
    h = spd(6, seed=7)
    tensors = [torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    radii = torch.tensor([1, 1, 1, 1, 3, 3], dtype=torch.float64)
    found = norm_sharpness(lambda v: h @ v, tensors, "linf", radii=(1.0, 3.0))
    assert found.value == pytest.approx(brute_force(h, radii), rel=1e-9)


def test_l2_norm_sharpness_is_the_top_eigenvalue() -> None:
    h = spd(5, seed=8)
    found = norm_sharpness(lambda v: h @ v, [torch.zeros(5, dtype=torch.float64)], "l2")
    assert found.value == pytest.approx(1.0, rel=1e-3)


def test_spectral_norm_sharpness_of_known_hessians() -> None:
    """½tr(WᵀAW): S = tr A on square matrices. On 2×2, all orthogonal matrices are tried."""
    a = 2 * spd(3, seed=9)
    p = torch.zeros(3, 3, dtype=torch.float64)
    found = norm_sharpness(lambda v: (a @ v.reshape(3, 3)).reshape(-1), [p], "spectral")
    assert found.value == pytest.approx(float(a.trace()), rel=1e-9)
    h = spd(4, seed=10)
    best = 0.0
    for angle in torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64):
        c, s = float(angle.cos()), float(angle.sin())
        for d in ([c, -s, s, c], [c, s, s, -c]):
            v = torch.tensor(d, dtype=torch.float64)
            best = max(best, float(v @ h @ v))
    p = torch.zeros(2, 2, dtype=torch.float64)
    found = norm_sharpness(lambda v: h @ v, [p], "spectral")
    # the grid of angles misses the maximum by less than (π/2000)²
    assert found.value == pytest.approx(best, rel=1e-4)


def test_norm_sharpness_starts_from_what_it_is_given_and_draws_from_no_global_state() -> None:
    h = spd(8, seed=11)
    p = torch.zeros(8, dtype=torch.float64)
    state = torch.random.get_rng_state()
    cold = norm_sharpness(lambda v: h @ v, [p], "linf")
    warm = norm_sharpness(lambda v: h @ v, [p], "linf", starts=[cold.direction], max_hvps=2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert warm.value == pytest.approx(cold.value)
    with pytest.raises(ValueError, match="max_hvps"):
        norm_sharpness(lambda v: h @ v, [p], "linf", max_hvps=0)


@pytest.mark.parametrize("geometry", ["l2", "linf", "spectral"])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (5,), (2, 3, 2)])
def test_dual_norm_is_what_the_lmo_attains(geometry: Geometry, shape: tuple[int, ...]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float((g * lmo(g, geometry)).sum()) == pytest.approx(dual_norm(g, geometry))
    assert not bool(lmo(torch.zeros_like(g), geometry).any())


def test_sharpening_of_a_quartic() -> None:
    """L = w⁴/4 + a w²/2: S = 3w² + a, ∇S = 6w, α = −(w³ + aw)·6w, β = 36w²."""
    w = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    found = sharpening(lambda: (w**4 / 4 + w**2).sum(), [w], torch.ones(1, dtype=torch.float64))
    assert found.sharpness == pytest.approx(3 * 0.49 + 2)
    assert found.rate == pytest.approx(-(0.343 + 1.4) * 4.2)
    assert found.stabilization == pytest.approx(36 * 0.49)
    assert w.grad is None


def test_sharpening_is_the_derivative_of_the_eigenvalue() -> None:
    """Against central differences of λ₁ for a small net: error O(h²) = 1e-8 relative to 1e-6."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(7, 2, generator=g, dtype=torch.float64)
    y = torch.randn(7, generator=g, dtype=torch.float64)
    a = torch.randn(2, 2, generator=g, dtype=torch.float64).requires_grad_()
    b = torch.randn(2, generator=g, dtype=torch.float64).requires_grad_()

    def loss_at(flat: Tensor) -> Tensor:
        return ((torch.tanh(x @ flat[:4].reshape(2, 2)) @ flat[4:] - y) ** 2).mean()

    def top(flat: Tensor) -> tuple[float, Tensor]:
        h = torch.autograd.functional.hessian(loss_at, flat)
        values, vectors = torch.linalg.eigh(h)
        return float(values[-1]), vectors[:, -1]

    flat = torch.cat([a.detach().reshape(-1), b.detach()])
    value, u = top(flat)
    found = sharpening(lambda: ((torch.tanh(x @ a) @ b - y) ** 2).mean(), [a, b], u)
    assert found.sharpness == pytest.approx(value)
    for i in range(6):
        e = torch.zeros(6, dtype=torch.float64)
        e[i] = 1e-4
        slope = (top(flat + e)[0] - top(flat - e)[0]) / 2e-4
        assert float(found.gradient[i]) == pytest.approx(slope, rel=1e-5, abs=1e-6)
    with pytest.raises(ValueError, match="unit vector"):
        sharpening(lambda: a.sum(), [a, b], 2 * u)


def test_sharpening_of_a_quadratic_is_zero_and_unused_parameters_are_allowed() -> None:
    w, unused = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    u = torch.tensor([1.0, 0.0, 0.0])
    found = sharpening(lambda: (w**2).sum(), [w, unused], u)
    assert (found.sharpness, found.rate, found.stabilization) == (2.0, 0.0, 0.0)
