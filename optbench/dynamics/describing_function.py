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
    zero = step.origin
    one, two = step.image(zero), step.image(zero, updates=2)
    centre, measured = (zero + 2 * one + two) / 4, (zero - 2 * one + two) / 4
    g = torch.Generator().manual_seed(0)
    z = start
    if z is None:
        weights = torch.tensor([name == "weight" for name in step.names()])
        noise = torch.randn(step.size, generator=g, dtype=torch.float64)
        z = torch.where(weights, step.scale * (noise.sign() + 0.1 * noise), 0.0)
    change, iterations = 1.0, 0
    while iterations < max_iterations:
        iterations += 1
        reply = (step.image(centre + z) - step.image(centre - z)) / 2
        new = (z - reply) / 2
        change = float((new - z).norm() / max(1e-300, float(z.norm())))
        z = new
        if change <= tolerance or float(z.norm()) < 1e-12 * float(centre.norm()):
            break
    return Alternation(measured, z, change, iterations)
