"""The amplitude at which an alternation of normalised steps stands: their edge of stability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.dynamics.training_map import TrainingMap


@dataclass(frozen=True)
class Alternation:
    """The part of training that alternates from step to step: measured, and predicted.

    Vectors are flat, shape (size,), in the numbers of `TrainingMap.names`: weights, then state.

    Attributes:
        measured: (x₀ − 2x₁ + x₂)/4 of three states in a row, in which a drift cancels.
        predicted: z with F(x̄ + z) − F(x̄ − z) = −2z, from the centre x̄ = (x₀ + 2x₁ + x₂)/4 alone.
        change: Relative change of z in the last iteration.
        iterations: How many it took.
    """

    measured: Tensor
    predicted: Tensor
    change: float
    iterations: int


def alternation(
    step: TrainingMap,
    *,
    start: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
) -> Alternation:
    """Predict the alternation about the present centre by harmonic balance at z = −1.

    Steps of one size do not respond to a change in proportion to it: half of a sign's response to
    ±z is η whatever z. The gain that counts is that at the amplitude in question, the describing
    function, and the amplitude is where the oscillation reproduces itself with opposite sign:

        ½ (F(x̄ + z) − F(x̄ − z)) = −z.

    - sign descent: z_i = ±η/2 where (η/2)|(Hs)_i| exceeds the mean gradient |ḡ_i|, else 0;
    - g/‖g‖ (also Muon's polar factor, turned): curvature a across ḡ ≠ 0 has the gain η/√(ḡ² + a²z²)
      and a z = √((ηa/2)² − ḡ²), from ηa = 2ḡ on, where the linear multiplier 1 − ηa/ḡ is −1.

    The solution need not be unique: z = 0 stands wherever the mean gradient holds every sign, and
    signs that hold each other have several corners. What is found is one that an alternation of
    the size of the step falls to.

    With momentum the alternating gradient reaches the step times T(−1), so that the same mean
    gradient silences it sooner: (1−β)/(1+β) for Signum. Solved by z ← ½z − ¼(F(x̄+z) − F(x̄−z)),
    which settles a sign in one iteration. For linear steps there is no amplitude: z goes to 0 below
    the edge, and grows above.

    Args:
        step: Map at the present state x₀; every iteration costs two updates.
        start: z to start from; weights by about the coming update in random directions if absent:
            a sign that the mean gradient holds is not moved by a small change.
        max_iterations: Most iterations.
        tolerance: Relative change of z at which to stop.

    References:
        Gelb & Vander Velde (1968), Multiple-Input Describing Functions: the harmonic balance.
    """
    found = cycle(step, 1, start=start, max_iterations=max_iterations, tolerance=tolerance)
    return Alternation(found.measured[0], found.predicted[0], found.change, found.iterations)


@dataclass(frozen=True)
class Cycle:
    """The part of training that turns its sign every k steps: measured, and predicted.

    Attributes:
        measured: (x_t − 2x_{t+k} + x_{t+2k})/4 at t = 0 … k − 1, shape (k, size).
        predicted: z_t about the centre x̄ = (x₀ + 2x_k + x_{2k})/4, shape (k, size). A coordinate
            may be at another phase than in the run, so that it is the mean square over t that can
            be compared.
        change: Relative change of z₀ in the last iteration.
        iterations: How many it took.
    """

    measured: Tensor
    predicted: Tensor
    change: float
    iterations: int


def cycle(
    step: TrainingMap,
    half_period: int,
    *,
    start: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
) -> Cycle:
    """Predict an oscillation that turns its sign every k steps, about its centre.

        ½ (Fᵏ(x̄ + z₀) − Fᵏ(x̄ − z₀)) = −z₀,   z_t = ½ (Fᵗ(x̄ + z₀) − Fᵗ(x̄ − z₀))

    `alternation` has k = 1. With momentum β there are others: on ½hx² Signum turns every k steps,
    in a triangle of height kη/2 about x̄, if the centre is near enough to the minimum,

        |x̄| < η min(k/2 − c (1 − βᵏ)/(1 + βᵏ), 1 − k/2 + c (1 − 2βᵏ⁻¹/(1 + βᵏ))),  c = β/(1 − β),

    since m_j = h(kη/2 − jη) + chη(1 − 2βʲ/(1 + βᵏ)) + hx̄ on its way down has to keep its sign for
    j = 0 … k − 1. For β = 0 that is k = 1 alone; for β = .9 k = 1 to 7, of which k = 1 bears the
    least |x̄|, (1 − β)/(1 + β) of η/2.

    Args:
        step: Map at the present state x₀; every iteration costs 2k updates.
        half_period: k.
        start: z₀ to start from; see `alternation`.
        max_iterations: Most iterations.
        tolerance: Relative change of z₀ at which to stop.
    """
    k = half_period
    states = [step.origin, *(step.image(step.origin, updates=t) for t in range(1, 3 * k))]
    centre = (states[0] + 2 * states[k] + states[2 * k]) / 4
    measured = [(states[t] - 2 * states[t + k] + states[t + 2 * k]) / 4 for t in range(k)]
    z = start
    if z is None:
        g = torch.Generator().manual_seed(0)
        weights = torch.tensor([name == "weight" for name in step.names()])
        noise = torch.randn(step.size, generator=g, dtype=torch.float64)
        z = torch.where(weights, step.scale * (noise.sign() + 0.1 * noise), 0.0)
    change, iterations = 1.0, 0
    while iterations < max_iterations:
        iterations += 1
        reply = (step.image(centre + z, updates=k) - step.image(centre - z, updates=k)) / 2
        new = (z - reply) / 2
        change = float((new - z).norm() / max(1e-300, float(z.norm())))
        z = new
        if change <= tolerance or float(z.norm()) < 1e-12 * float(centre.norm()):
            break
    later = [
        (step.image(centre + z, updates=t) - step.image(centre - z, updates=t)) / 2
        for t in range(1, k)
    ]
    return Cycle(torch.stack(measured), torch.stack([z, *later]), change, iterations)
