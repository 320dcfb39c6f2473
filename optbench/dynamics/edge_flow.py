"""The Edge Flow: three coupled differential equations for gradient descent at its edge.

Write the iterates of gradient descent as w_t = c_t + (−1)ᵗ ε_t, with ε = ρ u and ‖u‖ = 1. A step
w ← w − η ∇L(w) is then, in its even and its odd part in ε, and with the odd part to first order,

    c_{t+1} − c_t = −½ η (∇L(c + ε) + ∇L(c − ε)),        ε_{t+1} − ε_t = η H(c) ε − 2 ε.

As differential equations, with time counted in steps and H = ∇²L(c):

    dc/dt = −η ∇ ½ (L(c + ρu) + L(c − ρu))               the center, on the symmetrized loss
    du/dt = η (H u − (uᵀHu) u)                           the direction: Rayleigh quotient dynamics
    dρ/dt = (η uᵀHu − 2) ρ                               the magnitude: grows where uᵀHu > 2/η

Where the center's curvature along u falls as ρ grows, as in nets, ρ holds it at 2/η. Nothing here
is a third derivative or an eigensolver: an Euler step costs two gradients and one product with H.

A difference of −2 a step is no small one: on a parabola a step multiplies ε by 1 − ηλ, so that ρ
has the rate log |1 − ηλ|, of which ηλ − 2 is the first order at the edge. `growth="per_step"` takes
that rate instead; it decides when an oscillation that was small has grown.

References:
    Marion (2026), "Edge Flow", arXiv:2606.18080, abstract: a center on a symmetrized loss, a
    direction by Rayleigh quotient dynamics, an exponential magnitude with threshold 2/η, two
    gradients and one product a step. Only that much of the paper could be read. The equations above
    were derived as said, not copied: the paper's may differ, in the rate of ρ most of all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from optbench.curvature import top_eigenpairs
from optbench.dynamics.flat_loss import FlatLoss
from optbench.errors import UserError

Growth = Literal["first_order", "per_step"]
"""Rate of ρ: ηλ − 2, or log |1 − ηλ|, with λ = uᵀHu."""

SUBSTEPS = 4
"""Euler steps a step of gradient descent: the center, whose ηλ is about 2, needs more than one."""

MOST = 100.0
"""|η uᵀHu| of a flow that has diverged: the magnitude would grow by a factor e^98 a step."""

ACCURACY = 1e-3
"""Relative accuracy of the eigenpair that the direction begins with."""


@dataclass(frozen=True)
class Oscillating:
    """The Edge Flow at a time.

    Attributes:
        center: c, (P,).
        direction: u, (P,), of length 1.
        magnitude: ρ ≥ 0, in the units of the weights.
        curvature: uᵀH(c)u a little before, at the begin of the last Euler step.
    """

    center: Tensor
    direction: Tensor
    magnitude: float
    curvature: float

    def predicted_loss(self, loss: FlatLoss) -> float:
        """Predicted time average of the loss, ½ (L(c + ρu) + L(c − ρu))."""
        off = self.magnitude * self.direction
        return 0.5 * (loss.value(self.center + off) + loss.value(self.center - off))


def oscillation_at(loss: FlatLoss, lr: float, weights: Tensor) -> Oscillating:
    """Where the flow begins: w_0 and w_1 of gradient descent are c ± ρu along the top eigenvector.

    With u of λ₁, the next step leads from uᵀw to uᵀw − η uᵀ∇L: ρ = ½ η |uᵀ∇L|, and c = w ∓ ρu lies
    halfway between along u.

    Args:
        loss: L.
        lr: η.
        weights: w_0, (P,).
    """
    at = loss.at(weights)
    found = top_eigenpairs(at.hessian, 1, accuracy=ACCURACY)
    u = found.vectors[:, 0]
    half = 0.5 * lr * float(u @ at.gradient)
    return Oscillating(weights - half * u, u, abs(half), float(found.values[0]))


def edge_flow(
    loss: FlatLoss,
    lr: float,
    start: Oscillating,
    substeps: int = SUBSTEPS,
    growth: Growth = "first_order",
) -> Iterator[Oscillating]:
    """The Edge Flow; what it is at after each unit of time, one step of gradient descent.

    Args:
        loss: L, twice differentiable.
        lr: η.
        start: Where it begins, see `oscillation_at`.
        substeps: Euler steps a unit of time.
        growth: Rate of ρ.

    Raises:
        UserError: If substeps is below 2: at its edge an Euler step of 1 makes the center
            oscillate.
        FloatingPointError: If the flow diverges.
    """
    if substeps < 2:
        raise UserError(f"substeps must be at least 2, got {substeps}: Euler steps would oscillate")
    at, dt = start, 1 / substeps
    while True:
        for _ in range(substeps):
            at = _euler(loss, lr, at, dt, growth)
        yield at


def _euler(loss: FlatLoss, lr: float, at: Oscillating, dt: float, growth: Growth) -> Oscillating:
    c, u, rho = at.center, at.direction, at.magnitude
    gradient = 0.5 * (loss.gradient(c + rho * u) + loss.gradient(c - rho * u))
    image = loss.at(c).hessian @ u
    curvature = float(u @ image)
    product = lr * curvature
    if not abs(product) < MOST:  # or not a number
        raise FloatingPointError(f"the flow diverged: η uᵀHu is {product:g}")
    direction = u + dt * lr * (image - curvature * u)
    # the power of dt is exact where uᵀHu stands still
    factor = math.exp(product - 2) if growth == "first_order" else abs(1 - product)
    return Oscillating(
        c - dt * lr * gradient,
        direction / torch.linalg.vector_norm(direction),
        rho * factor**dt,
        curvature,
    )
