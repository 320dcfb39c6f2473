"""The learning rate at which an optimizer would start at its edge, not above it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from optbench.dynamics.edges import EigenvalueEdge, KnownEdge, NormBallEdge
from optbench.optimizers.nested import nested

FAR = 2.0
"""Distance beyond which a start is far above the edge.

It is λ₁ = 4/η for gradient descent: from between 2/η and 4/η a wide network comes back by a
catapult to where it is flatter, from beyond it does not (Lewkowycz et al. 2020, arXiv:2003.02218).
"""
TRIES = 20


@contextmanager
def scaled_rates(optimizer: Optimizer, scale: float) -> Iterator[None]:
    """Context in which every learning rate is so many times what it is; then it is as it was."""
    groups = {id(g): g for part in nested(optimizer) for g in part.param_groups if "lr" in g}
    before = {key: group["lr"] for key, group in groups.items()}
    try:
        for key, group in groups.items():
            group["lr"] = before[key] * scale
        yield
    finally:
        for key, group in groups.items():
            group["lr"] = before[key]


def base_rate(optimizer: Optimizer) -> float | None:
    """The one learning rate that was set, before any schedule; None if there are several."""
    rates = {float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups if "lr" in g}
    return rates.pop() if len(rates) == 1 else None


def scale_to_the_edge(
    optimizer: Optimizer, distance: float, distance_at: Callable[[], float | None]
) -> float | None:
    """The largest factor found for all learning rates at which the distance is at most 1.

    Thresholds are 2/η or nearly so: with decay or SAM in them they are not quite. The factor is
    divided by what the distance still is, until that is at most 1, and is then rounded down so that
    the rate has two digits.

    Args:
        optimizer: Its learning rates are changed for the question, and restored.
        distance: Distance to the edge as it is, above 1.
        distance_at: Distance to the edge with the optimizer as it is then; None where unknown.

    Returns:
        The factor; None if none was found.
    """
    rate, scale = base_rate(optimizer) or 1.0, 1.0
    for _ in range(TRIES):
        scale = _rounded_down(rate * scale / distance) / rate
        if not scale > 0:
            return None
        with scaled_rates(optimizer, scale):
            found = distance_at()
        if found is None or not math.isfinite(found):
            return None
        if found <= 1:
            return scale
        distance = found
    return None


def same_but_for_the_threshold(one: KnownEdge, other: KnownEdge) -> bool:
    """Whether two edges of one optimizer are on the same quantity, at thresholds of their own."""
    match one, other:
        case NormBallEdge(), NormBallEdge():
            pairs = zip(one.radii, other.radii, strict=True)
            return one.norm == other.norm and all(math.isclose(a, b) for a, b in pairs)
        case EigenvalueEdge(), EigenvalueEdge():
            if (one.shift, one.ascent) != (other.shift, other.ascent):
                return False
            size = sum(p.numel() for p in one.parameters)
            v = torch.ones(size, device=one.parameters[0].device)
            return torch.allclose(one.inverse_sqrt(v), other.inverse_sqrt(v), rtol=1e-5, atol=0)
    return False


def _rounded_down(value: float) -> float:
    """The value with two digits, not above it; 0 where it is none."""
    if not (value > 0 and math.isfinite(value)):
        return 0.0
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / digit * (1 + 1e-9)) * digit:.2g}")
