"""Whether the preconditioner P has averaged enough gradients for an edge to mean anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optbench.dynamics.edges import Edge, UnknownEdge
from optbench.optimizers.nested import nested

LEAST = 20
"""Least number of gradients in P: √ν of n independent ones is known to 1/√(2n), here 16 %."""

MEMORIES = 2
"""Least age of P in memories of the filter: a memory without gradients lowers P by 18 %."""

PASSES = 2
"""Least number of passes of P over the Hessian's examples: P is near 0 where none came by."""

# what torch and pytorch_optimizer call a group's β
_MOMENTA = ("betas", "momentum", "beta1", "beta")


@dataclass(frozen=True)
class Unsettled:
    """The tensor whose P is furthest from settled.

    Attributes:
        averaged: Gradients that its P has averaged.
        needed: How many it takes.
    """

    averaged: float
    needed: int

    @property
    def left(self) -> int:
        """Updates that are missing, if each has a gradient."""
        return math.ceil(self.needed - self.averaged)


def unsettled(
    edge: Edge, optimizer: Optimizer, updates: int, batches: float = 1.0
) -> Unsettled | None:
    """Return what P still lacks, or None where the edge may be compared with.

    The threshold (2−ηλ)/(η T(−1)) supposes a P that holds still while the filter T forgets, for
    m = 1/(1−β) steps. P averages squared gradients, so that it moves by about 1/(2t) a step at
    first. It counts as settled after

        t ≥ max(20, 2m, 2n/B) gradients of B examples each, for a Hessian over n,

    since then neither chance nor the next m steps move it by more than a fifth:

    1. √ν from t independent gradients has a relative error of 1/√(2t): 16 % for 20. Of a million
       entries the smallest is then a third of what it should be, from 10 gradients a fifth, and
       from 2 a thousandth; λ₁(P⁻¹H) is about these entries.
    2. If no gradient comes in the next m steps, ν falls to t/(t+m) of itself, √ν to √(2/3) for
       t = 2m. The first moment's bias correction 1−βᵗ, part of P, grows by less: from .88 to .96
       for β = .9.
    3. An entry that few examples move (a pixel that is seldom on) has P = ε until one of them
       comes, while H knows them all. On digits λ₁(P⁻¹H) was 100 times too large until n examples
       had been seen, and often 5 times until 2n had.

    Later P moves by at most (1−β₂)/2 a step, and does not settle further. What the optimizer does
    before is not wrong in the formula: RMSprop's real P is too small by √(1−αᵗ). But it changes
    faster than an oscillation could grow in it.

    Gradients are counted for each tensor, in `step` of its state, else of its group: one that was
    frozen counts from its first gradient. Where the optimizer does not count, `updates` stands in.

    Args:
        edge: Edge, in any order of its tensors.
        optimizer: What it is the edge of; wrappers and parts are looked through.
        updates: Updates done so far.
        batches: n/B, how many batches hold as many examples as the Hessian is over; 1 for the full
            batch.
    """
    groups = {_key(p): (group, count) for group, p, count in _counted(optimizer)}
    found = []
    if isinstance(edge, UnknownEdge):
        return None
    for p, learns in zip(edge.parameters, edge.learns, strict=True):
        if learns:
            group, count = groups.get(_key(p), ({}, None))
            needed = math.ceil(max(LEAST, MEMORIES * memory(group), PASSES * batches) - 1e-9)
            found.append(Unsettled(updates if count is None else count, needed))
    worst = max(found, key=lambda u: u.needed - u.averaged, default=None)
    return worst if worst is not None and worst.averaged < worst.needed else None


def memory(group: Mapping[str, Any]) -> float:
    """Memory of a group's filter, 1/(1−β) steps; 1 without momentum, or if its name is unknown."""
    for name in _MOMENTA:
        beta = group.get(name)
        if isinstance(beta, (tuple, list)):
            beta = beta[0] if beta else None
        if isinstance(beta, (int, float, Tensor)) and 0 <= float(beta) < 1:
            return 1 / (1 - float(beta))
    return 1.0


def _key(p: Tensor) -> tuple[int, int]:
    """Key that is the same for a tensor and for a view of all of it."""
    return p.data_ptr(), p.numel()


def _counted(optimizer: Optimizer) -> Iterator[tuple[Mapping[str, Any], Tensor, float | None]]:
    """Every parameter, its group and its count of gradients (None: not counted); innermost last."""
    for part in nested(optimizer):
        for group in part.param_groups:
            for p in group["params"]:
                count = part.state.get(p, {}).get("step", group.get("step"))
                yield group, p, None if count is None else float(count)
