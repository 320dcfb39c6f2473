"""SAM and normalized steps against simulation on parabolas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, Muon, Optimizer

from optbench.dynamics import EigenvalueEdge, GradientEdge, NormStep
from tests.dynamics.asked import distance, edge, norm_edge, reordered, sam_edge, source

from .frozen import Frozen, spd, warmed
from .test_edge_torch import top


def sam_cycle(base: Optimizer, rho: float, hessian: Tensor, steps: int = 1000) -> Tensor:
    """The gradient where SAM over a base settles on ½wᵀHw: an alternation of fixed size."""
    params = [p for g in base.param_groups for p in g["params"]]
    sizes = [p.numel() for p in params]
    frozen = Frozen(base, params) if base.state else None
    for p in params:
        p.data.fill_(1e-7)
        state = base.state.get(p, {})
        if "exp_avg" in state:
            state["exp_avg"].zero_()
    w = torch.cat([p.detach().reshape(-1) for p in params])
    for _ in range(steps):
        if frozen is not None:
            frozen.rewind()
        g = hessian @ w
        ascended = hessian @ (w + rho * g / g.norm())
        for p, piece in zip(params, torch.split(ascended, sizes), strict=True):
            p.grad = piece.reshape(p.shape).clone()
        base.step()
        w = torch.cat([p.detach().reshape(-1) for p in params])
    return hessian @ w


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.5, "nesterov": True},
    ],
)
def test_sam_settles_where_its_edge_meets_the_curvature(options: dict[str, Any]) -> None:
    """Below the base's edge SAM still oscillates, at the ‖g‖ for which λ₁ is its threshold."""
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    base = SGD([p], **options)
    hessian = 0.7 * edge(base).threshold * spd(3, seed=2)
    gradient = sam_cycle(base, 0.05, hessian)
    e = sam_edge(edge(base), 0.05).at(gradient)
    # the alternation is stationary: rounding only
    assert distance(e, top(e, hessian)) == pytest.approx(1.0, abs=1e-6)
    assert e.threshold < edge(base).threshold


def test_sam_over_a_preconditioned_base() -> None:
    base, _ = warmed(lambda groups: Adam(groups, lr=1e-3), [(2, 2), (3,)], [])
    hessian = spd(7, seed=3)
    e = edge(base)
    hessian = 0.6 * e.threshold / top(e, hessian) * hessian
    # the second moments see tiny gradients only if ρ is tiny
    gradient = sam_cycle(base, 1e-7, hessian)
    e = sam_edge(e, 1e-7).at(gradient)
    assert e.ascent > 0
    assert distance(e, top(e, hessian)) == pytest.approx(1.0, abs=1e-3)


def test_sam_with_groups_and_weight_decay() -> None:
    p, q = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    groups = [{"params": [p], "weight_decay": 2.0}, {"params": [q], "lr": 0.05, "momentum": 0.6}]
    base = SGD(groups, lr=0.1)
    hessian = 8.0 * spd(4, seed=4)
    gradient = torch.zeros(4)
    params, w = [p, q], torch.full((4,), 0.3, dtype=torch.float64)
    for x in params:
        x.data.fill_(0.3)
    for _ in range(4000):
        g = hessian @ w
        ascended = hessian @ (w + 0.2 * g / g.norm())
        p.grad, q.grad = ascended[:2].clone(), ascended[2:].clone()
        base.step()
        w = torch.cat([p.detach(), q.detach()])
    gradient = hessian @ w
    e = sam_edge(edge(base), 0.2).at(gradient)
    assert distance(e, top(e, hessian)) == pytest.approx(1.0, abs=1e-6)


def test_sam_limits() -> None:
    p = torch.zeros(2, requires_grad=True)
    base = edge(SGD([p], lr=0.1))
    assert sam_edge(base, 0.0) is base
    gradient = torch.tensor([3.0, 4.0])
    rho, norm = 0.5, 5.0
    expected = norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (0.1 * norm)) - 1)
    assert sam_edge(base, rho).at(gradient).threshold == pytest.approx(expected, rel=1e-12)
    # ρ → 0 gives back 2/η, without cancellation
    assert sam_edge(base, 1e-15).at(gradient).threshold == pytest.approx(20.0, rel=1e-12)
    assert sam_edge(base, rho).at(torch.zeros(2)).threshold == 0.0


@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_sign_descent_settles_at_its_edge(decay: float) -> None:
    """On ½aw² the step alternates within η, so that |g| averages to where S∞ = a is the edge."""
    p = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    a, lr, thresholds = 2.0, 0.0173, []
    e = norm_edge([NormStep(p, lr, decay=lr * decay)], "linf")
    w = 1.3
    for t in range(400):
        w = (1 - lr * decay) * w - lr * math.copysign(1, w)
        if t >= 200:
            thresholds.append(e.at(torch.tensor([a * w])).threshold)
    # the two sides of the cycle average to a; a decay moves them by O(ηλ)² ≈ 3e-3
    assert a / np.mean(thresholds) == pytest.approx(1.0, abs=1e-6 if decay == 0 else 5e-3)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_momentum_of_sign_steps_holds_on_time_average_only(beta: float) -> None:
    """2⟨g, s⟩/η averages to a; 2‖g‖₁/η does not, and the factor (1+β)/(1−β) is far off."""
    p = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    a, lr, w, m = 2.0, 0.0173, 1.3, 0.0
    aligned, norms = [], []
    for t in range(6000):
        g, buffer = a * w, torch.tensor([m], dtype=torch.float64)
        step = NormStep(p, lr, direction=lambda v, b=buffer: v.lerp(b, beta))  # type: ignore[misc]
        if t >= 3000:
            aligned.append(
                norm_edge([step], "linf").at(torch.tensor([g], dtype=torch.float64)).threshold
            )
            norms.append(2 * abs(g) / lr)
        m = beta * m + (1 - beta) * g
        w -= lr * math.copysign(1, m)
    # telescoping: the mean over T steps is off by O(period/T)
    assert a / np.mean(aligned) == pytest.approx(1.0, abs=2e-2)
    if beta:
        assert 0.6 < a / np.mean(norms) < 0.95
        assert a / (np.mean(norms) * (1 + beta) / (1 - beta)) < 0.4


def test_spectral_steps_settle_at_their_edge() -> None:
    """On ½a‖W‖_F² with the exact polar step: 2Σ‖G‖_*/η averages to S = a·rank."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, generator=g, dtype=torch.float64)
    a, lr, thresholds = 2.0, 0.0173, []
    e = norm_edge([NormStep(w.clone().requires_grad_(), lr)], "spectral")
    for t in range(2000):
        u, _, vt = torch.linalg.svd(w, full_matrices=False)
        w = w - lr * u @ vt
        if t >= 1000:
            thresholds.append(e.at((a * w).reshape(-1)).threshold)
    assert 3 * a / np.mean(thresholds) == pytest.approx(1.0, abs=2e-3)


def test_groups_of_a_normalized_step_become_radii() -> None:
    p, q = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    e = norm_edge([NormStep(p, 0.1), NormStep(q, 0.3)], "linf")
    # step (−.1 s₁, −.3 s₂): ½·.1²·S = .1·(‖g₁‖ + 3‖g₂‖) at the edge
    at = e.at(torch.tensor([1.0, -2.0, 4.0]))
    assert at.radii == pytest.approx((1.0, 3.0))
    assert at.threshold == pytest.approx(2 * (3 + 3 * 4) / 0.1)


def test_muon_follows_its_own_momentum() -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.randn(4, 3, generator=g).requires_grad_()
    optimizer: Optimizer = Muon([p], lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.0)
    p.grad = torch.randn(4, 3, generator=g)
    optimizer.step()
    gradient = torch.randn(4, 3, generator=g)
    threshold = edge(optimizer).at(gradient.reshape(-1)).threshold
    before, p.grad = p.detach().clone(), gradient.clone()
    optimizer.step()
    moved = float(((before - p.detach()) * gradient).sum())
    # Newton–Schulz leaves singular values between about 0.7 and 1.2
    assert moved * 2 / 0.1**2 == pytest.approx(threshold, rel=0.3)


def test_pytorch_optimizer_signs_and_sam() -> None:
    po = pytest.importorskip("pytorch_optimizer")
    g = torch.Generator().manual_seed(0)
    for cls, options in (
        (po.Lion, {}),
        (po.SignSGD, {"momentum": 0.9}),
        (po.SignSGD, {"momentum": 0.0}),
    ):
        p = torch.randn(5, generator=g).requires_grad_()
        optimizer = cls([p], lr=0.1, **options)
        p.grad = torch.randn(5, generator=g)
        optimizer.step()
        gradient = torch.randn(5, generator=g)
        e = edge(optimizer)
        assert e.quantity == "linf sharpness"
        assert source(e) == ("closed form" if options == {"momentum": 0.0} else "conjecture")
        threshold = e.at(gradient).threshold
        before, p.grad = p.detach().clone(), gradient.clone()
        optimizer.step()
        moved = float((before - p.detach()) @ gradient)
        assert moved * 2 / 0.1**2 == pytest.approx(threshold, rel=1e-5)
    p = torch.zeros(2, requires_grad=True)
    sam = edge(po.SAM([p], SGD, rho=0.5, lr=0.1))
    assert isinstance(sam, GradientEdge)
    at = torch.tensor([3.0, 4.0])
    known, expected = sam.at(at), sam_edge(edge(SGD([p], lr=0.1)), 0.5).at(at)
    assert isinstance(known, EigenvalueEdge)
    assert known.threshold == pytest.approx(expected.threshold)
    assert source(edge(po.SAM([p], SGD, rho=0.5, adaptive=True, lr=0.1))) == "unknown"


def test_reordering_a_norm_edge() -> None:
    p, q, r = (torch.zeros(n, requires_grad=True) for n in (2, 1, 1))
    e = reordered(norm_edge([NormStep(q, 0.3), NormStep(p, 0.1)], "linf"), [p, q, r])
    # the gradient of what the optimizer does not hold does not count
    at = e.at(torch.tensor([1.0, -2.0, 4.0, 100.0]))
    assert at.radii == pytest.approx((1 / 3, 1.0, 0.0))
    assert at.threshold == pytest.approx(2 * (4 + 3 / 3) / 0.3)
    assert at.parameters == (p, q, r)
