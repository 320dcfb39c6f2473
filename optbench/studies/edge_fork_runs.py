"""One checkpoint, walked on from by gradient descent below and above its edge.

Each arm is full-batch gradient descent w ← w − η ∇L from the same weights w₀, with λ₁ and u₁ there:

- below, near, above: η = c · 2/λ₁, c the declared shares of the edge;
- random: as below, but ∇L is taken at w ± a r, r a random unit vector, the sign alternating and a
  the amplitude of the oscillation of the arm above at the same Σηt;
- pushed: the same along u₁;
- minibatch: as below, with the gradients of batches that a seed draws.

The path of an arm is smoothed by w̄_t = (w_{t−1} + 2 w_t + w_{t+1})/4, which removes an oscillation
of period two and leaves a straight path as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.lab.flat_model import FlatModel

Kick = Callable[[float], Tensor | None]
"""From Σηt to the displacement at which the gradient is taken."""


@dataclass(frozen=True)
class Path:
    """An arm, seen at equal steps of Σηt.

    Attributes:
        weights: w̄, (K, P).
        losses: L(w̄), (K,).
        amplitudes: a = ‖w_{t+1} − 2 w_t + w_{t−1}‖/4, (K,).
        diverged: Whether it left the finite numbers, or a loss of 1e3 times the first.
    """

    weights: Tensor
    losses: Tensor
    amplitudes: Tensor
    diverged: bool


def walk(
    start: FlatModel,
    lr: float,
    steps: int,
    marks: int,
    kick: Kick | None = None,
    batches: Iterator[Tensor] | None = None,
) -> Path:
    """Walk an arm, and look at it `marks` times, equally far apart.

    Args:
        start: The model at w₀; it is moved, and set back.
        lr: Learning rate η.
        steps: Updates that count; one more is made, for smoothing the last.
        marks: K; a mark lies at the step nearest to k/K of the way.
        kick: Displacement of the point at which the gradient is taken; None for none.
        batches: Indices of the examples of each update; None for all examples.
    """
    first = start.weights.clone()
    at = {round(steps * (k + 1) / marks) for k in range(marks)}
    kept: list[Tensor] = []
    before, here = first, first
    seen, sizes = list[float](), list[float]()
    ceiling = 1e3 * start.loss_at(first)
    diverged = False
    for step in range(steps + 1):
        aside = None if kick is None else kick(step * lr)
        if aside is not None:
            start.weights.add_(aside if step % 2 == 0 else -aside)
        loss, gradient = start.gradient(None if batches is None else next(batches))
        if not loss <= ceiling:
            diverged = True
            break
        after = here - lr * gradient
        if step in at:
            middle = (before + 2 * here + after) / 4
            kept.append(middle)
            seen.append(start.loss_at(middle))
            sizes.append(float((after - 2 * here + before).norm()) / 4)
        before, here = here, after
        start.weights.copy_(here)
    start.weights.copy_(first)
    weights = torch.stack(kept) if kept else first.new_zeros(0, len(first))
    return Path(weights, torch.tensor(seen), torch.tensor(sizes), diverged)


def drawn_batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Batches of `size` different examples out of `count`, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(count, generator=generator)[:size]


def amplitude(path: Path, horizon: float, direction: Tensor) -> Kick:
    """The displacement a(Σηt) · direction, a that of a path; 0 where there is none."""
    sizes = path.amplitudes.tolist()

    def kick(time: float) -> Tensor | None:
        place = min(len(sizes) - 1, int(len(sizes) * time / horizon))
        return direction * sizes[place] if place >= 0 else None

    return kick


def common_loss(first: float, paths: Sequence[Path]) -> float | None:
    """The least loss to which all these paths come; None if one does not come below 0.9 · first."""
    lowest = max((float(p.losses.min()) if len(p.losses) else first) for p in paths)
    return lowest if lowest < 0.9 * first else None


def first_at(start: FlatModel, path: Path, loss: float) -> Tensor | None:
    """The weights at which a path first has a loss: between two marks, by bisection.

    None if it never comes down to it. The loss is met to 1e-4 of it.
    """
    below = (path.losses <= loss * (1 + 1e-9)).nonzero().flatten()
    if not len(below):
        return None
    mark = int(below[0])
    low = path.weights[mark]
    high = path.weights[mark - 1] if mark else start.weights.clone()
    if float(path.losses[mark]) >= loss * (1 - 1e-6):
        return low
    inside, outside = 1.0, 0.0  # shares of the way from high to low
    for _ in range(40):
        share = (inside + outside) / 2
        value = start.loss_at(high + share * (low - high))
        if abs(value / loss - 1) < 1e-4:
            break
        inside, outside = (share, outside) if value < loss else (inside, share)
    return high + share * (low - high)
