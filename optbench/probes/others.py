"""Curvature along what was found on some training examples, on as many others."""

from __future__ import annotations

import torch
from torch import Tensor

from optbench.curvature import HeldOut, MeasurementError, held_out
from optbench.curvature.held_out import FEWEST
from optbench.probes import State
from optbench.seeds import generator
from optbench.task import Split

EVERY = 4  # solves, from the first on; and at the last step
PRODUCTS = 2.0  # along a kept graph, that it takes as long as: its own graph is not kept


def on_others(
    solves: int | None, vector: Tensor, examples: int | None, metric: str, state: State
) -> HeldOut | None:
    """Curvature along a vector on other training examples; None where it is not due.

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


def drawn(train: Split, examples: int, seed: int) -> Split:
    """As many training examples again as the first ones, drawn from the rest: each time the same.

    At random, since the rest may be sorted.
    """
    order = torch.randperm(len(train) - examples, generator=generator(seed, "others"))
    chosen = (examples + order[:examples]).to(train.inputs.device)
    return Split(train.inputs[chosen], train.targets[chosen])
