"""The edges of the optimizers in `optbench.optimizers`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from optbench.dynamics.dispatch import closed_form, edge, trainable
from optbench.dynamics.edges import Edge, split
from optbench.dynamics.rules.norm_ball import NormStep, lion_edge, norm_edge, sam_edge, signum_edge
from optbench.dynamics.update_rule import unknown
from optbench.optimizers.by_shape import ByShape
from optbench.optimizers.sam import SAM
from optbench.optimizers.sign import Lion, Signum
from optbench.optimizers.steepest import SteepestDescent

closed_form(Signum, understood=("lr", "momentum", "weight_decay"))(signum_edge)
closed_form(Lion, understood=("lr", "betas", "weight_decay"))(lion_edge)


@closed_form(SAM, understood=("base", "rho"))
def _sam(optimizer: SAM) -> Edge:
    return sam_edge(edge(optimizer.base), optimizer.rho)


@closed_form(SteepestDescent, understood=("lr", "norm", "normalised"))
def _steepest(optimizer: SteepestDescent) -> Edge:
    """S = 2/η of the whole step η‖g‖_* s; as `norm_edge` where it is normalised."""
    held = list(trainable(optimizer))
    parameters = tuple(p for _, p in held)
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
    return Edge(threshold, "closed form", "2/η", parameters, norm, radii=(1.0,) * len(parameters))


@closed_form(ByShape, understood=("matrices", "rest"))
def _by_shape(optimizer: ByShape) -> Edge:
    """The joint edge of two l2 parts; of the matrices alone where they step in a norm, as a conjecture.

    Two l2 parts with thresholds τ₁, τ₂ on P₁, P₂ are stable together while the Hessian is below
    blockdiag(τ₁P₁, τ₂P₂), so that P₂τ₂/τ₁ and τ₁ describe both, exactly.
    """
    parts = {name: edge(part) for name, part in optimizer.parts.items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for name, part in parts.items():
        if part.source == "unknown":
            return unknown(f"of the {name}: {part.reason}", parameters)
    matrices, rest = parts.get("matrices"), parts.get("rest")
    if matrices is not None:
        matrices = _as_tensors(matrices, optimizer)
    if matrices is None or rest is None:
        alone = matrices or rest
        assert alone is not None
        return alone
    if matrices.geometry == rest.geometry == "l2" and not (
        matrices.needs_gradient or rest.needs_gradient
    ):
        return _joint([matrices, rest])
    if matrices.geometry != "l2" and rest.geometry == "l2":
        return _of_the_matrices(matrices, rest)
    return unknown(
        f"no joint edge is known for matrices in {matrices.geometry} and the rest in {rest.geometry}",
        parameters,
    )


def _joint(parts: Sequence[Edge]) -> Edge:
    first = next((part for part in parts if math.isfinite(part.threshold)), parts[0])
    diagonals: list[Tensor] = []
    for part in parts:
        scale = part.threshold / first.threshold if math.isfinite(part.threshold) else math.inf
        own = part.preconditioner or tuple(torch.ones_like(p) for p in part.parameters)
        diagonals += [d * scale for d in own] if scale != 1 else own
    roots = tuple(r for part in parts for r in part.roots or (None,) * len(part.parameters))
    shifts = tuple(s for part in parts for s in part.shift or (0.0,) * len(part.parameters))
    sources = {part.source for part in parts}
    source = next(s for s in ("conjecture", "probed", "closed form") if s in sources)
    return replace(
        first,
        source=source,
        formula=f"{first.formula}, P scaled in the other part",
        parameters=tuple(p for part in parts for p in part.parameters),
        preconditioner=tuple(diagonals),
        roots=roots if any(r is not None for r in roots) else None,
        shift=shifts if any(shifts) else None,
        learned=tuple(learns for part in parts for learns in part.learns),
        reason="; ".join(part.reason for part in parts if part.reason),
    )


def _of_the_matrices(matrices: Edge, rest: Edge) -> Edge:
    """The norm edge with the others held: their radii are 0, and their gradient does not count."""
    count = sum(p.numel() for p in matrices.parameters)

    def resolve(gradient: Tensor) -> Edge:
        return replace(result, threshold=matrices.at(gradient[:count]).threshold, resolve=None)

    result = replace(
        matrices,
        source="conjecture",
        parameters=matrices.parameters + rest.parameters,
        radii=(matrices.radii or (1.0,) * len(matrices.parameters)) + (0.0,) * len(rest.parameters),
        reason="; ".join(filter(None, ["of the matrices alone, the rest held", matrices.reason])),
        resolve=resolve if matrices.needs_gradient else None,
    )
    return result


def _as_tensors(matrices: Edge, optimizer: ByShape) -> Edge:
    """The edge of the matrix views as one of the tensors that they are views of."""
    tensors = optimizer.tensors(matrices.parameters)
    order = optimizer.as_matrix

    def resolve(gradient: Tensor) -> Edge:
        pieces = [
            order(g, p).reshape(-1) for g, p in zip(split(gradient, tensors), tensors, strict=True)
        ]
        return _as_tensors(matrices.at(torch.cat(pieces)), optimizer)

    known = matrices.preconditioner
    return replace(
        matrices,
        parameters=tuple(tensors),
        preconditioner=known
        and tuple(optimizer.as_tensor(d, p) for d, p in zip(known, tensors, strict=True)),
        resolve=resolve if matrices.needs_gradient else None,
    )
