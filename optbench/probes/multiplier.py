"""The multiplier of the training map: an edge of stability for every optimizer."""

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from optbench import metrics
from optbench.boundary.kinds import Count, Positive
from optbench.boundary.signature import check_fields
from optbench.dynamics import oscillating_eigenvalue as search
from optbench.dynamics.critical_rate import critical_rate
from optbench.dynamics.describing_function import alternation
from optbench.dynamics.training_map import RELATIVE_STEP, TrainingMap
from optbench.probes import State, Value
from optbench.seeds import derive

ROUGHEST = 0.1
"""Largest disagreement of two step sizes, relative to max(1, |μ|), that still is a derivative."""
USUAL_HVPS = 60.0
"""Hessian-vector products that a search takes as long as: 25 products of two updates in float64."""


@dataclass
class Multiplier:
    """`edge/multiplier` = Re μ: what a small oscillation is multiplied by in the coming step.

    One step maps weights and optimizer state to the next ones. μ is the eigenvalue of the map's
    Jacobian at the present state that is nearest to leaving the unit disc other than through +1:
    the largest in modulus at an angle of 30° or more from the positive axis. At −1 the optimizer
    is at its edge, whatever its class: for gradient descent μ = 1 − ηλ₁. `edge/multiplier_modulus`
    is |μ|, `edge/multiplier_angle` |arg μ|/π, 1 for an alternation. `dynamics.training_map` says
    what is held, `dynamics.oscillating_eigenvalue` how μ is found.

    `distance: true` adds `edge/multiplier_distance` = 1/c, where at c times the learning rate |μ|
    would be 1: what `edge/distance` is for optimizers whose threshold is known, for all. Cost: 5 to
    10 more searches. (|μ| does not tell how near the edge is: below it is √β with momentum β.)

    An oscillation that has grown to a finite size bends the loss, so that at one of its two sides
    |μ| > 1 and at the other |μ| < 1. `orbit: 2` also takes the map of two steps from here:
    `edge/multiplier_orbit` = √|μ₂| of the same mode, below 1 where the oscillation is stable.

    Where several modes are at the edge they turn into each other from step to step, and each
    Jacobian stretches another one. `along: k` pushes y, the vector of μ, through the next k steps
    of a copy: `edge/multiplier_growth` = ‖J_k y‖^{1/k} is near 1 where the oscillation as a whole
    neither grows nor dies. Cost: 2k updates.

    Steps of fixed size (signs, Muon) answer a small change not in proportion: for sign descent the
    Jacobian is the identity, and μ = 1. Their edge is an amplitude: `amplitude: true` adds
    `edge/alternation`, ‖z‖ of the weights' part that alternates, and
    `edge/alternation_predicted`, the ‖z‖ at which gain times curvature is one, see
    `dynamics.describing_function`. Cost: up to 200 updates. Where the step has jumps or kinks that
    two step sizes of the differences see differently, all are absent.

    Only for the full batch. Cost: 10 to 40 products, each two updates of a float64 copy (four
    gradients for SAM); memory: that copy, and a vector of the size of weights and state a product.

    Args:
        every: Cadence: steps between measurements, `epoch`, `log`, `never`, or the name of a probe
            whose cadence is taken.
        examples: Number of training examples of the loss, always the first ones; None for all.
        accuracy: Residual at which the search stops, relative to |μ|.
        max_products: Most products of a search.
        distance: Whether to search for the learning rate at the edge as well.
        amplitude: Whether to predict the amplitude of an alternation, for steps of fixed size.
        orbit: Steps of the orbit's period; 1 leaves `edge/multiplier_orbit` out.
        along: Steps k that y is pushed through; 1 leaves `edge/multiplier_growth` out.
    """

    every: int | str = 100
    examples: Count | None = None
    accuracy: Positive = 1e-3
    max_products: Annotated[int, Field(ge=10, le=500)] = 60
    distance: bool = False
    amplitude: bool = False
    orbit: Annotated[int, Field(ge=1, le=100)] = 1
    along: Annotated[int, Field(ge=1, le=1000)] = 1
    # Vector of the last multiplier, as a warm start, and the signature of its parameters.
    _vector: Tensor | None = field(default=None, init=False)
    _of: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_fields(self, "multiplier.")

    def __call__(self, state: State) -> dict[str, Value]:
        """Search for the multiplier at this state."""
        if not state.full_batch:
            state.say("edge/multiplier is absent: a map needs the same data in every step")
            return {}
        if state.step == 0:
            return {}  # optimizers make their state in the first step
        start = time.perf_counter()
        chosen = state.task.train.first(self.examples)
        step = TrainingMap(
            state.model, state.task.loss, (chosen.inputs, chosen.targets), state.optimizer
        )
        found = self._search(step, state)
        if found.disagreement > ROUGHEST * max(1.0, found.growth):
            state.say(
                "edge/multiplier is absent where the step is not smooth: differences of two sizes "
                f"disagree by {found.disagreement:.2g} along a vector of length 1"
            )
            return {}
        values: dict[str, Value] = {
            metrics.MULTIPLIER: found.value.real,
            metrics.MULTIPLIER_MODULUS: found.growth,
            metrics.MULTIPLIER_ANGLE: found.angle,
            metrics.MULTIPLIER_RESIDUAL: max(found.residual, found.disagreement),
            metrics.MULTIPLIER_PRODUCTS: found.products,
        }
        if self.along > 1:
            y = found.vector.real
            pushed = step.product(y, updates=self.along).norm() / y.norm()
            values[metrics.MULTIPLIER_GROWTH] = float(pushed) ** (1 / self.along)
        if self.distance:
            values[metrics.MULTIPLIER_DISTANCE] = critical_rate(step, found).distance
        if self.orbit > 1:
            along = partial(step.product, updates=self.orbit)
            orbit = search.orbit_multiplier(along, step.size, found.vector.real)
            values[metrics.MULTIPLIER_ORBIT] = orbit.growth ** (1 / self.orbit)
        if self.amplitude:
            values |= _amplitude(step)
        return values | {metrics.MULTIPLIER_SECONDS: time.perf_counter() - start}

    def later_products(self, state: State) -> float | None:
        """See `optbench.probes.cost.Foretelling`: there is nothing to measure before a step."""
        if not state.full_batch:
            return None
        return USUAL_HVPS * (1 + 7 * self.distance + (self.orbit > 1)) + 2 * self.along

    def _search(self, step: TrainingMap, state: State) -> search.Multiplier:
        signature = state.shared.signature(state)
        known = self._vector if self._of == signature else None
        found = search.multiplier(
            step.product,
            step.size,
            known if known is not None and len(known) == step.size else None,
            check=partial(step.product, step=2 * RELATIVE_STEP),
            generator=torch.Generator().manual_seed(derive(state.seed, f"multiplier/{state.step}")),
            tolerance=self.accuracy,
            max_products=self.max_products,
        )
        self._vector, self._of = found.vector.real.clone(), signature
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the warm start."""
        return {"vector": self._vector, "of": self._of}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the warm start."""
        self._vector, self._of = state["vector"], state["of"]


def _amplitude(step: TrainingMap) -> dict[str, Value]:
    """‖z‖ of the weights' alternation, measured and predicted."""
    found = alternation(step)
    weights = torch.tensor([name == "weight" for name in step.names()])
    return {
        metrics.ALTERNATION: float(found.measured[weights].norm()),
        metrics.ALTERNATION_PREDICTED: float(found.predicted[weights].norm()),
    }
