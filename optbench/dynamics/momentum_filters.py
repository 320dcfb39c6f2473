"""T(−1): what the linear filters inside optimizers answer to an alternating gradient.

An optimizer w ← w − η T(z)[g] turns g_t = (−1)^t g, once transients have died, into the step
−η T(−1) g_t. The smaller T(−1), the more curvature it tolerates: λ₁ = 2/(η T(−1)).
"""

import numpy as np
from numpy.typing import ArrayLike


def heavy_ball(beta: float, dampening: float = 0.0) -> float:
    """T(−1) = (1−d)/(1+β) of m ← βm + (1−d)g: torch's SGD, RMSprop (d=0), an average (d=β)."""
    return (1 - dampening) / (1 + beta)


def ema(beta: float) -> float:
    """T(−1) = (1−β)/(1+β) of the running average m ← βm + (1−β)g."""
    return heavy_ball(beta, beta)


def nesterov(beta: float, dampening: float = 0.0) -> float:
    """T(−1) = 1 + β(1−d)/(1+β) of g + βm with m as in `heavy_ball`; (1+2β)/(1+β) for d=0."""
    return 1 + beta * heavy_ball(beta, dampening)


def first_instability(response: ArrayLike) -> tuple[float, float]:
    """The smallest curvature a > 0 at which w_{t+1} = w_t − a Σ_k h_k w_{t−k} turns unstable.

    A root of z − 1 + a H(z), H(z) = Σ h_k z^−k, reaches the circle at z = e^{iθ} where
    (1 − z)/H(z) is real and positive; that number is a.

    Args:
        response: h, steps of w against its gradient after a unit impulse, shape (K,).

    Returns:
        a and its angle θ in (0, π]; π for an alternation, where a = 2/H(−1). Inf if there is
        none. Angles below 8π/K are not resolved by K steps and left out, phases below 0.05 are
        taken as noise.
    """
    h = np.asarray(response, dtype=float)
    theta = np.linspace(8 * np.pi / len(h), np.pi, 4096)
    z = np.exp(1j * theta)
    a = (1 - z) / np.polynomial.polynomial.polyval(1 / z, h)
    # a root e^{iθ} exists where a(θ) is real: look for sign changes of its imaginary part
    clear = np.flatnonzero(np.abs(a.imag) > 0.05 * np.abs(a))  # below: zero up to noise
    turns = np.flatnonzero(np.diff(np.sign(a.imag[clear])) != 0)
    at = [(clear[i] + clear[i + 1]) // 2 for i in turns]
    found = [(float(a.real[i]), float(theta[i])) for i in at if a.real[i] > 0]
    end = float(a.real[-1])
    return min([*found, (end if end > 0 else float("inf"), float(np.pi))])
