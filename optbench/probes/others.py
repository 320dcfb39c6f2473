"""Curvature along what was found on some training examples, on as many others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from optbench.curvature import Eigenpairs, HeldOut, MeasurementError, held_out
from optbench.curvature.held_out import FEWEST
from optbench.probes import State

EVERY = 4  # solves, from the first on; and at the last step
PRODUCTS = 2.0  # along a kept graph, that it takes as long as: its own graph is not kept


@dataclass(frozen=True)
class Others:
    """Which other examples a probe over the first `examples` looks at, and when.

    Args:
        metric: What is absent where the loss has no mean over groups of examples; the user is told.
        examples: Number of training examples that the probe looks at; None for all.
    """

    metric: str
    examples: int | None

    def along(self, vector: Tensor, pairs: Eigenpairs, solves: int, state: State) -> HeldOut | None:
        """Curvature along a vector on the examples that follow; None where that is not due.

        Args:
            vector: Direction, shape (P,).
            pairs: Pairs that it is of.
            solves: Solves so far, that of the pairs among them.
            state: Training.
        """
        ends = state.step == state.steps and not state.shared.is_open_ended
        due = ends or (not pairs.held and solves % EVERY == 1)
        train, n = state.task.train, self.examples
        if not due or n is None:
            return None
        others = train.inputs[n : 2 * n], train.targets[n : 2 * n]
        if len(others[0]) < FEWEST:
            return None
        try:
            return held_out(state.shared.hessian(state, n), others, vector, len(train) - n)
        except MeasurementError as why:
            state.say(f"{self.metric} is absent: {why}")
            return None
