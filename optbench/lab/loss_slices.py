"""Slices of the loss: L(w + αd) on a line, L(w + αd + βe) on a plane, about a run's weights w.

The training loss is the one whose curvature is measured: over all training examples, every module
in the mode that it trains in. So along a unit eigenvector v of ∇²L with eigenvalue λ

    L(w + αv) = L + α g·v + ½λα² + O(α³).

The validation loss is that of the metric `val/loss`, in eval mode. The test split is never used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from optbench.curvature import top_eigenpairs
from optbench.curvature.isolation import kept_rng, seed_globals
from optbench.dynamics.edges import split
from optbench.errors import UserError
from optbench.lab.point import ACCURACY, Point
from optbench.lab.snapshot import Snapshot
from optbench.probes.after_update import flat, weights_at
from optbench.probes.generalization import evaluate
from optbench.seeds import derive

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Direction:
    """A direction d in weight space.

    Attributes:
        name: What it is, for a reader.
        vector: d, (P,), in the order of the trained parameters.
        radius: Half of the range of its coefficient that is drawn.
        center: Middle of that range.
        slope: g·d, where known.
        curvature: dᵀ∇²L d, where known.
    """

    name: str
    vector: Tensor
    radius: float
    center: float = 0.0
    slope: float | None = None
    curvature: float | None = None

    def coefficients(self, points: int) -> Array:
        """Coefficients α, (points,), evenly spaced; 0 is among them where points is odd."""
        return self.center + self.radius * np.linspace(-1.0, 1.0, points)


@dataclass(frozen=True)
class Losses:
    """Losses at one place: of the training split, and of the validation split, None without one."""

    train: float
    val: float | None


class Landscape:
    """The losses of a model about its weights; it is read, and never changed.

    Args:
        point: The model at its weights with its task.
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        self.weights = flat(point.parameters)

    def at(self, offset: Tensor) -> Losses:
        """Return the losses at w + offset, (P,)."""
        parameters = self.point.parameters
        with weights_at(parameters, split(self.weights + offset, parameters)):
            train = self.point.loss.value()
            return Losses(train, self._validation())

    def _validation(self) -> float | None:
        task, model = self.point.task, self.point.model
        if task.val is None:
            return None
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with kept_rng(task.val.inputs.device):
                return evaluate(replace(task, error=None), model, task.val)["loss"]
        finally:
            for module, mode in modes:
                module.training = mode

    def line(
        self, direction: Direction, points: int, seen: Callable[[], None] = lambda: None
    ) -> tuple[Array, list[Losses]]:
        """Return (α, losses at w + αd) at evenly spaced coefficients.

        Args:
            direction: d.
            points: Number of coefficients.
            seen: Called after each.
        """
        coefficients = direction.coefficients(points)
        return coefficients, list(
            _seen((self.at(a * direction.vector) for a in coefficients), seen)
        )

    def plane(
        self,
        one: Direction,
        other: Direction,
        points: int,
        seen: Callable[[], None] = lambda: None,
    ) -> tuple[Array, Array, list[list[Losses]]]:
        """Return (α, β, rows of losses at w + αd + βe), a row for each β.

        Args:
            one: d.
            other: e.
            points: Number of coefficients of each.
            seen: Called after each place.
        """
        alphas, betas = one.coefficients(points), other.coefficients(points)
        rows = [
            list(_seen((self.at(a * one.vector + b * other.vector) for a in alphas), seen))
            for b in betas
        ]
        return alphas, betas, rows


def _seen(losses: Iterator[Losses], seen: Callable[[], None]) -> Iterator[Losses]:
    for found in losses:
        yield found
        seen()


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the validation loss depends on running statistics, which no slice moves."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def eigenvectors(point: Point, count: int, radius: float | None) -> list[Direction]:
    """Unit eigenvectors of ∇²L of the largest eigenvalues.

    Args:
        point: Where.
        count: How many.
        radius: Half of the range; None for 2√(2L/λ₁), where λ₁ alone adds 4L to the loss.

    Raises:
        UserError: If the largest eigenvalue is not positive, so that no range follows from it.
    """
    pairs = top_eigenpairs(point.hessian, count, accuracy=ACCURACY, seed=point.seed)
    loss, gradient = point.value_and_gradient
    largest = float(pairs.values[0])
    if radius is None:
        if not (largest > 0 and loss > 0):
            raise UserError(
                f"no range follows from λ₁ = {largest:.4g} and a loss of {loss:.4g}: say radius="
            )
        radius = 2 * (2 * loss / largest) ** 0.5
    return [
        Direction(
            name=f"eigenvector {i}, λ = {float(pairs.values[i - 1]):.4g}",
            vector=(vector := pairs.vectors[:, i - 1]),
            radius=radius,
            slope=float(gradient @ vector),
            curvature=float(pairs.values[i - 1]),
        )
        for i in range(1, count + 1)
    ]


def update(snapshot: Snapshot, radius: float | None) -> Direction:
    """The next update from a snapshot's weights: what the optimizer, in its state, would add.

    The update is made: the snapshot's model and optimizer are one step further after it.

    Raises:
        UserError: If the update is 0, as at the end of a schedule.
    """
    parts = snapshot.parts
    parameters = parts.update.parameters
    before = flat(parameters)
    with kept_rng(parameters[0].device):
        seed = derive(int(snapshot.config.seed), f"landscape/{snapshot.step}") % 2**32
        seed_globals(parameters[0].device, seed)
        parts.update(*parts.batches.next())
    moved = flat(parameters) - before
    if not bool(moved.any()):
        raise UserError(
            f"the update at step {snapshot.step} of {snapshot.folder.name} is 0, as at the end of "
            "a schedule: name a kept step, step=N, or along=eigenvectors"
        )
    return Direction("the next update", moved, 4.0 if radius is None else radius)


def between(here: Tensor, there: Tensor, name: str, radius: float | None) -> Direction:
    """From one run's weights, at α = 0, to another's, at α = 1.

    Raises:
        UserError: If the two have other numbers of weights, or the same weights.
    """
    if here.shape != there.shape:
        raise UserError(
            f"{name} has {len(there)} weights, the first run {len(here)}: name runs of one model"
        )
    difference = there.to(here) - here
    if not bool(difference.any()):
        raise UserError(f"{name} has the weights of the first run: there is nothing between them")
    return Direction(f"to {name}", difference, 1.0 if radius is None else radius, center=0.5)


def random_directions(point: Point, count: int, radius: float | None) -> list[Direction]:
    """Gaussian directions of the weights' norm, ‖d‖ = ‖w‖."""
    norm = float(point.weights.norm())
    generator = torch.Generator("cpu").manual_seed(derive(point.seed, "landscape/random"))
    found = []
    for i in range(1, count + 1):
        vector = torch.randn(len(point.weights), generator=generator).to(point.weights)
        found.append(
            Direction(f"random direction {i}", norm * vector / vector.norm(), radius or 1.0)
        )
    return found


def orthogonal(direction: Direction, to: Direction) -> Direction:
    """A direction without its part along another one; slope and curvature are no more known."""
    vector = direction.vector - to.vector * (direction.vector @ to.vector / (to.vector @ to.vector))
    name = f"{direction.name}, orthogonal to {to.name}"
    return replace(direction, name=name, vector=vector, slope=None, curvature=None)


def filter_normalized(
    direction: Direction, parameters: Sequence[Tensor], radius: float | None
) -> Direction:
    """Each filter of a direction scaled to the norm of the model's: d_f ← d_f ‖w_f‖/‖d_f‖.

    A filter is the weights that make one output: a row of a matrix, a kernel of a convolution.
    Biases and the scales of normalization, which no filter is, get 0. Of an eigenvector it leaves
    another direction, whose curvature is dᵀ∇²L d and no eigenvalue.

    Args:
        direction: d.
        parameters: The weights w, in the order of d.
        radius: Half of the range; None for 1, where d is as large as the weights.

    Raises:
        UserError: If no parameter has filters.

    References:
        Li et al. (2018), arXiv:1712.09913, section 4.
    """
    pieces = []
    for d, w in zip(split(direction.vector, parameters), parameters, strict=True):
        if w.ndim < 2:
            pieces.append(torch.zeros_like(d))
            continue
        rows, filters = d.flatten(1), w.detach().flatten(1).to(d)
        norms = rows.norm(dim=1, keepdim=True)
        scales = torch.where(norms > 0, filters.norm(dim=1, keepdim=True) / norms, 0.0)
        pieces.append((rows * scales).view_as(d))
    vector = flat(pieces)
    if not bool(vector.any()):
        raise UserError("no weights have filters, so normalize=filter leaves nothing: leave it out")
    name = f"{direction.name}, filter-normalized"
    return Direction(name, vector, radius=1.0 if radius is None else radius)
