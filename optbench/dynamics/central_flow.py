"""The central flow: a differential equation for the time average of a run at its edge.

Time is counted in steps of the optimizer. With preconditioner P (so that a step is
w ← w − P⁻¹∇L), the covariance Σ of the oscillation about the average weights, and U the
eigenvectors of P⁻¹H at the edge, UᵀPU = 1, Σ = U X Uᵀ:

    dw/dt = −P⁻¹ (∇L + ½ ∇⟨H, Σ⟩)
    dν/dt = rate · (∇L² + diag(H Σ H) − ν)                    for RMSprop
    X ⪰ 0,  2 − UᵀHU ⪰ 0,  ⟨X, 2 − UᵀHU⟩ = 0                   at all times

X is what keeps the eigenvalues of P⁻¹H from passing 2. Without X it is the flow that has no
oscillation: gradient flow, or "stable flow" for RMSprop.

References:
    Cohen et al. (2025), arXiv:2410.24206.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from optbench.curvature import Eigenpairs, Preconditioned, top_eigenpairs
from optbench.dynamics.complementarity import complementary
from optbench.dynamics.flat_loss import Derivatives, FlatLoss, pairs
from optbench.errors import UserError

EDGE = 2.0
"""Eigenvalue of P⁻¹H at the edge of stability."""

NEAR = 0.3
"""Eigenvalues above EDGE − NEAR take part in the complementarity problem."""

SUBSTEPS = 4
"""Euler steps a step of the optimizer: along an eigenvector at the edge each takes off half."""

ACCURACY = 1e-3


@dataclass(frozen=True)
class State:
    """Where an optimizer is.

    Attributes:
        weights: w, (P,).
        squares: ν, running mean of squared gradients, (P,); zeros where the rule has none.
    """

    weights: Tensor
    squares: Tensor


class Rule(Protocol):
    """An optimizer that preconditions by a diagonal."""

    def preconditioner(self, squares: Tensor) -> Tensor:
        """Diagonal of P, (P,)."""

    def preconditioner_slope(self, squares: Tensor) -> Tensor:
        """Diagonal of dP/dν, (P,)."""

    @property
    def rate(self) -> float:
        """Rate at which ν follows the squared gradient, per step."""

    def step(self, loss: FlatLoss, state: State) -> State:
        """One step of the optimizer itself."""


@dataclass(frozen=True)
class GradientDescent:
    """w ← w − lr ∇L, P = 1/lr."""

    lr: float

    def preconditioner(self, squares: Tensor) -> Tensor:
        """1/lr."""
        return torch.full_like(squares, 1 / self.lr)

    def preconditioner_slope(self, squares: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(squares)

    @property
    def rate(self) -> float:
        """0: there is no ν."""
        return 0.0

    def step(self, loss: FlatLoss, state: State) -> State:
        """One step of gradient descent."""
        return State(state.weights - self.lr * loss.gradient(state.weights), state.squares)


@dataclass(frozen=True)
class RMSprop:
    """ν ← α ν + (1 − α) ∇L², w ← w − lr ∇L/(√ν + ε), as torch's; P = (√ν + ε)/lr.

    ν_t is the one that the step from w_t uses, so that ν_t − ν_{t−1} = rate · (∇L(w_t)² − ν_t) with
    rate (1 − α)/α.
    """

    lr: float
    alpha: float = 0.99
    eps: float = 1e-8

    def preconditioner(self, squares: Tensor) -> Tensor:
        """(√ν + ε)/lr."""
        return (squares.sqrt() + self.eps) / self.lr

    def preconditioner_slope(self, squares: Tensor) -> Tensor:
        """1/(2 lr √ν); 0 where ν = 0: there no gradient has ever been, and none oscillates."""
        return torch.where(squares > 0, 0.5 / (self.lr * squares.sqrt()), 0.0)

    @property
    def rate(self) -> float:
        """(1 − α)/α."""
        return (1 - self.alpha) / self.alpha

    def step(self, loss: FlatLoss, state: State) -> State:
        """One step of RMSprop."""
        gradient = loss.gradient(state.weights)
        squares = self.alpha * state.squares + (1 - self.alpha) * gradient.square()
        return State(state.weights - gradient / self.preconditioner(squares), squares)


def discrete(loss: FlatLoss, rule: Rule, state: State) -> Iterator[State]:
    """The optimizer itself: the state after each step."""
    while True:
        state = rule.step(loss, state)
        yield state


def stable_flow(
    loss: FlatLoss, rule: Rule, state: State, substeps: int = SUBSTEPS
) -> Iterator[State]:
    """The flow without oscillation, dw/dt = −P⁻¹∇L; the state after each unit of time.

    By the classical Runge-Kutta method, which is stable up to eigenvalues of 2.7 · substeps.

    Args:
        loss: L.
        rule: Optimizer.
        state: Where it begins.
        substeps: Runge-Kutta steps a unit of time.
    """

    def slope(at: State) -> State:
        gradient = loss.gradient(at.weights)
        return State(
            -gradient / rule.preconditioner(at.squares),
            rule.rate * (gradient.square() - at.squares),
        )

    dt = 1 / substeps
    while True:
        for _ in range(substeps):
            first = slope(state)
            second = slope(_moved(state, first, dt / 2))
            third = slope(_moved(state, second, dt / 2))
            fourth = slope(_moved(state, third, dt))
            for each, weight in ((first, 1), (second, 2), (third, 2), (fourth, 1)):
                state = _moved(state, each, weight * dt / 6)
        yield state


def _moved(state: State, slope: State, dt: float) -> State:
    return State(state.weights + dt * slope.weights, state.squares + dt * slope.squares)


@dataclass(frozen=True)
class Center:
    """The central flow at a time.

    Attributes:
        state: Average weights, and ν.
        loss: L at the average weights.
        oscillation: ½⟨H, Σ⟩: what the oscillation adds to the average loss.
        top: Largest eigenvalues of P⁻¹H, (K,), before this time's last substep.
        covariance: X, (k, k) with k the number of eigenvalues near the edge.
        slack: 2 − UᵀHU where the substep leads, to first order, (k, k).
    """

    state: State
    loss: float
    oscillation: float
    top: Tensor
    covariance: np.ndarray
    slack: np.ndarray

    @property
    def predicted_loss(self) -> float:
        """Predicted time average of the loss, L(w) + ½⟨H, Σ⟩."""
        return self.loss + self.oscillation


def central_flow(
    loss: FlatLoss, rule: Rule, state: State, substeps: int = SUBSTEPS
) -> Iterator[Center]:
    """The central flow; what it is at after each unit of time.

    Euler steps, in each of which X is such that the *next* eigenvalues do not pass the edge, to
    first order in the time step.

    Args:
        loss: L, three times differentiable.
        rule: Optimizer.
        state: Where it begins: below the edge.
        substeps: Euler steps a unit of time.

    Raises:
        UserError: If no X keeps the eigenvalues at the edge.
    """
    if substeps < 2:
        raise UserError(f"substeps must be at least 2, got {substeps}: Euler steps would oscillate")
    found: Eigenpairs | None = None
    while True:
        for _ in range(substeps):
            at = loss.at(state.weights)
            found = _top(at, rule, state, found)
            center = substep(at, rule, state, found, 1 / substeps)
            state = center.state
        yield center


def substep(at: Derivatives, rule: Rule, state: State, found: Eigenpairs, dt: float) -> Center:
    """One Euler step of the central flow.

    Args:
        at: Derivatives of L at the weights.
        rule: Optimizer.
        state: Where it is.
        found: Top eigenpairs of P^-½ H P^-½, at least all that are near the edge.
        dt: Time step, in steps of the optimizer.
    """
    p = rule.preconditioner(state.squares)
    near = found.values > EDGE - NEAR
    values = found.values[near]
    k = len(values)
    u = found.vectors[:, near] * p.rsqrt().unsqueeze(1)  # UᵀPU = 1
    index = pairs(k)
    products = torch.stack([u[:, i] * u[:, j] for i, j in index]) if k else p.new_zeros(0, len(p))
    scale = torch.stack([values[i] * values[j] for i, j in index]) if k else values

    # what does not depend on X, and the part by which X is multiplied, a row a pair
    third = at.third(u)
    w_rate, w_by_x = -at.gradient / p, -0.5 * third / p
    v_rate = rule.rate * (at.gradient.square() - state.squares)
    # diag(H Σ H), with H u_i = λ_i P u_i
    v_by_x = rule.rate * scale.unsqueeze(1) * p.square() * products

    # d(Uᵀ(2P − H)U)/dt
    p_slope = products * rule.preconditioner_slope(state.squares)
    a = EDGE * (p_slope @ v_rate) - third @ w_rate
    b = EDGE * (p_slope @ v_by_x.T) - third @ w_by_x.T
    slack = np.diag((EDGE - values).double().cpu().numpy()) + dt * _symmetric(a, k)
    by_x = dt * _fourth(b, k)
    x = complementary(slack, by_x)

    # off-diagonal entries stand for two
    weights = torch.tensor([x[i, j] * (1 if i == j else 2) for i, j in index]).to(p)
    w = state.weights + dt * (w_rate + weights @ w_by_x)
    v = state.squares + dt * (v_rate + weights @ v_by_x)
    oscillation = 0.5 * float(np.diag(x) @ values.double().cpu().numpy()) if k else 0.0
    reached = slack + np.einsum("ijkl,kl->ij", by_x, x)
    return Center(State(w, v), at.value, oscillation, found.values, x, reached)


def _top(at: Derivatives, rule: Rule, state: State, before: Eigenpairs | None) -> Eigenpairs:
    """Top eigenpairs of P^-½ H P^-½, one at least of which is not near the edge."""
    operator = Preconditioned(at.hessian, rule.preconditioner(state.squares))
    near = 0 if before is None else int((before.values > EDGE - NEAR).sum())
    k = min(max(2, near + 1), operator.size)
    while True:
        found = top_eigenpairs(operator, k, accuracy=ACCURACY, start=before)
        if k == operator.size or float(found.values[-1]) <= EDGE - NEAR:
            return found
        k, before = min(k + 2, operator.size), found


def _symmetric(entries: Tensor, k: int) -> np.ndarray:
    matrix = np.zeros((k, k))
    for (i, j), value in zip(pairs(k), entries.tolist(), strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix


def _fourth(entries: Tensor, k: int) -> np.ndarray:
    """B of a matrix on pairs, (K, K, K, K): B[X] = Σ over pairs, off-diagonal ones twice."""
    b = np.zeros((k, k, k, k))
    rows = entries.tolist()
    for (i, j), row in zip(pairs(k), rows, strict=True):
        for (m, n), value in zip(pairs(k), row, strict=True):
            b[i, j, m, n] = b[j, i, m, n] = b[i, j, n, m] = b[j, i, n, m] = value
    return b
