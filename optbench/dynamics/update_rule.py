"""How the update rules of single tensors combine into one edge of stability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.dynamics.edges import EigenvalueEdge, MatVec, UnknownEdge


@dataclass(frozen=True, eq=False)
class Term:
    """How one tensor is updated: w ← (1 − decay) w − lr · T(z)[P⁻¹ (g + shift · w)].

    Attributes:
        parameter: The tensor w.
        lr: Step size; 0 for a tensor that the optimizer does not move.
        gain: T(−1), the filter's answer to an alternating gradient.
        decay: Decoupled decay per step, ηλ in AdamW.
        shift: Coupled weight decay.
        diagonal: P, or its scalar part if there is a root; None for the identity.
        root: v ↦ M^-½ v on a block (n, K) of flat columns, for P = diagonal · M.
        learned: Whether P is learned from gradients, so that it has to settle; None: if there is
            one.
    """

    parameter: Tensor
    lr: float
    gain: float = 1.0
    decay: float = 0.0
    shift: float = 0.0
    diagonal: Tensor | None = None
    root: MatVec | None = None
    learned: bool | None = None

    @property
    def learns(self) -> bool:
        """Whether it moves by a P that is learned from gradients; see `dynamics.settling`."""
        has_one = self.diagonal is not None or self.root is not None
        return self.lr > 0 and (has_one if self.learned is None else self.learned)

    @property
    def coefficient(self) -> float:
        """C = η T(−1) / (2 − ηλ): stable while λ₁(c P⁻¹ (H + shift)) < 1."""
        return self.lr * self.gain / (2 - self.decay)


def unknown(reason: str, parameters: Sequence[Tensor] = ()) -> UnknownEdge:
    """An edge that is not known, and why."""
    return UnknownEdge(reason, tuple(parameters))


def combine(terms: Sequence[Term], formula: str, reason: str = "") -> EigenvalueEdge | UnknownEdge:
    """One edge from the update rule of every tensor, exactly and without averaging.

    With C = diag(c), c_l = η_l T_l(−1)/(2 − η_lλ_l), stability is lost through z = −1 where
    λ₁(C P⁻¹(H + D)) = 1. The threshold returned is 1/c of the first tensor that moves, and P is
    scaled by c_first/c_l, so that equal groups keep the textbook numbers and unequal ones are
    exact. Without preconditioner and with equal decay everywhere, D goes into the threshold.

    It is exact for groups with different momentum as well: for filters
    G(z) = A/(z−a) + Bz/((z−a)(z−b)) with A, B ≥ 0, −1 < a ≤ 1, 0 ≤ b < 1, the imaginary part of
    G is negative on the open upper unit half-circle, so det(I + G(z)P⁻¹H) has no zero there and
    roots leave the unit disc through z = −1 only, whatever positive definite H couples them.

    Args:
        terms: One per trainable tensor, in the optimizer's order.
        formula: Threshold for a reader.
        reason: Idealization made, if any.
    """
    parameters = tuple(t.parameter for t in terms)
    if (problem := _problem(terms)) is not None:
        return unknown(problem, parameters)
    moving = [t for t in terms if t.lr > 0]
    if not moving:
        return EigenvalueEdge(math.inf, "nothing moves", parameters)
    first = moving[0].coefficient
    if _one_threshold(terms, first):
        # (H + wd) u = λ u has λ₁(H) + wd: decay that is equal everywhere only moves the threshold
        decay = terms[0].shift
        threshold = 1 / first - decay
        if threshold <= 0:
            return unknown(
                f"weight_decay={decay:g} alone is unstable at lr={moving[0].lr:g}: lower either",
                parameters,
            )
        formula += " − wd" * bool(decay)
        learned = tuple(t.learns for t in terms)
        return EigenvalueEdge(threshold, formula, parameters, reason=reason, learned=learned)
    return _preconditioned(terms, first, formula, reason)


def _one_threshold(terms: Sequence[Term], first: float) -> bool:
    """Whether one number on λ₁(H) says it all: P = 1, and c and the decay equal everywhere."""
    identity = _equal(terms, first) and all(t.diagonal is None and t.root is None for t in terms)
    return identity and len({t.shift for t in terms}) == 1


def _equal(terms: Sequence[Term], first: float) -> bool:
    return all(math.isclose(t.coefficient, first, rel_tol=1e-12) for t in terms)


def _preconditioned(
    terms: Sequence[Term], first: float, formula: str, reason: str
) -> EigenvalueEdge:
    """Edge with P scaled by c_first/c_l in every tensor, and the decay beside the Hessian."""
    equal = _equal(terms, first)
    identity = equal and all(t.diagonal is None and t.root is None for t in terms)
    roots = tuple(t.root for t in terms)
    shifts = tuple(t.shift for t in terms)
    said = " of the first group, P scaled in the others" * (not equal)
    said += ", wd added to H" * any(shifts)
    return EigenvalueEdge(
        1 / first,
        formula + said,
        tuple(t.parameter for t in terms),
        reason=reason,
        preconditioner=None if identity else tuple(_scaled(t, first, equal) for t in terms),
        roots=roots if any(r is not None for r in roots) else None,
        shift=shifts if any(shifts) else None,
        learned=tuple(t.learns for t in terms),
    )


def _problem(terms: Sequence[Term]) -> str | None:
    for t in terms:
        if t.parameter.is_complex():
            return "complex parameters are not covered"
        if not 0 <= t.decay < 2:
            return f"decoupled decay per step is {t.decay:g}, stable only in [0, 2): lower lr"
        if t.lr < 0 or (t.lr > 0 and not t.gain > 0):
            return f"lr={t.lr:g} with T(−1)={t.gain:g}: the formula needs both to be positive"
    return None


def _scaled(t: Term, first: float, equal: bool) -> Tensor:
    base = torch.ones_like(t.parameter) if t.diagonal is None else t.diagonal
    if equal:
        return base
    return base * (first / t.coefficient) if t.lr > 0 else torch.full_like(base, math.inf)
