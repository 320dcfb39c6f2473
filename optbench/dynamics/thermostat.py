"""An optimizer whose learning rate is held at a share of its own edge of stability."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from optbench.boundary.kinds import Count, Positive
from optbench.curvature import Operator, top_eigenpairs
from optbench.curvature.eigen.pairs import Eigenpairs
from optbench.dynamics.dispatch import closed_form, edge
from optbench.dynamics.edges import Edge, EigenvalueEdge, GradientEdge, MatVec, NormBallEdge
from optbench.dynamics.settling import unsettled
from optbench.errors import UserError
from optbench.optimizers.wrapper import Closure, Factory, Wrapper

CLOSE = 1e-3
"""Relative difference to the dial at which the learning rate is found."""


class EdgeThermostat(Wrapper):
    """Any base whose edge is known, at a learning rate with distance to the edge = dial.

        η: λ₁(P^-½(H + rH²)P^-½) / threshold(η) = dial

    1. At every `every`-th step take the batch gradient with its graph, and the top eigenvalue of
       the base's edge, started at the eigenvectors of the last time.
    2. Move the learning rates of all groups by one factor until threshold · dial is what was
       measured, at most by `most` at a time.
    3. Let the base step.

    The threshold is asked for at each trial η, since it is not 1/η for all (SAM). Until the
    preconditioner has averaged enough gradients, or where the edge is unknown, the learning rate
    stays as it is. It is for the full batch: H is that of the batch. Schedules are overruled.

    Cost of a measurement: two gradients more, and about 5 to 10 Hessian products when every is 5
    to 20; `hvps` counts them.

    Args:
        params: Parameters of one model.
        base: Makes the optimizer that takes the step; its lr is where it starts.
        dial: Distance to be held, measured over threshold, 1 at the edge; None: the rate stays.
        every: Updates between two measurements.
        most: Largest factor on the learning rate at one measurement.
        accuracy: Relative accuracy of the eigenvalue.
        lr: Taken by no one: the rate is found. It is here for `optimizer=custom`.

    References:
        Cohen et al. (2021), arXiv:2103.00065; (2022), arXiv:2207.14484, for the edges.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        base: Factory,
        dial: Positive | None = 0.6,
        every: Count = 10,
        most: Annotated[float, Field(gt=1)] = 1.5,
        accuracy: Positive = 0.01,
        lr: float | None = None,
    ) -> None:
        if dial is not None and not dial > 0:
            raise UserError(f"optimizer.dial must be positive, got {dial}")
        if not most > 1:
            raise UserError(f"optimizer.most must be above 1, got {most}")
        super().__init__(params, base)
        self.dial = None if dial is None else float(dial)
        self.every, self.most = int(every), float(most)
        self.accuracy = float(accuracy)
        self.updates, self.hvps = 0, 0
        self.distance: float | None = None
        self.create_graph = False
        self._pairs: Eigenpairs | None = None

    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Measure if it is time, set the learning rate, and let the base step."""
        if closure is None:
            raise UserError("EdgeThermostat measures curvature, so it needs step(closure)")
        if self.dial is not None and self.updates % self.every == 0:
            self._regulate(closure)
        loss: Tensor | None = self.base.step(closure)  # type: ignore[arg-type, assignment]
        self.updates += 1
        return loss

    def _regulate(self, closure: Closure) -> None:
        """Measure at the present weights, and set the learning rate."""
        self.create_graph = True
        try:
            closure()
            known = self._edge()
            if known is None:
                return
            gradients = [p.grad for p in known.parameters]
            assert all(g is not None for g in gradients)
            operator = _OfGradient([g for g in gradients if g is not None], known)
            pairs = top_eigenpairs(operator, 1, accuracy=self.accuracy, start=self._pairs)
            self._pairs, self.hvps = pairs, self.hvps + operator.hvps
            self._set(float(pairs.values[0]))
        finally:
            self.create_graph = False
            for p in self.held():
                if p.grad is not None:
                    p.grad = p.grad.detach()  # a graph that its own leaf holds is never freed

    def _edge(self) -> EigenvalueEdge | None:
        """The base's edge at the present gradient; None where there is none to compare with."""
        known: Edge = edge(self.base)
        if isinstance(known, NormBallEdge):
            raise UserError(
                f"EdgeThermostat holds edges on an eigenvalue; that of {type(self.base).__name__} "
                f"is on {known.quantity}"
            )
        if unsettled(known, self.base, self.updates) is not None:
            return None
        if isinstance(known, GradientEdge):
            grads = [p.grad for p in known.parameters]
            resolved = known.at(torch.cat([g.detach().flatten() for g in grads if g is not None]))
            known = resolved
        return known if isinstance(known, EigenvalueEdge) else None

    def _set(self, measured: float) -> None:
        """Move all rates by one factor to where threshold · dial = measured."""
        before = [float(group["lr"]) for group in self.param_groups]
        factor = self.most
        if measured > 0:
            factor = 1.0
            for _ in range(30):
                known = self._edge()
                assert known is not None
                self.distance = measured / known.threshold
                ratio = (self.dial or math.nan) / self.distance
                if abs(ratio - 1) < CLOSE:
                    break
                factor = min(max(factor * ratio, 1 / self.most), self.most)
                rates = [lr * factor for lr in before]
                if rates == [float(group["lr"]) for group in self.param_groups]:
                    break  # at the largest change
                self._give(rates)
        else:
            self._give([lr * factor for lr in before])

    def _give(self, rates: Sequence[float]) -> None:
        for group, lr in zip(self.param_groups, rates, strict=True):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state, the count of updates and the warm start."""
        pairs = None if self._pairs is None else vars(self._pairs)
        own = {"updates": self.updates, "hvps": self.hvps, "distance": self.distance}
        return super().state_dict() | {"thermostat": own | {"pairs": pairs}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        super().load_state_dict(state_dict)
        own = state_dict["thermostat"]
        self.updates, self.hvps, self.distance = own["updates"], own["hvps"], own["distance"]
        self._pairs = None if own["pairs"] is None else Eigenpairs(**own["pairs"])


@closed_form(EdgeThermostat, understood=None)
def _thermostat(optimizer: EdgeThermostat) -> Edge:
    """The edge is the base's: the step is."""
    return edge(optimizer.base)


class _OfGradient(Operator):
    """The operator of an edge, H from gradients that have their graph."""

    def __init__(self, gradients: Sequence[Tensor], known: EigenvalueEdge) -> None:
        self._gradients, self._parameters = gradients, known.parameters
        first = known.parameters[0]
        self.size = sum(p.numel() for p in known.parameters)
        self.dtype, self.device = first.dtype, first.device
        self._product: MatVec = known.operator(self._hessian)

    def _apply(self, vectors: Tensor) -> Tensor:
        return self._product(vectors)

    def _hessian(self, vectors: Tensor) -> Tensor:
        """H v for each column v."""
        return torch.stack([self._along(v) for v in vectors.unbind(1)], 1)

    def _along(self, v: Tensor) -> Tensor:
        pieces = v.split([p.numel() for p in self._parameters])
        directions = [piece.view_as(p) for piece, p in zip(pieces, self._parameters, strict=True)]
        found = torch.autograd.grad(
            self._gradients,
            self._parameters,
            directions,
            retain_graph=True,
            materialize_grads=True,
        )
        return torch.cat([h.flatten() for h in found])
