"""The edge of an optimizer that nobody described, found by watching copies of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from optbench.dynamics.copies import UnclearError, fresh, small_response
from optbench.dynamics.gain import Gain, probe
from optbench.dynamics.stability import Edge
from optbench.dynamics.terms import Term, combine, unknown

ADVICE = "; register a rule: @edge.register(YourOptimizer)"

_gains: WeakKeyDictionary[Optimizer, dict[str, Gain | UnclearError]] = WeakKeyDictionary()


def black_box(optimizer: Optimizer) -> Edge:
    """The edge of any optimizer, from the behaviour of copies; unknown rather than guessed.

    For every group, a fresh one-parameter copy at the group's hyperparameters gets the gradients
    +1, −1, +1, …. The settled update is u = η T(−1), so that the threshold is 2/u; weight decay
    of either kind is included, since the copy's own oscillation feeds it. Then:

    - the update still changes after SETTLE/2 steps: time-dependent, unknown;
    - doubled gradients double it: linear. The curvature where the copy diverges on ½aw², by
      bisection, must agree with 2/u within 1 %, else unknown;
    - doubled gradients leave it: normalized. If it also ignores a sudden change of size it is
      sign-like, and one dimension does not tell the geometry: unknown. If its answer to an
      impulse shows that a slower oscillation turns unstable first: unknown. Else it divides by a
      slow P, and a copy of the whole optimizer, in double precision with its state, shows P:
      P_i = (response to a small gradient after gradients ±1) / (response now), with the bias
      corrections of the next update. Unknown if a parameter answers to another's gradient, or
      not in proportion. Decay is told coupled from decoupled by gradients ±2;
    - anything else is non-linear: unknown.

    Costs 4,000 to 12,000 updates of one number per group, 0.1 to 0.5 s, when hyperparameters
    change, and for an adaptive optimizer 10 to 50 updates of a double precision copy of it at
    every call. Optimizer and parameters are only read, and torch's random state is restored.

    Args:
        optimizer: Any torch.optim.Optimizer.

    Returns:
        An edge with source "probed", or "unknown" with the reason.
    """
    parameters = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    try:
        cuda = {p.device.index for p in parameters if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=sorted(cuda)), torch.enable_grad():
            gains = [_gain(optimizer, group) for group in optimizer.param_groups]
            return _assemble(optimizer, gains)
    except UnclearError as problem:
        return unknown(str(problem) + ADVICE, parameters)
    except Exception as problem:  # a user's optimizer may raise anything
        name = type(optimizer).__name__
        return unknown(f"a copy of {name} raised {problem!r}{ADVICE}", parameters)


def _assemble(optimizer: Optimizer, gains: Sequence[Gain]) -> Edge:
    adaptive = [not math.isnan(gain.response) for gain in gains]
    if any(adaptive) != all(adaptive):
        raise UnclearError("some groups are preconditioned and some are not")
    shifts = [gain.shift for gain in gains]
    responses = _responses(optimizer, shifts) if all(adaptive) else None
    terms, i = [], 0
    for group, gain in zip(optimizer.param_groups, gains, strict=True):
        lr = float(group.get("lr", 1.0)) or 1.0
        for p in group["params"]:
            if not p.requires_grad:
                continue
            diagonal = None if responses is None else (gain.response / responses[i]).to(p.dtype)
            terms.append(Term(p, lr, gain.step / lr, gain.decay, gain.shift, diagonal))
            i += 1
    e = combine(terms, "", "")
    if e.source == "unknown":
        raise UnclearError(e.reason)
    values = vars(e) | {"source": "probed", "formula": f"{e.threshold:.4g} (probed)"}
    return Edge(**values)


def _gain(optimizer: Optimizer, group: dict[str, Any]) -> Gain:
    """What the one-parameter copy shows, remembered while the hyperparameters stay."""
    key = repr(sorted((k, repr(v)) for k, v in group.items() if k not in {"params", "step"}))
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
        raise UnclearError("no step taken yet, so P does not exist: ask after a step")
    groups, tracked, base = [], [], []
    for group, shift in zip(optimizer.param_groups, shifts, strict=True):
        clones = [p.detach().to(torch.float64, copy=True) for p in group["params"]]
        for p, clone in zip(group["params"], clones, strict=True):
            if p.requires_grad:
                tracked.append(clone.requires_grad_())
                base.append(-shift * clone.detach())
        groups.append({**group, "params": clones})
    twin = fresh(optimizer, groups)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return small_response(twin, tracked, base)
