"""Losses and errors of several members from one forward pass, in place of a pass each.

What it gives is held against the ordinary evaluation of two members before it is used.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vmap

from optbench.probes import due
from optbench.probes.generalization import Generalization, evaluate, evaluating
from optbench.run.loop import Experiment
from optbench.run.stacked import Stack, losses_of
from optbench.task import Split

ROUNDING = 1e-5
"""Largest relative difference from the ordinary evaluation: sums of float32 in another order."""

Evaluations = dict[str, dict[str, float]]
"""The loss and the error of each split, by the split's name."""


class StackedEvaluation:
    """What the probe `Generalization` measures, of all members at once.

    Args:
        members: Experiments of one configuration, in the stack's order.
        stack: Their weights.
    """

    def __init__(self, members: Sequence[Experiment], stack: Stack) -> None:
        self._members, self._stack = list(members), stack
        probes = members[0].probes.items()
        self._names = [name for name, probe in probes if type(probe) is Generalization]
        self._is_used = len(self._names) == 1 and _same_data(members) and not self._swaps()
        self._is_checked = False

    def _swaps(self) -> bool:
        """Whether the optimizer evaluates at other weights than it trains, as Schedule-Free."""
        return callable(getattr(self._members[0].update.optimizer, "eval", None))

    def __call__(self, step: int) -> list[Evaluations]:
        """What each member's probe will ask for at this step; empty if it has to do so itself."""
        first = self._members[0]
        if not self._is_used or self._names[0] not in due(
            first.probes, step, first.settings.steps, first.batches.per_epoch
        ):
            return []
        try:
            found = self._evaluate()
        except RuntimeError:  # a quantity that vmap cannot map, such as one with .item()
            self._is_used = False
            return []
        if not self._is_checked:
            self._is_checked = True
            self._is_used = all(map(_agree, found[:2], map(self._ordinary, self._members[:2])))
        return found if self._is_used else []

    @property
    def _probe(self) -> Generalization:
        probe = self._members[0].probes[self._names[0]]
        assert isinstance(probe, Generalization)
        return probe

    def _splits(self, member: Experiment) -> dict[str, Split]:
        train = member.task.train.first(self._probe.train_examples)
        return {**member.task.splits, "train": train}

    @torch.no_grad()
    def _evaluate(self) -> list[Evaluations]:
        task, count = self._members[0].task, len(self._members)
        values: dict[tuple[str, str], Tensor] = {}
        with evaluating(self._members[0].update.model):
            for name, split in self._splits(self._members[0]).items():
                chunks = split.chunks(self._probe.at_a_time(split))
                outputs = torch.cat([self._outputs(x) for x, _ in chunks], 1)
                targets = split.targets.expand(count, *split.targets.shape)
                values[name, "loss"] = losses_of(task.loss, outputs, targets)
                if task.error is not None:
                    values[name, "error"] = vmap(task.error)(outputs, targets)
        rows = torch.stack([value.double() for value in values.values()], 1).tolist()
        evaluations: list[Evaluations] = [{} for _ in rows]
        for evaluation, row in zip(evaluations, rows, strict=True):
            for (name, quantity), value in zip(values, row, strict=True):
                evaluation.setdefault(name, {})[quantity] = value
        return evaluations

    def _outputs(self, inputs: Tensor) -> Tensor:
        return self._stack.outputs(inputs.expand(len(self._members), *inputs.shape))

    def _ordinary(self, member: Experiment) -> Evaluations:
        with evaluating(member.update.model, task=member.task):
            return {
                name: evaluate(
                    member.task, member.update.model, split, self._probe.at_a_time(split)
                )
                for name, split in self._splits(member).items()
            }


def _same_data(members: Sequence[Experiment]) -> bool:
    first = members[0].task.splits
    return all(
        split.inputs.shape == first[name].inputs.shape
        and torch.equal(split.inputs, first[name].inputs)
        and torch.equal(split.targets, first[name].targets)
        for member in members[1:]
        for name, split in member.task.splits.items()
    )


def _agree(a: Evaluations, b: Evaluations) -> bool:
    return all(
        math.isclose(a[name].get(quantity, math.nan), value, rel_tol=ROUNDING, abs_tol=1e-9)
        for name, values in b.items()
        for quantity, value in values.items()
    )
