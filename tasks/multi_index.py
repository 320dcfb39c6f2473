"""Teacher and student: a function of a few hidden directions among many."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from optbench.boundary.kinds import Count, CountFromZero, NotNegative, Size
from optbench.errors import UserError, nearest
from optbench.seeds import generator
from optbench.task import Split, Task, half_mse

# Each with mean 0 and mean square 1 under a standard normal, and its information exponent.
LINKS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "linear": (lambda z: z, 1),
    "relu": (lambda z: (z.relu() - (2 * math.pi) ** -0.5) / (0.5 - 0.5 / math.pi) ** 0.5, 1),
    "sign": (lambda z: z.sign(), 1),
    "absolute": (lambda z: (z.abs() - (2 / math.pi) ** 0.5) / (1 - 2 / math.pi) ** 0.5, 2),
    "he2": (lambda z: (z**2 - 1) / 2**0.5, 2),
    "he3": (lambda z: (z**3 - 3 * z) / 6**0.5, 3),
    "he4": (lambda z: (z**4 - 6 * z**2 + 3) / 24**0.5, 4),
}
COMBINATIONS = ("sum", "staircase")


def multi_index(
    seed: int,
    dimension: Size = 20,
    directions: Size = 1,
    link: str = "he2",
    combine: Literal["sum", "staircase"] = "sum",
    train_size: Count = 2000,
    val_size: CountFromZero = 500,
    test_size: Count = 2000,
    noise: NotNegative = 0.0,
) -> Task:
    """Regression on a function of u_1·x, …, u_k·x, orthonormal u_j drawn at random, x ~ N(0, I_d).

    `sum` is y = k^-½ Σ_j g(u_j·x); `staircase` is y = k^-½ Σ_j Π_{i≤j} g(u_i·x), where each
    direction can be found only after those before it. E y = 0 (but for a staircase of links other
    than odd ones, where it is 0 too, the factors being independent) and E y² = 1, so predicting 0
    has loss ½. With the link's information exponent s (the lowest non-zero Hermite coefficient),
    one pass of gradient descent needs about d^(s−1) examples for s > 2 and about d for s = 1, d log
    d for s = 2: below, the training loss falls and the test loss stays.

    Args:
        seed: Seed of the run; teacher and examples depend on it.
        dimension: Number d of inputs.
        directions: Number k of hidden directions, at most d; 1 is the single-index model.
        link: Function g of one direction: linear, relu, sign, absolute, he2, he3 or he4, each
            shifted and scaled to mean 0, mean square 1.
        combine: How directions are combined: `sum` or `staircase`.
        train_size: Training examples.
        val_size: Examples to choose with.
        test_size: Examples to report on.
        noise: Standard deviation of Gaussian noise added to the training targets.

    References:
        Ben Arous et al. (2021), arXiv:2003.10409 (information exponent); Abbe et al. (2022),
        arXiv:2202.08658 (staircases).
    """
    if link not in LINKS:
        raise UserError(
            f"task.link must be one of {', '.join(LINKS)}, got {link}.{nearest(link, LINKS)}"
        )
    if not 1 <= directions <= dimension:
        raise UserError(
            f"task.directions must be between 1 and task.dimension={dimension}, got {directions}"
        )
    u = torch.linalg.qr(torch.randn(dimension, directions, generator=generator(seed, "teacher"))).Q
    function, exponent = LINKS[link]

    def draw(split: str, size: int) -> Split:
        x = torch.randn(size, dimension, generator=generator(seed, f"inputs/{split}"))
        values = function(x @ u)
        terms = values if combine == "sum" else values.cumprod(1)
        return Split(x, terms.sum(1, keepdim=True) / directions**0.5)

    train = draw("train", train_size)
    wrong = noise * torch.randn(train.targets.shape, generator=generator(seed, "label_noise"))
    facts: dict[str, object] = {"information_exponent": exponent, "loss_of_zero": 0.5}
    return Task(
        Split(train.inputs, train.targets + wrong),
        draw("val", val_size) if val_size else None,
        draw("test", test_size),
        1,
        half_mse,
        facts=facts,
    )
