"""Distance to the edge of stability, for every optimizer."""

import math
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor

from optbench import metrics
from optbench.boundary.counting import counted
from optbench.boundary.kinds import Count, Pairs, Positive
from optbench.boundary.signature import check_fields
from optbench.curvature import Hessian, Operator
from optbench.curvature.selection import trainable
from optbench.dynamics import edge as edge_of
from optbench.dynamics import edges
from optbench.dynamics.edges import (
    EigenvalueEdge,
    GradientEdge,
    KnownEdge,
    NormBallEdge,
    UnknownEdge,
    awaits_a_step,
    on_sharpness,
    reordered,
)
from optbench.dynamics.norm_sharpness import norm_sharpness
from optbench.dynamics.settling import unsettled
from optbench.dynamics.starting_rate import (
    FAR,
    base_rate,
    same_but_for_the_threshold,
    scale_to_the_edge,
)
from optbench.probes import State, Value
from optbench.probes.others import PRODUCTS, Crossing, on_others
from optbench.probes.tracking import Tracker, later_hvps
from optbench.seeds import derive

NORM_COST = 1.5  # products that a product and a step to the ball's boundary take as long as


@dataclass
class Edge:
    """`edge/distance` = measured / `edge/threshold`, 1 at the edge; dimensionless.

    The measured quantity depends on the optimizer's geometry, see `optbench.dynamics.edge`:

    - λ₁(H) (SGD, and SAM on it), which the sharpness probe found at the same step. Cost: none; for
      SAM one gradient, since its threshold depends on ‖∇L‖.
    - `edge/preconditioned_sharpness` = λ₁(P^-½HP^-½) (Adam and similar), with
      `edge/preconditioned_bound` on its error, and `edge/preconditioned_lambda_2` … for k > 1.
      Cost: as many products as sharpness, 5 to 11. `edge/held_out` ± `edge/held_out_error` is the
      distance along its eigenvector on other examples, as `sharpness/held_out` is; it is measured
      wherever the distance is 1 or more, too, until others have once confirmed that.
    - `edge/norm_sharpness` = max dᵀHd over a ball in max or spectral norm (sign methods, Muon); the
      value found is a lower bound. Cost: one gradient and `norm_hvps` products. `edge/held_out` is
      the distance along d on other examples; on average it is below that of all.

    H and ∇L are over the same examples, in the same mode, as the sharpness probe's. `edge/lr` is
    the learning rate that the threshold is for, the largest of the groups'. All are absent

    - where the threshold is unknown;
    - where it depends on the gradient, but the optimizer uses that of a mini-batch;
    - until the preconditioner has averaged enough gradients to be nearly constant: 20 for Adam,
      more with a longer memory or small batches; see `optbench.dynamics.settling`.

    `edge/distance` alone is absent where the threshold is not positive.

    Args:
        every: Cadence: steps between measurements, `epoch`, `log`, `never`, or the name of a probe
            whose cadence is taken.
        examples: Number of training examples of H, always the first ones; None for all.
        k: Number of eigenvalues of the preconditioned Hessian.
        accuracy: Bound to reach for the eigenvalues, relative to the largest.
        audit_every: Solves between audits, of 20 products each.
        solve_every: Most measurements from one solve to the next, as for `Sharpness`, here of the
            preconditioned Hessian; `edge/solved` is 0 between solves.
        norm_hvps: Products per measurement of norm sharpness, at most 60.

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
    # Maximizer d of the last norm sharpness, as a warm start, and the signature of its parameters.
    _direction: Tensor | None = field(default=None, init=False)
    _of: str | None = field(default=None, init=False)
    _searches: int = field(default=0, init=False)  # of such maximizers
    _crossing: Crossing = field(default_factory=Crossing, init=False)
    # Sources and quantities of the edges that the user was told of.
    _said: set[tuple[str, str]] = field(default_factory=set, init=False)
    # Step until which the user was told that the distance is absent.
    _until: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        check_fields(self, "edge.")
        self._tracker = Tracker(
            "preconditioned sharpness", self.k, self.accuracy, self.audit_every, self.solve_every
        )

    def __call__(self, state: State) -> dict[str, Value]:
        """Measure the quantity of the optimizer's edge and compare it with the threshold."""
        start = time.perf_counter()
        edge = state.shared.edge(state)
        if isinstance(edge, UnknownEdge):
            # before the first step there is no preconditioner: expected, not said
            if not (state.step == 0 and awaits_a_step(edge)):
                state.say(f"edge/distance is absent: {edge.reason}")
            return {}
        if isinstance(edge, GradientEdge) and not state.full_batch:
            state.say(
                f"edge/distance is absent: the threshold {edge.formula} holds for the full batch, "
                "its gradient is not that of a mini-batch"
            )
            return {}
        if self._waits(edge, state):
            return {}
        known = self._known(edge, state)
        if known is None or math.isinf(known.threshold):
            return {}  # a schedule has come down to lr = 0: weights are constant, at no edge
        self._say_where_from(known, state)
        measured = self._measure(known, state, start)
        if state.step == 0:
            self._warn_if_far_above(known, measured, state)
        return measured | _rate(state) if measured else {}

    def _warn_if_far_above(self, edge: KnownEdge, measured: dict[str, Value], state: State) -> None:
        """Say of a run that starts far above its edge that it does, and which rate would not."""
        distance = measured.get(metrics.EDGE_DISTANCE)
        if not isinstance(distance, float) or not distance > FAR:
            return
        if not _on_others(edge, measured, state) > FAR:
            return  # of the few examples that are measured, not of all
        value = distance * edge.threshold
        scale = scale_to_the_edge(
            state.optimizer, distance, lambda: self._distance_now(edge, value, state)
        )
        rate = base_rate(state.optimizer)
        way_out = ""
        if scale is not None:
            way_out = (
                f"; lr={rate * scale:.2g} would not" if rate else f"; {scale:.2g} of lr would not"
            )
        state.say(
            f"this starts far above its edge of stability: {edge.quantity} = {value:.4g} is "
            f"{distance:.3g} times the threshold {edge.threshold:.4g}, so expect the loss to jump "
            f"or to diverge{way_out}"
        )

    def _distance_now(self, before: KnownEdge, value: float, state: State) -> float | None:
        """Distance at the present hyperparameters, if the quantity is still the one measured."""
        try:
            edge = reordered(edge_of(state.optimizer), trainable(state.model))
        except ValueError:
            return None
        if isinstance(edge, GradientEdge):
            edge = edge.at(state.shared.loss_and_gradient(state, self.examples)[1])
        if isinstance(edge, UnknownEdge) or not same_but_for_the_threshold(before, edge):
            return None
        return edge.distance(value)

    def later_products(self, state: State) -> float | None:
        """See `optbench.probes.cost.Foretelling`: most edges are measured once P has settled."""
        edge = state.shared.edge(state)
        if awaits_a_step(edge):
            in_a_norm = isinstance(edge, UnknownEdge) and edge.on_a_norm_ball
            return NORM_COST * self.norm_hvps if in_a_norm else later_hvps(state.full_batch)
        waits_for_ever = isinstance(edge, GradientEdge) and not state.full_batch
        if isinstance(edge, UnknownEdge) or waits_for_ever:
            return 0.0
        if on_sharpness(edge):
            return 1.0 if isinstance(edge, GradientEdge) else 0.0  # a gradient, for SAM
        if isinstance(edge, NormBallEdge):
            return None  # no later one begins warmer
        if isinstance(edge, GradientEdge) and edge.on_a_norm_ball:
            return NORM_COST * self.norm_hvps
        return later_hvps(state.full_batch)

    def _known(self, edge: edges.Edge, state: State) -> KnownEdge | None:
        """The edge in the Hessian's order of tensors, at the present gradient; None if unknown.

        The user is told the reason.
        """
        try:
            edge = reordered(edge, trainable(state.model))
        except ValueError as why:
            state.say(f"edge/distance is absent: {why}")
            return None
        if isinstance(edge, GradientEdge):
            edge = edge.at(state.shared.loss_and_gradient(state, self.examples)[1])
        if isinstance(edge, UnknownEdge):
            state.say(f"edge/distance is absent: {edge.reason}")
            return None
        return edge

    def _waits(self, edge: edges.Edge, state: State) -> bool:
        """Whether the preconditioner P has yet to settle, which the user is told.

        It is told again if a tensor joins later, after it was unfrozen.
        """
        train = len(state.task.train.inputs)
        examples = train if self.examples is None else min(self.examples, train)
        lacks = unsettled(
            edge, state.optimizer, state.step, state.steps_per_epoch * examples / train
        )
        if lacks is None:
            return False
        if state.step >= self._until:
            self._until = state.step + lacks.left
            name = type(state.optimizer).__name__
            state.say(
                f"edge/distance is absent until step {self._until}: P of {name} holds still enough "
                f"once it has averaged {counted(lacks.needed, 'gradient')}"
            )
        return True

    def _measure(self, edge: KnownEdge, state: State, start: float) -> dict[str, Value]:
        if isinstance(edge, EigenvalueEdge) and edge.plain:
            sharpness = state.found.get(metrics.SHARPNESS)
            if isinstance(sharpness, float):
                return _compare(edge, sharpness)
            state.say(
                "edge/distance is absent where the sharpness probe does not measure λ₁ at the same "
                "step"
            )
            return {}
        hessian = state.shared.hessian(state, self.examples)
        before = hessian.hvps
        seed = derive(state.seed, f"edge/{state.step}")
        if isinstance(edge, EigenvalueEdge):
            values = self._preconditioned(edge, hessian, seed, state)
        else:
            values = self._norm(edge, hessian, seed, state)
        hvps = hessian.hvps - before
        if state.shared.pace is not None:
            eigenvalue = isinstance(edge, EigenvalueEdge)
            quantity = metrics.PRECONDITIONED_SHARPNESS if eigenvalue else metrics.NORM_SHARPNESS
            cost = hvps if eigenvalue else NORM_COST * hvps
            cost += PRODUCTS if metrics.EDGE_HELD_OUT in values else 0
            value = cast(float, values[quantity])
            state.shared.pace.take(quantity, value, cost, state, self.examples)
        return values | {
            metrics.EDGE_HVPS: hvps,
            metrics.EDGE_SECONDS: time.perf_counter() - start,
        }

    def _preconditioned(
        self, edge: EigenvalueEdge, hessian: Hessian, seed: int, state: State
    ) -> dict[str, Value]:
        pairs = self._tracker.solve(
            AtEdge(edge, hessian), state.shared.signature(state), seed, state.say
        )
        eigenvalues: list[float] = pairs.values.tolist()
        values: dict[str, Value] = {
            metrics.PRECONDITIONED_SHARPNESS: eigenvalues[0],
            metrics.PRECONDITIONED_BOUND: float(pairs.bounds[0]),
            metrics.EDGE_SOLVED: int(not pairs.held),
        }
        if not pairs.converged:
            values[metrics.EDGE_CONVERGED] = 0
        for k, eigenvalue in enumerate(eigenvalues[1:], 2):
            values[metrics.numbered(metrics.PRECONDITIONED_K, k)] = eigenvalue
        values |= _compare(edge, eigenvalues[0])
        if edge.ascent:  # of SAM the operator has H² in it
            return values
        direction = edge.inverse_sqrt(pairs.vectors[:, 0])
        shift = edge.shift_along(direction)
        distance = edge.distance(eigenvalues[0])
        return values | self._held_out(
            edge, distance, direction, self._tracker.solves, state, shift
        )

    def _held_out(
        self,
        edge: KnownEdge,
        distance: float | None,
        direction: Tensor,
        solves: int | None,
        state: State,
        shift: float = 0.0,
    ) -> dict[str, Value]:
        """The distance along the same direction on other examples, where H is not over all."""
        if not edge.threshold > 0:
            return {}
        in_doubt = self._crossing.in_doubt(distance)
        found = on_others(solves, direction, self.examples, metrics.EDGE_HELD_OUT, state, in_doubt)
        if found is None:
            return {}
        others, error = (found.value + shift) / edge.threshold, found.error / edge.threshold
        self._crossing.take(distance, others, error)
        return {metrics.EDGE_HELD_OUT: others, metrics.EDGE_HELD_OUT_ERROR: error}

    def _norm(
        self, edge: NormBallEdge, hessian: Hessian, seed: int, state: State
    ) -> dict[str, Value]:
        if self._of not in (None, state.shared.signature(state)):
            self._direction, self._searches = None, 0
        self._of = state.shared.signature(state)
        best = norm_sharpness(
            hessian.__matmul__,
            edge.parameters,
            edge.norm,
            edge.radii,
            starts=[] if self._direction is None else [self._direction],
            generator=torch.Generator(hessian.device).manual_seed(seed),
            max_hvps=self.norm_hvps,
            dtype=hessian.dtype,
        )
        self._direction, self._searches = best.direction, self._searches + 1
        values: dict[str, Value] = {metrics.NORM_SHARPNESS: best.value}
        values |= _compare(edge, best.value)
        distance = edge.distance(best.value)
        return values | self._held_out(edge, distance, best.direction, self._searches, state)

    def _say_where_from(self, edge: KnownEdge, state: State) -> None:
        key = edge.source, edge.quantity
        if key not in self._said:
            self._said.add(key)
            formula = edge.formula.removesuffix(f" ({edge.source})")
            reason = f"; {edge.reason}" if edge.reason else ""
            state.say(f"edge of stability: {edge.quantity} = {formula} ({edge.source}{reason})")

    def state_dict(self) -> dict[str, Any]:
        """Return the warm starts of both measurements."""
        return {
            "tracker": self._tracker.state_dict(),
            "direction": self._direction,
            "of": self._of,
            "searches": self._searches,
            "crossing": self._crossing.is_sure,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the warm starts."""
        self._tracker.load_state_dict(state["tracker"])
        self._direction, self._of = state["direction"], state.get("of")
        self._searches = state.get("searches", 0)
        self._crossing = Crossing(state.get("crossing", False))


class AtEdge(Operator):
    """The operator P^-½(H + rH² + D)P^-½, whose λ₁ reaches the threshold at the edge.

    `hvps` counts products with this operator.

    Args:
        edge: Edge, with its tensors in the order of the Hessian's.
        hessian: H.
    """

    def __init__(self, edge: EigenvalueEdge, hessian: Hessian) -> None:
        self.size, self.dtype, self.device = hessian.size, hessian.dtype, hessian.device
        self._product = edge.operator(hessian.__matmul__)

    def _apply(self, vectors: Tensor) -> Tensor:
        return self._product(vectors)


def _on_others(edge: KnownEdge, measured: dict[str, Value], state: State) -> float:
    """The distance along the same direction on other examples; infinite where it is not known."""
    others = measured.get(metrics.EDGE_HELD_OUT)
    if others is None and isinstance(edge, EigenvalueEdge) and edge.plain:
        others = state.found.get(metrics.SHARPNESS_HELD_OUT)
        others = others / edge.threshold if isinstance(others, float) else None
    return others if isinstance(others, float) else math.inf


def _rate(state: State) -> dict[str, Value]:
    """Largest learning rate of the groups for the coming update; empty if no group has one."""
    rates = [float(group["lr"]) for group in state.optimizer.param_groups if "lr" in group]
    return {metrics.EDGE_LR: max(rates)} if rates else {}


def _compare(edge: KnownEdge, measured: float) -> dict[str, Value]:
    """Threshold, and the distance measured / threshold where it is defined."""
    threshold: dict[str, Value] = {metrics.EDGE_THRESHOLD: edge.threshold}
    ratio = edge.distance(measured)
    return threshold if ratio is None else threshold | {metrics.EDGE_DISTANCE: ratio}
