"""The local learning coefficient, by Langevin chains around the weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, grad, grad_and_value, jvp, vmap
from torch.nn.functional import normalize

from optbench.curvature.errors import MeasurementError
from optbench.curvature.selection import named_trainable
from optbench.lab import per_example
from optbench.lab.measures import Noted, measure
from optbench.lab.point import Point
from optbench.record.progress import work

CHECK = 20
"""Steps of the burn-in between two looks at the curvature where the chains are."""

STABILITY = 0.5
"""Step times the largest curvature seen; at 2 the chains would be unstable."""


@dataclass(frozen=True)
class Chains:
    """Settings of the Langevin chains.

    Attributes:
        chains: Number of chains, each started at the weights.
        burn_in: Steps before the draws, in which the step is adapted.
        draws: Steps whose losses are averaged.
        batch_size: Examples of a gradient; the whole training split where it has no more.
        localization: γ, how strongly the chains are held at the weights.
        step: h; None to adapt it to the curvature.
    """

    chains: int = 4
    burn_in: int = 500
    draws: int = 500
    batch_size: int = 1000
    localization: float = 100.0
    step: float | None = None


DEFAULT = Chains()


@dataclass(frozen=True)
class LearningCoefficient:
    """An estimate of a local learning coefficient.

    Attributes:
        value: λ̂. It may be negative where the weights are no minimum.
        stderr: Its standard error, from the spread of the chains.
        step: h, the step of the draws.
    """

    value: float
    stderr: float
    step: float


@measure(
    meaning="Local learning coefficient: half the number of directions that the data see",
    equation="nβ(E[L(w)] − L(w*)), β = 1/log n, w ~ exp(−nβL(w) − ½γ‖w − w*‖²), γ = 100",
    unit="1",
    invariant="no",
    source="arXiv:2308.12108",
    cost="4 chains of 1000 gradients, and 75 products with the Hessian each",
    dear=True,
)
def local_learning_coefficient(point: Point) -> Noted:
    """λ̂ with the settings of `Chains`, for a loss that is a negative log likelihood.

    The coefficient itself is invariant. The estimate is not: γ holds every weight equally, whatever
    its scale.
    """
    found = learning_coefficient(point)
    return Noted(found.value, f"standard error {found.stderr:.2g} over chains")


def learning_coefficient(point: Point, settings: Chains = DEFAULT) -> LearningCoefficient:
    """Estimate the local learning coefficient λ at the weights w*, of the loss in eval mode.

        λ̂ = nβ(E[L(w)] − L(w*)),  β = 1/log n,  w ~ exp(−U),  U = nβ L(w) + ½γ‖w − w*‖².

    The chains are w ← w − h∇U(w) + √(2h)·½(ξ + ξ'), with ξ' the normal draw of the step before. For
    a quadratic U they have the exact variance at every stable step h. With independent draws (SGLD,
    h = ε/2) it is 1/(1 − ½ha) too large along a curvature a of U.

    1. Burn-in: every `CHECK` steps, look for the largest curvature of U where the chains are, by
       power iteration, and let h be `STABILITY` over the largest one so far.
    2. Draws: average L(w) − L(w*), both on the examples of that step's gradient.

    For a regular minimum λ̂ = ½ Σ_i nβλ_i/(nβλ_i + γ) over the Hessian's eigenvalues, d/2 for γ → 0.

    Args:
        point: The point. Its `seed` is that of the chains.
        settings: Settings of the chains.

    Raises:
        MeasurementError: If there are fewer than three examples, if the chains diverge, or if the
            task weighs batches and they are not whole.

    References:
        Lau et al. (2023), arXiv:2308.12108, with SGLD. The chains' noise is that of Leimkuhler and
        Matthews (2013), arXiv:1203.5428. The authors' repository, devinterp, takes nβ = b/log b of
        the batch size b as its default, and in version 2 averages the burn-in too.
    """
    n = len(point.train)
    if n < 3:
        raise MeasurementError(f"β = 1/log n needs three examples or more, got {n}")
    whole = n <= settings.batch_size
    if not whole and point.task.weight is not None:
        raise MeasurementError("the task weighs its batches, and a chain's batches are not whole")
    moves = settings.burn_in + settings.draws
    with (
        point.reading(),
        per_example.for_each(),
        work("learning coefficient", moves, "moves") as told,
    ):
        chains = _Langevin(point, settings, n / math.log(n))
        if settings.step is None:
            chains.begin()
        for step in range(settings.burn_in):
            if settings.step is None and step % CHECK == CHECK - 1:
                chains.adapt()
            chains.move()
            told.advance()
        drawn = []
        for _ in range(settings.draws):
            drawn.append(chains.move())
            told.advance()
        gains = torch.stack(drawn)  # (draws, chains)
    if not bool(gains.isfinite().all()):
        raise MeasurementError(
            f"the chains diverged at step {chains.step:.2g}: their loss is not finite"
        )
    each = chains.beta * gains.double().mean(0)
    spread = float(each.std()) if len(each) > 1 else math.nan
    return LearningCoefficient(
        value=float(each.mean()), stderr=spread / math.sqrt(len(each)), step=chains.step
    )


class _Langevin:
    """Chains as rows of flat weights, all moved at once, from the weights that the model has now.

    Attributes:
        beta: nβ.
        step: h.
    """

    def __init__(self, point: Point, settings: Chains, beta: float) -> None:
        self.beta, self.localization = beta, settings.localization
        self.split, self.settings = point.train, settings
        self.whole = len(point.train) <= settings.batch_size
        self.loss = _loss_of_flat(point)
        self.start = torch.cat([p.detach().flatten() for p in point.parameters])
        self.weights = self.start.repeat(settings.chains, 1)
        self.generator = torch.Generator(self.start.device).manual_seed(point.seed)
        self.noise, self.directions = self._normal(), normalize(self._normal(), dim=1)
        self.curvature, self.step = 0.0, settings.step or 0.0
        rows = None if self.whole else 0  # each chain has a batch of its own, or all have all
        self.gradients = vmap(grad_and_value(self.loss), in_dims=(0, rows, rows))
        self.products = vmap(self._product, in_dims=(0, 0, rows, rows))
        self.losses = vmap(self.loss, in_dims=(None, 0, 0))
        self.loss_at_start = self.loss(self.start, *self._batch()) if self.whole else None

    def _normal(self) -> Tensor:
        like = self.weights
        return torch.randn(
            like.shape, generator=self.generator, dtype=like.dtype, device=like.device
        )

    def _batch(self) -> tuple[Tensor, Tensor]:
        """All examples, or a random batch for each chain, (chains, b, …)."""
        inputs, targets = self.split.inputs, self.split.targets
        if self.whole:
            return inputs, targets
        shape = (self.settings.chains, self.settings.batch_size)
        rows = torch.randint(len(inputs), shape, generator=self.generator, device=self.start.device)
        return inputs[rows], targets[rows]

    def _product(self, weights: Tensor, vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """∇²L(w) v."""

        def slope(w: Tensor) -> Tensor:
            found: Tensor = grad(self.loss)(w, x, y)
            return found

        image: Tensor = jvp(slope, (weights,), (vector,))[1]
        return image

    def begin(self) -> None:
        """Choose the first step: one at which the chains, moved by √h, still are stable.

        The curvature at w* alone would not do: it is 0 at a singular minimum such as that of w⁴.
        """
        self.step = self._stable(self._look(self.start.expand_as(self.weights), times=10))
        for _ in range(100):
            moved = self.start + math.sqrt(self.step) * self.noise
            stable = self._stable(self._look(moved, times=3))
            if 2 * stable >= self.step:
                self.step = min(self.step, stable)
                return
            self.step /= 4

    def adapt(self) -> None:
        """Fit the step to the largest curvature of L that has been met on the way."""
        self.curvature = max(self.curvature, self._look(self.weights, times=3))
        if self.curvature:
            self.step = self._stable(self.curvature)

    def _stable(self, curvature: float) -> float:
        return STABILITY / (self.beta * curvature + self.localization)

    def _look(self, weights: Tensor, times: int) -> float:
        """Largest |λ(∇²L)| of the chains, by power iteration from the directions of the last look.

        It comes from below, and gets better from look to look.
        """
        x, y = self._batch()
        largest = 0.0
        for _ in range(times):
            images = self.products(weights, self.directions, x, y)
            norms = images.norm(dim=1, keepdim=True)
            largest = float(norms.max())
            self.directions = torch.where(norms > 0, images / norms, self.directions)
        return largest

    def move(self) -> Tensor:
        """Move every chain by a step; return L(w) − L(w*) before it, (chains,)."""
        x, y = self._batch()
        slopes, values = self.gradients(self.weights, x, y)
        drift = self.beta * slopes + self.localization * (self.weights - self.start)
        last, self.noise = self.noise, self._normal()
        self.weights = (
            self.weights - self.step * drift + math.sqrt(self.step / 2) * (last + self.noise)
        )
        at_start = (
            self.losses(self.start, x, y) if self.loss_at_start is None else self.loss_at_start
        )
        gains: Tensor = values - at_start
        return gains


def _loss_of_flat(point: Point) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """L(w; inputs, targets) of flat trained weights w, (P,)."""
    model, trained = point.model, named_trainable(point.model)
    sizes = [p.numel() for p in trained.values()]
    fixed = {k: p.detach() for k, p in model.named_parameters() if k not in trained}
    fixed |= dict(model.named_buffers())

    def loss(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = zip(trained.items(), flat.split(sizes), strict=True)
        weights = {name: part.view(p.shape) for (name, p), part in parts}
        return point.task.loss(functional_call(model, (weights, fixed), (x,)), y)

    return loss
