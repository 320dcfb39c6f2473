"""Distance to the edge of stability, for every optimizer."""

import math
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from optbench.boundary.kinds import Count, Pairs, Positive
from optbench.boundary.signature import check_fields
from optbench.curvature import Hessian, Operator
from optbench.dynamics.edges import Edge as Theory
from optbench.dynamics.norm_sharpness import norm_sharpness
from optbench.dynamics.settling import unsettled
from optbench.probes import State, Value
from optbench.probes.tracking import Tracker
from optbench.seeds import derive

# at step 0, before there is a preconditioner: expected, so not worth a line
NOT_YET = "no step taken yet"


@dataclass
class Edge:
    """`edge/distance` = measured / `edge/threshold`, 1 at the edge; dimensionless.

    What is measured depends on the optimizer's geometry, see `optbench.dynamics.edge`:

    - λ₁(H) itself (SGD, SAM over it): what the sharpness probe found at the same step, at no cost
      (SAM: one gradient, for its threshold depends on ‖∇L‖);
    - `edge/preconditioned_sharpness` = λ₁(P^-½HP^-½) (Adam and its kin),
      `edge/preconditioned_lambda_2` … for k > 1, with `edge/preconditioned_bound` on its error: as
      many products as sharpness takes, 5 to 8;
    - `edge/norm_sharpness` = max dᵀHd over a ball in max or spectral norm (sign methods, Muon), a
      lower bound: one gradient and `norm_hvps` products.

    H and ∇L are over the same examples, in the same mode, as the sharpness probe's. Absent where
    the threshold is unknown, where it depends on the gradient and that of a mini-batch is used, and
    until the preconditioner has averaged enough gradients to hold still, see
    `optbench.dynamics.settling`: 20 of them for Adam, more with a longer memory or small batches.
    `edge/distance` alone is absent where the threshold is not positive. `edge/lr` is the learning
    rate that the threshold is for, the largest of the groups'.

    Args:
        every: Cadence.
        examples: How many training examples H is over, always the same, the first ones; None for
            all.
        k: How many eigenvalues of the preconditioned Hessian.
        accuracy: Bound to reach for them, relative to the largest.
        audit_every: Solves between audits, of 20 products each.
        solve_every: As the sharpness probe's, of the preconditioned Hessian; `edge/solved` is 0
            between solves.
        norm_hvps: Products a measurement of norm sharpness, at most 60.

    References:
        Cohen et al. (2022), arXiv:2207.14484; Long and Bartlett (2023), arXiv:2309.12488; Islamov
        et al. (2026), arXiv:2603.05002.
    """

    every: int | str = "sharpness"
    examples: Count | None = None
    k: Pairs = 1
    accuracy: Positive = 5e-3
    audit_every: Count = 50
    solve_every: Count = 4
    norm_hvps: Annotated[int, Field(ge=1, le=60)] = 30
    # of the last norm sharpness, to start from
    _direction: Tensor | None = field(default=None, init=False)
    _of: str | None = field(default=None, init=False)  # which parameters it is of
    _said: set[tuple[str, str]] = field(default_factory=set, init=False)
    _until: int = field(default=-1, init=False)  # the step that it was last said to be absent until

    def __post_init__(self) -> None:
        check_fields(self, "edge.")
        self._tracker = Tracker(
            "preconditioned sharpness", self.k, self.accuracy, self.audit_every, self.solve_every
        )

    def __call__(self, state: State) -> dict[str, Value]:
        """Measure what the optimizer's edge is on, and compare it with the threshold."""
        start = time.perf_counter()
        here = state.shared.edge(state)
        if (problem := _problem(here, state)) is not None:
            if not (state.step == 0 and NOT_YET in problem):
                state.say(f"edge/distance is absent: {problem}")
            return {}
        if self._waits(here, state):
            return {}
        parameters = [p for p in state.model.parameters() if p.requires_grad]
        try:
            here = here.reordered(parameters)
        except ValueError as why:
            state.say(f"edge/distance is absent: {why}")
            return {}
        if here.needs_gradient:
            here = here.at(state.shared.loss_and_gradient(state, self.examples)[1])
        # a schedule has come down to lr = 0: nothing moves, so there is no edge
        if math.isinf(here.threshold):
            return {}
        self._say_where_from(here, state)
        found = self._measure(here, state, start)
        return found | _rate(state) if found else {}

    def _waits(self, here: Theory, state: State) -> bool:
        """Whether P has still to settle, said once; again if a tensor joins later, after unfreezing it."""
        train = len(state.task.train.inputs)
        examples = train if self.examples is None else min(self.examples, train)
        lacks = unsettled(
            here, state.optimizer, state.step, state.steps_per_epoch * examples / train
        )
        if lacks is None:
            return False
        if state.step >= self._until:
            self._until = state.step + lacks.left
            name = type(state.optimizer).__name__
            state.say(
                f"edge/distance is absent until step {self._until}: P of {name} holds still enough "
                "once it has "
                f"averaged {lacks.needed} gradients"
            )
        return True

    def _measure(self, here: Theory, state: State, start: float) -> dict[str, Value]:
        if here.plain:
            sharpness = state.found.get("sharpness/lambda_max")
            if isinstance(sharpness, float):
                return _compare(here, sharpness)
            state.say(
                "edge/distance is absent where the sharpness probe does not measure λ₁ at the same "
                "step"
            )
            return {}
        hessian = state.shared.hessian(state, self.examples)
        before = hessian.hvps
        seed = derive(state.seed, f"edge/{state.step}")
        found = (self._preconditioned if here.geometry == "l2" else self._norm)(
            here, hessian, seed, state
        )
        return found | {
            "edge/hvps": hessian.hvps - before,
            "edge/seconds": time.perf_counter() - start,
        }

    def _preconditioned(
        self, here: Theory, hessian: Hessian, seed: int, state: State
    ) -> dict[str, Value]:
        pairs = self._tracker.solve(
            AtEdge(here, hessian), state.shared.signature(state), seed, state.say
        )
        values: list[float] = pairs.values.tolist()
        found: dict[str, Value] = {
            "edge/preconditioned_sharpness": values[0],
            "edge/preconditioned_bound": float(pairs.bounds[0]),
            "edge/solved": int(not pairs.held),
        }
        if not pairs.converged:
            found["edge/converged"] = 0
        found |= {f"edge/preconditioned_lambda_{i + 1}": values[i] for i in range(1, len(values))}
        return found | _compare(here, values[0])

    def _norm(self, here: Theory, hessian: Hessian, seed: int, state: State) -> dict[str, Value]:
        if self._of not in (None, state.shared.signature(state)):
            self._direction = None
        self._of = state.shared.signature(state)
        best = norm_sharpness(
            hessian.__matmul__,
            here.parameters,
            here.geometry,
            here.radii,
            starts=[] if self._direction is None else [self._direction],
            generator=torch.Generator(hessian.device).manual_seed(seed),
            max_hvps=self.norm_hvps,
            dtype=hessian.dtype,
        )
        self._direction = best.direction
        return {"edge/norm_sharpness": best.value} | _compare(here, best.value)

    def _say_where_from(self, here: Theory, state: State) -> None:
        key = here.source, here.geometry
        if key not in self._said:
            self._said.add(key)
            quantity = (
                "λ₁(H)"
                if here.plain
                else "λ₁(P⁻¹H)"
                if here.geometry == "l2"
                else f"{here.geometry} sharpness"
            )
            formula = here.formula.removesuffix(f" ({here.source})")
            reason = f"; {here.reason}" if here.reason else ""
            state.say(f"edge of stability: {quantity} = {formula} ({here.source}{reason})")

    def state_dict(self) -> dict[str, Any]:
        """Return the warm starts."""
        return {"tracker": self._tracker.state_dict(), "direction": self._direction, "of": self._of}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._tracker.load_state_dict(state["tracker"])
        self._direction, self._of = state["direction"], state.get("of")


class AtEdge(Operator):
    """P^-½(H + rH² + D)P^-½, whose λ₁ meets the threshold of an l2 edge; `hvps` counts products with it.

    Args:
        here: The edge, with its tensors in the order of the Hessian's.
        hessian: H.
    """

    def __init__(self, here: Theory, hessian: Hessian) -> None:
        self.size, self.dtype, self.device = hessian.size, hessian.dtype, hessian.device
        self._product = here.operator(hessian.__matmul__)

    def _apply(self, vectors: Tensor) -> Tensor:
        return self._product(vectors)


def _problem(here: Theory, state: State) -> str | None:
    """Why there is no distance to measure, if so."""
    if here.source == "unknown":
        return here.reason
    if here.needs_gradient and not state.full_batch:
        return f"the threshold {here.formula} holds for the full batch, its gradient is not that of a mini-batch"
    return None


def _rate(state: State) -> dict[str, Value]:
    """The learning rate of the coming update, the largest of the groups'; nothing for an optimizer without."""
    rates = [float(group["lr"]) for group in state.optimizer.param_groups if "lr" in group]
    return {"edge/lr": max(rates)} if rates else {}


def _compare(here: Theory, measured: float) -> dict[str, Value]:
    found: dict[str, Value] = {"edge/threshold": here.threshold}
    if here.threshold > 0:
        found["edge/distance"] = here.distance(measured)
    return found
