"""Closed forms of optimizers that are not torch's, against their own update code."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dynamics.asked import distance, edge, source

from .frozen import Frozen, spd, warmed
from .test_edge_torch import guess, top

po = pytest.importorskip("pytorch_optimizer")

SHAPES: list[tuple[int, ...]] = [(2, 3), (3,)]
FASTER: list[dict[str, Any]] = [{"lr": 0.03}]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ademamix": ("AdEMAMix", {"lr": 0.01, "betas": (0.9, 0.99, 0.99), "weight_decay": 0.0}),
    "ademamix+decay": ("AdEMAMix", {"lr": 0.01, "weight_decay": 10.0}),
    "soap": ("SOAP", {"lr": 0.01, "weight_decay": 0.0}),
    "soap+decay": ("SOAP", {"lr": 0.01, "weight_decay": 20.0, "precondition_frequency": 3}),
    "soap 1d": ("SOAP", {"lr": 0.01, "precondition_1d": True, "correct_bias": False}),
    "shampoo": ("Shampoo", {"lr": 0.01}),
    "shampoo+wd": ("Shampoo", {"lr": 0.01, "weight_decay": 5.0}),
    "soap groups": ("SOAP", {"lr": 0.01, "weight_decay": 0.0}),
    "shampoo groups": ("Shampoo", {"lr": 0.01}),
}


@pytest.mark.parametrize("name", CASES)
def test_stability_is_lost_at_the_threshold(name: str) -> None:
    cls, options = CASES[name]
    overrides = FASTER if name.endswith("groups") else []
    optimizer, params = warmed(partial(getattr(po, cls), **options), SHAPES, overrides, 12)
    e = edge(optimizer)
    assert source(e) == "closed form", e.reason
    hessian = spd(9, seed=0)
    found = Frozen(optimizer, params).critical(hessian, guess(e, hessian))
    ratio = distance(e, top(e, found * hessian))
    print(f"RATIO {name:20s} {e.formula:60s} {ratio:.5f}")
    # bisection 3e-4, as for torch's own
    assert ratio == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", ["AdEMAMix", "SOAP", "Shampoo"])
def test_before_the_first_step_there_is_no_preconditioner(name: str) -> None:
    e = edge(getattr(po, name)([torch.ones(2, 3, requires_grad=True)], lr=0.01))
    assert source(e) == "unknown" and "no step taken yet" in e.reason


@pytest.mark.parametrize("name", ["LaProp", "QHAdam", "StableAdamW", "AdaBelief"])
def test_a_probed_edge_is_where_stability_is_lost(name: str) -> None:
    """The black box knows neither T nor P of these; after 400 steps bias correction is small."""
    make = partial(getattr(po, name), lr=0.01, weight_decay=1.0)
    optimizer, params = warmed(make, SHAPES, [], 400)
    e = edge(optimizer)
    assert source(e) == "probed", e.reason
    hessian = spd(9, seed=0)
    found = Frozen(optimizer, params).critical(hessian, guess(e, hessian))
    ratio = distance(e, top(e, found * hessian))
    print(f"\nRATIO {name:20s} {e.formula:60s} {ratio:.5f}")
    # √((1−.999⁴⁰¹)/(1−.999⁴⁰⁰)) and the response's slope through g²: 0.2 % each
    assert ratio == pytest.approx(1.0, abs=5e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdaBelief", {"lr": 0.01}),
        ("Adan", {"lr": 0.01}),
        ("Lamb", {"lr": 0.01}),
        ("ScheduleFreeSGD", {"lr": 0.1}),
        ("QHAdam", {"lr": 0.01}),
        ("Tiger", {"lr": 0.01}),
        ("SGDW", {"lr": 0.1, "momentum": 0.9}),
        ("QHM", {"lr": 0.1}),
        ("AggMo", {"lr": 0.1}),
        ("PID", {"lr": 0.1}),
        ("AdaShift", {"lr": 0.01}),
        ("ADOPT", {"lr": 0.01}),
        ("StableAdamW", {"lr": 0.01}),
        ("Prodigy", {}),
        ("LaProp", {"lr": 0.01}),
    ],
)
def test_the_black_box_answers_or_declines(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    params: list[Tensor] = [
        torch.randn(3, 2, requires_grad=True),
        torch.randn(3, requires_grad=True),
    ]
    cls = getattr(po, name, None)
    if cls is None:
        pytest.skip(f"this version has no {name}")
    optimizer = cls(params, **options)
    for _ in range(30):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    e = edge(optimizer)
    assert source(e) in {"probed", "unknown"}
    assert source(e) == "probed" or e.reason
