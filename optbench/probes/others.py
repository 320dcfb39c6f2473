"""Curvature along what was found on some training examples, on as many others."""

from __future__ import annotations

from torch import Tensor

from optbench.curvature import HeldOut, MeasurementError, held_out
from optbench.curvature.held_out import FEWEST
from optbench.probes import State

EVERY = 4  # solves, from the first on; and at the last step
PRODUCTS = 2.0  # along a kept graph, that it takes as long as: its own graph is not kept


def on_others(
    solves: int | None, vector: Tensor, examples: int | None, metric: str, state: State
) -> HeldOut | None:
    """Curvature along a vector on the examples that follow the first; None where it is not due.

    Args:
        solves: Solves so far, of which the last has found the vector; None if it was held.
        vector: Direction, shape (P,).
        examples: Number of training examples that it was found on, the first ones; None for all.
        metric: What is absent where the loss is no mean over groups of examples; the user is told.
        state: Training.
    """
    ends = state.step == state.steps and not state.shared.is_open_ended
    if examples is None or not (ends or (solves is not None and solves % EVERY == 1)):
        return None
    train = state.task.train
    others = tuple(x[examples : 2 * examples] for x in (train.inputs, train.targets))
    if len(others[0]) < FEWEST:
        return None
    hessian = state.shared.hessian(state, examples)
    try:
        return held_out(hessian, (others[0], others[1]), vector, len(train) - examples)
    except MeasurementError as why:
        state.say(f"{metric} is absent: {why}")
        return None
