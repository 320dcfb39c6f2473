"""What one-parameter copies of an optimizer show: η T(−1), decay, and whether they adapt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optbench.dynamics.black_box.responses import (
    TOLERANCE,
    UnclearError,
    difference,
    feed,
    remember,
    small_response,
)
from optbench.dynamics.black_box.twin import fresh
from optbench.dynamics.momentum_filters import first_instability

SETTLE = 2000
"""Steps of an alternating gradient before the answer is read: slow averages die by then."""


@dataclass(frozen=True)
class Gain:
    """What the one-parameter copies of one group showed.

    Attributes:
        step: η T(−1).
        response: Change of one update per change of its gradient, once settled; for an adaptive
            optimizer, of a vanishing gradient once it is used to gradients ±1.
        adaptive: Whether it divides by a size that it has seen, rather than being linear.
        decay: Decoupled decay per step, for an adaptive optimizer.
        shift: Coupled weight decay, for an adaptive optimizer.
    """

    step: float
    response: float
    adaptive: bool
    decay: float = 0.0
    shift: float = 0.0


def probe(optimizer: Optimizer, group: dict[str, Any]) -> Gain:
    """Watch copies at the hyperparameters of one group; see `black_box` for what is concluded.

    Raises:
        UnclearError: If an alternation does not tell where stability is lost.
    """
    step, single = _alternate(optimizer, group, 1.0)
    double, twice = _alternate(optimizer, group, 2.0)
    # Linear: ±2 moves it twice as far as ±1. Then u = ηT(−1), and 2/u must be where it diverges.
    if math.isclose(double, 2 * step, rel_tol=TOLERANCE):
        edge = _divergence(optimizer, group, 2 / step)
        if not math.isclose(edge, 2 / step, rel_tol=1e-2):
            raise UnclearError(
                f"diverges at curvature {edge:g}, an alternation predicts {2 / step:g}"
            )
        w = single.param_groups[0]["params"]
        kick = difference(single, w, [torch.zeros_like(w[0])], [torch.ones_like(w[0])])[0].item()
        return Gain(step, kick, adaptive=False)
    # Normalized: ±2 moves it as far as ±1, as a step g/√ν does.
    if not math.isclose(double, step, rel_tol=1e-2):
        raise UnclearError(f"non-linear: gradients ±1 give updates ±{step:g}, ±2 give ±{double:g}")
    return _adaptive_gain(single, twice, step)


def _adaptive_gain(single: Optimizer, twice: Optimizer, step: float) -> Gain:
    """The gain of an adaptive optimizer from its copies that are used to ±1 and ±2."""
    w = single.param_groups[0]["params"]
    w[0].data.zero_()  # no weight, no coupled decay: the gradients fed are the gradients used
    jump = difference(single, w, [torch.ones_like(w[0])], [2 * torch.ones_like(w[0])])[0].item()
    if abs(jump) < TOLERANCE * step:
        raise UnclearError("normalizes its gradient, sign-like: one dimension hides the geometry")
    response = small_response(single, w, [torch.zeros_like(w[0])])[0].item()
    a, theta = first_instability(_impulse(single))
    # An alternation (angle π) is told by u; a slower oscillation must not turn unstable before.
    if theta < 3.1 and a < 0.95 * 2 / step:
        raise UnclearError(f"turns unstable at angle {theta:.2f}, before the alternation (π)")
    one, two = _pull(single), _pull(twice)
    if math.isclose(one, two, rel_tol=1e-2, abs_tol=1e-6):
        decay = one if one > 1e-6 else 0.0
        # Decoupled: (1−ηλ)w, whatever g. Stable below (2−ηλ)/(ηT(−1)), so u is scaled to that.
        return Gain(step * (2 - decay) / 2, response, adaptive=True, decay=decay)
    if math.isclose(one, 2 * two, rel_tol=1e-2):
        # Coupled: wd · w passes P, which ±2 has made twice as large, so it pulls half as much.
        shift = one / response
        unit = response * (1 + shift * step / 2)  # P there came from gradients 1 + wd·w, w = u/2
        return Gain(step, unit, adaptive=True, shift=shift)
    raise UnclearError(f"pulls its weight by {one:g} or {two:g} of it, for gradients ±1 or ±2")


def _impulse(fed: Optimizer) -> list[float]:
    """Updates after a unit impulse among the gradients ±1 that the copy is used to.

    The impulse replaces one of them by a small number, which leaves g² and so P alone.
    """
    (w,) = fed.param_groups[0]["params"]
    restore, size, steps = remember(fed, [w]), 1e-3, SETTLE // 4
    paths = []
    for extra in (0.0, size):
        w.data.zero_()
        path = [0.0]
        for t in range(steps):
            feed(fed, [w], [torch.full_like(w, (-1.0) ** t if t else extra)])
            path.append(w.item())
        restore()
        paths.append(path)
    moved = [(a - b) / size for a, b in zip(*paths, strict=True)]
    return [after - before for before, after in pairwise(moved)]


def _pull(fed: Optimizer) -> float:
    """The part of a small weight that one update removes when the gradient vanishes."""
    w: Tensor = fed.param_groups[0]["params"][0]
    size, zero = 1e-4, [torch.zeros_like(w)]
    moved, restore = [], remember(fed, [w])
    for offset in (0.0, size):
        w.data.fill_(offset)
        feed(fed, [w], zero)
        moved.append(offset - w.item())
        restore()
    return (moved[1] - moved[0]) / size


def _alternate(optimizer: Optimizer, group: dict[str, Any], size: float) -> tuple[float, Optimizer]:
    """The settled |update| for the gradients ±size, and the copy that was fed."""
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    fed = fresh(optimizer, [{**group, "params": [w]}])
    amplitudes = []
    for t in range(SETTLE):
        before = w.item()
        feed(fed, [w], [torch.full_like(w, size * (-1) ** t)])
        amplitudes.append((before - w.item()) * (-1) ** t)
    half = SETTLE // 2
    early, late = sum(amplitudes[half - 2 : half]) / 2, sum(amplitudes[-2:]) / 2
    if not (math.isfinite(early + late) and min(amplitudes[-2:]) > 0.5 * late > 0):
        raise UnclearError(
            f"gradients ±{size:g} end in updates of {late:g}, not against the gradient"
        )
    if not math.isclose(early, late, rel_tol=TOLERANCE):
        raise UnclearError(
            f"time-dependent: gradients ±{size:g} move it {early:g} after {half} steps and "
            f"{late:g} after {SETTLE}"
        )
    return late, fed


def _divergence(optimizer: Optimizer, group: dict[str, Any], guess: float) -> float:
    """The curvature a at which a fresh copy starts to diverge on ½aw², to 0.05 %."""

    def grows(a: float) -> bool:
        w = torch.full((1,), 1.0, dtype=torch.float64, requires_grad=True)
        fed, previous, sizes = fresh(optimizer, [{**group, "params": [w]}]), 1.0, []
        for _ in range(SETTLE // 4):
            feed(fed, [w], [a * w.detach()])
            sizes.append(abs(w.item() - previous))
            previous = w.item()
            if not sizes[-1] < 1e100:
                return True
        # past the transient, do the steps still grow? A mode of |z| > 1 shows in SETTLE/8 steps
        return max(sizes[-10:]) > max(sizes[len(sizes) // 2 : len(sizes) // 2 + 10])

    low, high = guess / 2, guess * 2
    if grows(low) or not grows(high):
        raise UnclearError(f"no onset of divergence between curvature {low:g} and {high:g}")
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if grows(middle) else (middle, high)
    return math.sqrt(low * high)
