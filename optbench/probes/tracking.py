"""Eigenpairs followed over a run: warm-started, and audited at intervals."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optbench.curvature import Eigenpairs, NotConvergedWarning, Operator, audit, top_eigenpairs
from optbench.errors import UserError

# Found λ₁ to 1e-5 at all of 30 checkpoints of the digits run; λ₂ was 0 to 20 % off.
AUDIT_BLOCK, AUDIT_STEPS = (2, 10)
# With a solve at least every 4th time no bound broke at 2,160 measurements of 24 trajectories
# (docs/curvature.md).
TRUST = 1.0
WARM_HVPS, FAR_HVPS = 7, 11
"""Products that a warm-started measurement costs, its graph included, about: some ten updates with
the whole set after the last one (digits), and some hundreds with small batches (CIFAR-10)."""


def later_hvps(full_batch: bool) -> int:
    """Products that a later measurement of a run costs, about."""
    return WARM_HVPS if full_batch else FAR_HVPS


@dataclass
class Tracker:
    """Largest eigenpairs of an operator that changes slowly.

    Args:
        what: Name of the operator, for messages.
        k: Number of pairs.
        accuracy: Bound to reach, relative to λ₁.
        audit_every: Solves between audits, of 20 products each.
        solve_every: Of this many measurements, at least one is a solve. The others hold the pairs
            if that meets the accuracy; see `trust` of `top_eigenpairs`.
        count: Number of solves so far.
        since: Number of measurements since the last solve.
        pairs: Pairs of the last measurement.
        of: Signature of the parameters that the pairs belong to.
    """

    what: str
    k: int = 1
    accuracy: float = 5e-3
    audit_every: int = 50
    solve_every: int = 4
    count: int = 0
    since: int = 0
    pairs: Eigenpairs | None = None
    of: str | None = None

    @property
    def solves(self) -> int | None:
        """Number of solves, the last measurement included; None if that held the pairs."""
        return self.count if self.since == 0 else None

    def solve(
        self, operator: Operator, of: str, seed: int, say: Callable[[str], None]
    ) -> Eigenpairs:
        """Find the pairs, starting from the last ones; start anew if an audit finds one lost.

        Args:
            operator: Operator at the present weights.
            of: Signature of its parameters; if it has changed, the last pairs are not used.
            seed: Seed of the start vectors.
            say: Function that tells the user, for instance of a search that did not converge.
        """
        if self.of not in (None, of):
            self.pairs, self.count, self.since = None, 0, 0
        self.of = of
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", NotConvergedWarning)
            pairs = self._held_or_solved(operator, seed, say)
        for warning in caught:
            if issubclass(warning.category, NotConvergedWarning):
                say(f"{self.what}: {warning.message}")
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        self.pairs = pairs
        return pairs

    def _held_or_solved(
        self, operator: Operator, seed: int, say: Callable[[str], None]
    ) -> Eigenpairs:
        k = min(self.k, operator.size)
        trust = TRUST if self.since + 1 < self.solve_every else None
        pairs = top_eigenpairs(
            operator, k, accuracy=self.accuracy, start=self.pairs, trust=trust, seed=seed
        )
        if pairs.held:
            self.since += 1
        else:
            pairs = self._audited(operator, pairs, seed, say)
            self.count, self.since = self.count + 1, 0
        return pairs

    def _audited(
        self, operator: Operator, pairs: Eigenpairs, seed: int, say: Callable[[str], None]
    ) -> Eigenpairs:
        if self.count % self.audit_every < self.audit_every - 1:
            return pairs
        check = audit(operator, pairs, block=AUDIT_BLOCK, steps=AUDIT_STEPS, seed=seed + 1)
        if not check.lost:
            return pairs
        say(f"{self.what}: an audit found an eigenvalue that tracking had lost")
        return top_eigenpairs(
            operator, len(pairs.values), accuracy=self.accuracy, start=check.basis, seed=seed
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the warm start and the counts."""
        pairs = None if self.pairs is None else vars(self.pairs)
        return {"count": self.count, "since": self.since, "pairs": pairs, "of": self.of}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the warm start and the counts."""
        if "pairs" not in state:
            raise UserError(
                f"the state of {self.what} is from before eigenpairs were held: start anew"
            )
        self.count, self.since, self.of = state["count"], state["since"], state.get("of")
        self.pairs = None if state["pairs"] is None else Eigenpairs(**state["pairs"])
