"""Curvature along what was found on some training examples, on as many others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optbench import metrics
from optbench.curvature import HeldOut, MeasurementError, held_out
from optbench.curvature.held_out import FEWEST
from optbench.probes import State
from optbench.seeds import generator
from optbench.task import Split

EVERY = 4  # solves, from the first on; and at the last step, and where a crossing is in doubt
PRODUCTS = 2.0  # along a kept graph, that it takes as long as: its own graph is not kept


def on_others(
    solves: int | None,
    vector: Tensor,
    examples: int | None,
    metric: str,
    state: State,
    in_doubt: bool = False,
) -> HeldOut | None:
    """Curvature along a vector on other training examples; None where it is not due.

    Args:
        solves: Solves so far, of which the last has found the vector; None if it was held.
        vector: Direction, shape (P,).
        examples: Number of training examples that it was found on, the first ones; None for all.
        metric: What is absent where the loss is no mean over groups of examples; the user is told.
        state: Training.
        in_doubt: Whether it is due now, whatever the number of solves.
    """
    ends = state.step == state.steps and not state.shared.is_open_ended
    in_turn = solves is not None and solves % EVERY == 1
    if examples is None or not (ends or in_doubt or in_turn):
        return None
    rest = len(state.task.train) - examples
    if min(examples, rest) < FEWEST:
        return None
    others = drawn(state.task.train, examples, state.seed)
    hessian = state.shared.hessian(state, examples)
    try:
        return held_out(hessian, (others.inputs, others.targets), vector, rest)
    except MeasurementError as why:
        state.say(f"{metric} is absent: {why}")
        return None


@dataclass
class Crossing:
    """Whether the edge of stability that few examples have reached was reached on others, too.

    λ₁ of few examples is above that of all, on average. So a distance r ≥ 1 of theirs leaves a
    crossing in doubt, until once the distance r' along the same direction on others is 1 or more
    within two standard errors. Until then r' is measured wherever r ≥ 1.

    Attributes:
        is_sure: Whether there was such an r'.
    """

    is_sure: bool = False

    def in_doubt(self, distance: float | None) -> bool:
        """Whether a distance of the few examples asks for that of others."""
        return distance is not None and distance >= 1 and not self.is_sure

    def take(self, distance: float | None, others: float, error: float) -> None:
        """Take in a distance r of the few examples, r' of others and its standard error."""
        if self.in_doubt(distance) and not metrics.others_deny(1, others, error):
            self.is_sure = True


def drawn(train: Split, examples: int, seed: int) -> Split:
    """As many training examples again as the first ones, drawn from the rest: each time the same.

    At random, since the rest may be sorted.
    """
    order = torch.randperm(len(train) - examples, generator=generator(seed, "others"))
    chosen = (examples + order[:examples]).to(train.inputs.device)
    return Split(train.inputs[chosen], train.targets[chosen])
