"""The edge of an optimizer that nobody described, found by watching copies of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from optbench.dynamics.black_box.responses import (
    TOLERANCE,
    UnclearError,
    difference,
    small_response,
)
from optbench.dynamics.black_box.scalar_gain import SETTLE, Gain, probe
from optbench.dynamics.black_box.twin import check_copyable, hyperparameters, resumed
from optbench.dynamics.edges import NO_STEP, Edge, UnknownEdge
from optbench.dynamics.update_rule import Term, combine, unknown

ADVICE = "; register a rule: @edge.register(YourOptimizer)"

_gains: WeakKeyDictionary[Optimizer, dict[str, Gain | UnclearError]] = WeakKeyDictionary()


def black_box(optimizer: Optimizer, why: str = "") -> Edge:
    """The edge of any optimizer, from the behaviour of copies; unknown rather than guessed.

    For every group, a fresh one-parameter copy at the group's hyperparameters gets the gradients
    +1, −1, +1, …. The settled update is u = η T(−1), so that the threshold is 2/u; weight decay
    of either kind is included, since the copy's own oscillation feeds it. Then:

    - the update still changes after SETTLE/2 steps: time-dependent, unknown;
    - doubled gradients double it: linear. The curvature where the copy diverges on ½aw², by
      bisection, must agree with 2/u within 1 %, else unknown. In its present state the optimizer
      must answer a gradient as the settled copy does: otherwise its state, such as a warm-up or a
      step size that it found, is part of the rule, unknown;
    - doubled gradients leave it: normalized. If it also ignores a sudden change of size it is
      sign-like, and one dimension does not tell the geometry: unknown. If its answer to an
      impulse shows that a slower oscillation turns unstable first: unknown. Else it divides by a
      slow P, and a copy of the whole optimizer, in double precision with its state, shows P:
      P_i = (response to a small gradient after gradients ±1) / (response now), with the bias
      corrections of the next update. Unknown if a parameter answers to another's gradient, or
      not in proportion. Decay is told coupled from decoupled by gradients ±2;
    - anything else is non-linear: unknown.

    What the class's own step adds to its groups or changes in them, or on the optimizer itself, is
    state, and fresh copies start without it; see `optbench.dynamics.black_box.twin`.

    Costs 4,000 to 12,000 updates of one number per group, 0.1 to 0.5 s, when hyperparameters
    change, and 2 updates of a double precision copy of the optimizer at every call, 10 to 50 if it
    is adaptive. Optimizer and parameters are only read, and torch's random state is restored.

    Args:
        optimizer: Any torch.optim.Optimizer.
        why: Why the class's rule does not hold, if it has one; becomes part of the reason.

    Returns:
        An EigenvalueEdge with source "probed", or an UnknownEdge with the reason.
    """
    parameters = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    try:
        check_copyable(optimizer)
        cuda = {p.device.index for p in parameters if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=sorted(cuda)), torch.enable_grad():
            gains = [_gain(optimizer, group) for group in optimizer.param_groups]
            return _assemble(optimizer, gains, why)
    except UnclearError as problem:
        reason = str(problem)
    except Exception as problem:  # a user's optimizer may raise anything
        reason = f"a copy of {type(optimizer).__name__} raised {problem!r}"
    return unknown("; ".join(filter(None, [why, reason])) + ADVICE, parameters)


def _assemble(optimizer: Optimizer, gains: Sequence[Gain], why: str) -> Edge:
    adaptive = [gain.adaptive for gain in gains]
    if any(adaptive) != all(adaptive):
        raise UnclearError("some groups are preconditioned and some are not")
    responses = None
    if all(adaptive):
        responses = _responses(optimizer, [gain.shift for gain in gains])
    else:
        _check_the_present_state(optimizer, gains)
    terms, i = [], 0
    for group, gain in zip(optimizer.param_groups, gains, strict=True):
        lr = float(group.get("lr", 1.0)) or 1.0
        for p in group["params"]:
            if not p.requires_grad:
                continue
            diagonal = None if responses is None else (gain.response / responses[i]).to(p.dtype)
            terms.append(Term(p, lr, gain.step / lr, gain.decay, gain.shift, diagonal))
            i += 1
    combined = combine(terms, "", why)
    if isinstance(combined, UnknownEdge):
        raise UnclearError(combined.reason)
    return replace(combined, source="probed", formula=f"{combined.threshold:.4g}")


def _gain(optimizer: Optimizer, group: dict[str, Any]) -> Gain:
    """What the one-parameter copy shows, remembered while the hyperparameters stay."""
    key = repr(sorted(hyperparameters(optimizer, group).items()))
    known = _gains.setdefault(optimizer, {})
    if key not in known:
        if len(known) >= len(optimizer.param_groups):
            known.clear()
        try:
            known[key] = probe(optimizer, group)
        except UnclearError as problem:
            known[key] = problem
    if isinstance(found := known[key], UnclearError):
        raise found
    return found


def _responses(optimizer: Optimizer, shifts: Sequence[float]) -> list[Tensor]:
    """D update / d gradient at gradient zero and the current state, per trainable parameter."""
    if not optimizer.state:
        raise UnclearError(NO_STEP)
    twin, tracked = _in_double_precision(optimizer)
    per_parameter = [
        s for g, s in zip(optimizer.param_groups, shifts, strict=True) for p in _trainable(g)
    ]
    base = [-shift * p.detach() for shift, p in zip(per_parameter, tracked, strict=True)]
    return small_response(twin, tracked, base)


def _check_the_present_state(optimizer: Optimizer, gains: Sequence[Gain]) -> None:
    """Compare the answer of every parameter that has state with that of the settled copy.

    Raises:
        UnclearError: If they differ: a fresh copy does not show what this optimizer does now.
    """
    if not any(optimizer.state.values()):
        return  # no step yet, or none that leaves a trace
    twin, tracked = _in_double_precision(optimizer)
    zeros = [torch.zeros_like(p) for p in tracked]
    moved = difference(twin, tracked, zeros, [torch.ones_like(p) for p in tracked])
    held = [
        (p, gain)
        for g, gain in zip(optimizer.param_groups, gains, strict=True)
        for p in _trainable(g)
    ]
    for (p, gain), d in zip(held, moved, strict=True):
        settled = torch.full_like(d, gain.response)
        if optimizer.state.get(p) and not torch.allclose(d, settled, rtol=10 * TOLERANCE, atol=0):
            raise UnclearError(
                "its state is part of the rule: a gradient 1 moves a weight by "
                f"{float(d.mean()):g} now, "
                f"by {gain.response:g} after {SETTLE} steps of a fresh copy"
            )


def _in_double_precision(optimizer: Optimizer) -> tuple[Optimizer, list[Tensor]]:
    """A copy with the optimizer's state, and its trainable parameters."""
    groups, tracked = [], []
    for group in optimizer.param_groups:
        clones = [p.detach().to(torch.float64, copy=True) for p in group["params"]]
        for p, clone in zip(group["params"], clones, strict=True):
            if p.requires_grad:
                tracked.append(clone.requires_grad_())
        groups.append({**group, "params": clones})
    return resumed(optimizer, groups), tracked


def _trainable(group: dict[str, Any]) -> list[Tensor]:
    return [p for p in group["params"] if p.requires_grad]
