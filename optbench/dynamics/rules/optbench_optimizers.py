"""The edges of steepest descent and of optimizers by shape, both of `optbench.optimizers`."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from optbench.dynamics.dispatch import closed_form, edge, trainable
from optbench.dynamics.edges import (
    Edge,
    EigenvalueEdge,
    GradientEdge,
    NormBallEdge,
    Parameters,
    Resolved,
    Source,
    UnknownEdge,
    split,
)
from optbench.dynamics.norm_step import NormStep, norm_edge
from optbench.dynamics.update_rule import unknown
from optbench.optimizers.by_shape import ByShape
from optbench.optimizers.steepest import SteepestDescent

WEAKEST_FIRST: tuple[Source, ...] = ("conjecture", "probed", "closed form")


@closed_form(SteepestDescent, understood=("lr", "norm", "normalised"))
def _steepest(optimizer: SteepestDescent) -> Edge:
    """S = 2/η of the whole step η‖g‖_* s; as `norm_edge` where it is normalised."""
    parameters = tuple(p for _, p in trainable(optimizer))
    if len(optimizer.param_groups) > 1:
        return unknown(
            "steepest descent over several groups: each has a size of its own, no edge known",
            parameters,
        )
    group = optimizer.param_groups[0]
    lr, norm = float(group["lr"]), group["norm"]
    if group["normalised"]:
        return norm_edge([NormStep(p, lr) for p in parameters], norm)
    threshold = 2 / lr if lr else math.inf
    return NormBallEdge(threshold, norm, (1.0,) * len(parameters), "2/η", parameters)


@closed_form(ByShape, understood=("matrices", "rest"))
def _by_shape(optimizer: ByShape) -> Edge:
    """The joint edge of two eigenvalue edges; of the matrices alone where they step in a norm.

    Parts with thresholds τ₁, τ₂ on P₁, P₂ are stable together while the Hessian is below
    blockdiag(τ₁P₁, τ₂P₂), so that P₂τ₂/τ₁ and τ₁ describe both, exactly.
    """
    parts = {name: edge(part) for name, part in optimizer.parts.items()}
    parameters = [p for _, p in trainable(optimizer)]
    for name, part in parts.items():
        if isinstance(part, UnknownEdge):
            in_a_norm = name == "rest" and _on_a_norm_ball(parts.get("matrices", part))
            return UnknownEdge(f"of the {name}: {part.reason}", tuple(parameters), in_a_norm)
    matrices, rest = parts.get("matrices"), parts.get("rest")
    if matrices is not None:
        matrices = _as_tensors(matrices, optimizer)
    if matrices is None or rest is None:
        alone = matrices or rest
        assert alone is not None
        return alone
    return _of_both(matrices, rest)


def _of_both(matrices: Edge, rest: Edge) -> Edge:
    match matrices, rest:
        case EigenvalueEdge(), EigenvalueEdge():
            return _joint(matrices, rest)
        case NormBallEdge(), _ if not _on_a_norm_ball(rest):
            return _of_the_matrices(matrices, rest.parameters)
        case GradientEdge(), _ if _on_a_norm_ball(matrices) and not _on_a_norm_ball(rest):
            return _of_the_matrices_at_a_gradient(matrices, rest.parameters)
    assert not isinstance(matrices, UnknownEdge) and not isinstance(rest, UnknownEdge)
    return unknown(
        f"no joint edge is known for matrices on {matrices.quantity} and the rest on "
        f"{rest.quantity}",
        matrices.parameters + rest.parameters,
    )


def _on_a_norm_ball(edge: Edge) -> bool:
    waiting = isinstance(edge, GradientEdge) and edge.on_a_norm_ball
    return waiting or isinstance(edge, NormBallEdge)


def _joint(one: EigenvalueEdge, other: EigenvalueEdge) -> EigenvalueEdge:
    first = one if math.isfinite(one.threshold) or math.isinf(other.threshold) else other
    both = (one, other)
    roots = tuple(r for part in both for r in part.roots or (None,) * len(part.parameters))
    shifts = tuple(s for part in both for s in part.shift or (0.0,) * len(part.parameters))
    return EigenvalueEdge(
        first.threshold,
        f"{first.formula}, P scaled in the other part",
        one.parameters + other.parameters,
        source=min((part.source for part in both), key=WEAKEST_FIRST.index),
        reason="; ".join(part.reason for part in both if part.reason),
        preconditioner=_scaled(one, first.threshold) + _scaled(other, first.threshold),
        roots=roots if any(r is not None for r in roots) else None,
        shift=shifts if any(shifts) else None,
        ascent=first.ascent,
        learned=one.learns + other.learns,
    )


def _scaled(part: EigenvalueEdge, threshold: float) -> tuple[Tensor, ...]:
    """τ_part/τ · P, infinite where the part does not move."""
    scale = part.threshold / threshold if math.isfinite(part.threshold) else math.inf
    diagonal = part.preconditioner or tuple(torch.ones_like(p) for p in part.parameters)
    return tuple(d * scale for d in diagonal) if scale != 1 else diagonal


def _of_the_matrices(matrices: NormBallEdge, rest: Parameters) -> NormBallEdge:
    """The norm ball's edge with the rest held: its radii are 0."""
    return replace(
        matrices,
        source="conjecture",
        parameters=matrices.parameters + rest,
        radii=matrices.radii + (0.0,) * len(rest),
        reason="; ".join(filter(None, ["of the matrices alone, the rest held", matrices.reason])),
    )


def _of_the_matrices_at_a_gradient(matrices: GradientEdge, rest: Parameters) -> GradientEdge:
    """As `_of_the_matrices`; the gradient of the rest does not count."""
    count = sum(p.numel() for p in matrices.parameters)

    def resolve(gradient: Tensor) -> Resolved:
        known = matrices.at(gradient[:count])
        return _of_the_matrices(known, rest) if isinstance(known, NormBallEdge) else known

    return replace(
        matrices,
        resolve=resolve,
        source="conjecture",
        parameters=matrices.parameters + rest,
        reason="; ".join(filter(None, ["of the matrices alone, the rest held", matrices.reason])),
        learns=matrices.learns + (False,) * len(rest),
    )


def _as_tensors(matrices: Edge, optimizer: ByShape) -> Edge:
    """The edge of the matrix views as one of the tensors that they are views of."""
    tensors = tuple(optimizer.tensors(matrices.parameters))
    if isinstance(matrices, GradientEdge):
        at = matrices.at

        def resolve(gradient: Tensor) -> Resolved:
            pairs = zip(split(gradient, tensors), tensors, strict=True)
            pieces = [optimizer.as_matrix(g, p).reshape(-1) for g, p in pairs]
            known = _as_tensors(at(torch.cat(pieces)), optimizer)
            assert not isinstance(known, GradientEdge)
            return known

        return replace(matrices, parameters=tensors, resolve=resolve)
    if isinstance(matrices, EigenvalueEdge) and matrices.preconditioner is not None:
        pairs = zip(matrices.preconditioner, tensors, strict=True)
        diagonal = tuple(optimizer.as_tensor(d, p) for d, p in pairs)
        return replace(matrices, parameters=tensors, preconditioner=diagonal)
    return replace(matrices, parameters=tensors)
