"""The papers' equations in numpy and float64, a generator each: it is sent gradients and gives weights.

A generator yields the weights at which it wants the gradient, and is sent that gradient; written
for one tensor. Norms over all tensors are those of this one.
"""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Trajectory = Generator[Array, Array, None]
Settings = dict[str, Any]


def sgd(w: Array, s: Settings) -> Trajectory:
    """arXiv:2103.00065, section 2: gradient descent; Polyak's and, as Sutskever et al. have it, Nesterov's momentum."""
    m = np.zeros_like(w)
    while True:
        g = yield w
        m = s["momentum"] * m + g
        w = w - s["lr"] * (g + s["momentum"] * m if s["nesterov"] else m)


def adam(w: Array, s: Settings) -> Trajectory:
    """arXiv:1412.6980, algorithm 1; arXiv:1904.09237 with amsgrad; arXiv:1711.05101 where the decay is decoupled."""
    (b1, b2), decoupled = s["betas"], s["_target_"].endswith("AdamW")
    m, v, top, t = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g, t = (yield w), t + 1
        w = w * (1 - s["lr"] * s["weight_decay"]) if decoupled else w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        top = np.maximum(top, v)
        seen = top if s.get("amsgrad") else v
        w = w - s["lr"] * (m / (1 - b1**t)) / (np.sqrt(seen / (1 - b2**t)) + s["eps"])


def adamax(w: Array, s: Settings) -> Trajectory:
    """arXiv:1412.6980, algorithm 2; torch adds eps to |g|."""
    b1, b2 = s["betas"]
    m, u, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g, t = (yield w), t + 1
        m, u = b1 * m + (1 - b1) * g, np.maximum(b2 * u, np.abs(g) + s["eps"])
        w = w - s["lr"] / (1 - b1**t) * m / u


def rmsprop(w: Array, s: Settings) -> Trajectory:
    """Tieleman and Hinton, lecture 6.5."""
    v = np.zeros_like(w)
    while True:
        g = yield w
        v = s["alpha"] * v + (1 - s["alpha"]) * g * g
        w = w - s["lr"] * g / (np.sqrt(v) + s["eps"])


def adagrad(w: Array, s: Settings) -> Trajectory:
    """Duchi et al. (2011), JMLR 12, the diagonal form."""
    v = np.zeros_like(w)
    while True:
        g = yield w
        v = v + g * g
        w = w - s["lr"] * g / (np.sqrt(v) + s["eps"])


def lion(w: Array, s: Settings) -> Trajectory:
    """arXiv:2302.06675, algorithm 2."""
    b1, b2 = s["betas"]
    m = np.zeros_like(w)
    while True:
        g = yield w
        w = w - s["lr"] * (np.sign(b1 * m + (1 - b1) * g) + s["weight_decay"] * w)
        m = b2 * m + (1 - b2) * g


def signum(w: Array, s: Settings) -> Trajectory:
    """arXiv:1802.04434, algorithm 2."""
    m = np.zeros_like(w)
    while True:
        g = yield w
        m = s["momentum"] * m + (1 - s["momentum"]) * g
        w = w - s["lr"] * np.sign(m)


def adabelief(w: Array, s: Settings) -> Trajectory:
    """arXiv:2010.07468, algorithm 2."""
    b1, b2 = s["betas"]
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g, t = (yield w), t + 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g - m) ** 2 + s["eps"]
        w = w - s["lr"] * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + s["eps"])


def ademamix(w: Array, s: Settings) -> Trajectory:
    """arXiv:2409.03137, algorithm 1 without schedules of α and β₃."""
    b1, b2, b3 = s["betas"]
    m, slow, v, t = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g, t = (yield w), t + 1
        m, slow, v = b1 * m + (1 - b1) * g, b3 * slow + (1 - b3) * g, b2 * v + (1 - b2) * g * g
        w = w - s["lr"] * (m / (1 - b1**t) + s["alpha"] * slow) / (
            np.sqrt(v / (1 - b2**t)) + s["eps"]
        )


def adan(w: Array, s: Settings) -> Trajectory:
    """arXiv:2208.06677, algorithm 1 with its β written as 1 − β, and the authors' bias corrections."""
    b1, b2, b3 = s["betas"]
    m, d, n, last, t = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), None, 0
    while True:
        g, t = (yield w), t + 1
        change = np.zeros_like(g) if last is None else g - last
        m, d = b1 * m + (1 - b1) * g, b2 * d + (1 - b2) * change
        n, last = b3 * n + (1 - b3) * (g + b2 * change) ** 2, g
        step = m / (1 - b1**t) + b2 * d / (1 - b2**t)
        w = (w - s["lr"] * step / (np.sqrt(n / (1 - b3**t)) + s["eps"])) / (
            1 + s["lr"] * s["weight_decay"]
        )


def lars(w: Array, s: Settings) -> Trajectory:
    """arXiv:1708.03888, algorithm 1; the learning rate outside the momentum, as everywhere in torch."""
    m = np.zeros_like(w)
    while True:
        g = yield w
        m = s["momentum"] * m + s["trust_coefficient"] * np.linalg.norm(w) / np.linalg.norm(g) * g
        w = w - s["lr"] * m


def lamb(w: Array, s: Settings) -> Trajectory:
    """arXiv:1904.00962, algorithm 2, without the bias corrections, which cancel in r/‖r‖ up to eps."""
    b1, b2 = s["betas"]
    m, v = np.zeros_like(w), np.zeros_like(w)
    while True:
        g = yield w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        r = m / (np.sqrt(v) + s["eps"]) + s["weight_decay"] * w
        w = w - s["lr"] * np.linalg.norm(w) / (np.linalg.norm(r) + s["eps"]) * r


def schedule_free(w: Array, s: Settings) -> Trajectory:
    """arXiv:2405.15682, equations (1) to (3), over SGD or Adam's denominator; the gradient is taken at y."""
    adaptive = "betas" in s
    beta = s["betas"][0] if adaptive else s["momentum"]
    x, z, v, t = w, w, np.zeros_like(w), 0
    while True:
        g, t = (yield (1 - beta) * z + beta * x), t + 1
        if adaptive:
            b2 = s["betas"][1]
            v = b2 * v + (1 - b2) * g * g
            g = g / (np.sqrt(v / (1 - b2**t)) + s["eps"])
        z = z - s["lr"] * g
        x = (1 - 1 / t) * x + z / t


def lookahead(w: Array, s: Settings) -> Trajectory:
    """arXiv:1907.08610, algorithm 1."""
    slow, inner, t = w, adam(w, s["base"]), 0
    fast = next(inner)
    # AdamW moves `fast`; what was pulled back lies beside, and decays as weights do
    pulled = np.zeros_like(w)
    while True:
        g, t = (yield fast + pulled), t + 1
        fast = inner.send(g)
        pulled = pulled * (1 - s["base"]["lr"] * s["base"]["weight_decay"])
        if t % s["k"] == 0:
            slow = slow + s["alpha"] * (fast + pulled - slow)
            pulled = slow - fast


def grokfast(w: Array, s: Settings) -> Trajectory:
    """arXiv:2405.20233, algorithm 2."""
    inner = adam(w, s["base"])
    w, slow = next(inner), None
    while True:
        g = yield w
        slow = g if slow is None else s["alpha"] * slow + (1 - s["alpha"]) * g
        w = inner.send(g + s["lamb"] * slow)


def sam(w: Array, s: Settings) -> Trajectory:
    """arXiv:2010.01412, algorithm 1; arXiv:2102.11600, algorithm 1, with xi."""
    while True:
        g = yield w
        size = np.abs(w) + s["xi"] if "xi" in s else np.ones_like(w)
        g = yield w + s["rho"] * size**2 * g / np.linalg.norm(size * g)
        w = w - s["base"]["lr"] * g


def shampoo(w: Array, s: Settings) -> Trajectory:
    """arXiv:1802.09568, algorithm 1, with L₀ = R₀ = εI."""

    def root(a: Array) -> Array:
        values, vectors = np.linalg.eigh(a)
        return np.asarray(vectors * values**-0.25 @ vectors.T)

    left, right = s["matrix_eps"] * np.eye(w.shape[0]), s["matrix_eps"] * np.eye(w.shape[1])
    while True:
        g = yield w
        left, right = left + g @ g.T, right + g.T @ g
        w = w - s["lr"] * root(left) @ g @ root(right)


REFERENCES: dict[str, Callable[[Array, Settings], Trajectory]] = {
    "sgd": sgd,
    "momentum": sgd,
    "nesterov": sgd,
    "adam": adam,
    "amsgrad": adam,
    "adamw": adam,
    "adamax": adamax,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "lion": lion,
    "signum": signum,
    "adabelief": adabelief,
    "ademamix": ademamix,
    "adan": adan,
    "lars": lars,
    "lamb": lamb,
    "schedule_free_sgd": schedule_free,
    "schedule_free_adamw": schedule_free,
    "lookahead": lookahead,
    "grokfast": grokfast,
    "sam": sam,
    "asam": sam,
    "shampoo": shampoo,
}
