"""Optimizers for which no edge is known, and why.

They treat a number, a vector and a matrix in different ways, or change their rule with the step, so
that copies of one number would show the black box another rule.
"""

from __future__ import annotations

from typing import Any

from torch.optim import LBFGS, Optimizer, Rprop, SparseAdam

from optbench.dynamics.dispatch import by_name, closed_form, edge, trainable
from optbench.dynamics.edges import Edge, UnknownEdge
from optbench.dynamics.update_rule import unknown
from optbench.optimizers.grokfast import GrokFast
from optbench.optimizers.input_jacobian import LooksAtInputs
from optbench.optimizers.lookahead import Lookahead
from optbench.optimizers.sam import ASAM
from optbench.optimizers.with_graph import WithGraph
from optbench.optimizers.wrapper import Wrapper

REASONS: dict[type[Wrapper], str] = {
    ASAM: "ASAM climbs by T²g/‖Tg‖ with T = |w| + ξ, which no threshold is known for",
    Lookahead: (
        "Lookahead pulls back at every k-th step: its rule changes with the step, no fixed edge"
    ),
    GrokFast: (
        "Grokfast adds a slow average of gradients to what its base divides by: no edge is known"
    ),
    LooksAtInputs: "its step follows the slope of the input Jacobian too: no edge is known",
}


@edge.register(ASAM)
@edge.register(LooksAtInputs)
@edge.register(Lookahead)
@edge.register(GrokFast)
def _wrapped(optimizer: Wrapper) -> Edge:
    reason = next(text for cls, text in REASONS.items() if isinstance(optimizer, cls))
    return unknown(reason, [p for _, p in trainable(optimizer)])


@closed_form(Rprop, LBFGS, SparseAdam, understood=None)
def _not_linear(optimizer: Optimizer) -> Edge:
    reasons = {
        Rprop: "Rprop adapts its step to sign changes: at an oscillation it shrinks, no fixed edge",
        LBFGS: "L-BFGS has no fixed linear filter: memory and line search follow the curvature",
        SparseAdam: "SparseAdam updates only the entries that have a gradient at each step",
    }
    reason = next(text for cls, text in reasons.items() if isinstance(optimizer, cls))
    return unknown(reason, [p for _, p in trainable(optimizer)])


@edge.register(WithGraph)
def _with_graph(optimizer: WithGraph) -> Edge:
    """The base's own; a copy of it could not be fed, for what it is fed has no graph."""
    base = edge(optimizer.base)
    if not isinstance(base, UnknownEdge):
        return base
    name = type(optimizer.base).__name__
    return unknown(
        f"{name} divides by an estimate of the curvature itself: no edge is known",
        [p for _, p in trainable(optimizer)],
    )


@by_name("pytorch_optimizer.LARS", understood=None)
def _lars(optimizer: Any) -> Edge:
    reason = (
        "LARS scales the step of a matrix by ‖w‖/‖g‖, which changes with every step: no edge is "
        "known"
    )
    return unknown(reason, [p for _, p in trainable(optimizer)])


@by_name("pytorch_optimizer.MARS", understood=None)
def _mars(optimizer: Any) -> Edge:
    reason = (
        "MARS clips the corrected gradient of a matrix and has another rule for vectors: no edge "
        "is known"
    )
    return unknown(reason, [p for _, p in trainable(optimizer)])
