"""Eigenpairs followed over a run: warm-started, and audited now and then."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optbench.curvature import Eigenpairs, Operator, audit, rayleigh, top_eigenpairs

AUDIT_BLOCK, AUDIT_STEPS = (
    2,
    10,
)  # found λ₁ to 1e-5 at all of 30 checkpoints of the digits run, where λ₂ was 0 to 20 % off


@dataclass
class Tracker:
    """Largest eigenpairs of an operator that changes slowly.

    Args:
        what: Name of the operator, for the person who reads that an eigenvalue had been lost.
        k: How many pairs.
        accuracy: Bound to reach, relative to λ₁.
        audit_every: Solves between cold audits, of 20 products each.
        drift: Where set and k is 1, a measurement is one product, θ = uᵀAu with the last solve's u, as long as
            ‖Au − θu‖ ≤ drift·|θ|; beyond that it is a solve.
    """

    what: str
    k: int = 1
    accuracy: float = 5e-3
    audit_every: int = 50
    drift: float | None = None
    count: int = 0
    basis: Tensor | None = None

    def solve(self, operator: Operator, seed: int, say: Callable[[str], None]) -> Eigenpairs:
        """Find the pairs, from where the last solve found them; start anew where an audit finds one lost."""
        k = min(self.k, operator.size)
        if (held := self._held(operator)) is not None:
            return held
        pairs = top_eigenpairs(operator, k, accuracy=self.accuracy, start=self.basis, seed=seed)
        if self.count % self.audit_every == self.audit_every - 1:
            check = audit(operator, pairs, block=AUDIT_BLOCK, steps=AUDIT_STEPS, seed=seed + 1)
            if check.lost:
                say(f"{self.what}: an audit found an eigenvalue that tracking had lost")
                pairs = top_eigenpairs(operator, k, accuracy=self.accuracy, start=check.basis, seed=seed)
        self.count += 1
        self.basis = pairs.basis
        return pairs

    def _held(self, operator: Operator) -> Eigenpairs | None:
        """The last solve's vector with its Rayleigh quotient here, `converged` False, unless it has drifted."""
        if self.drift is None or self.k > 1 or self.basis is None:
            return None
        vector = self.basis[:, 0]
        theta, residual = rayleigh(operator, vector)
        if residual > self.drift * abs(theta):
            return None
        value, bound = torch.tensor([[theta], [residual]]).to(vector)
        return Eigenpairs(value, vector.unsqueeze(1), bound, bound, 1, False, self.basis)

    def state_dict(self) -> dict[str, Any]:
        """Return the warm start and the count of measurements."""
        return {"count": self.count, "basis": self.basis}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count, self.basis = state["count"], state["basis"]
