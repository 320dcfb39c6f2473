"""The step that an optimizer would take, without taking it; shadows that follow another's path."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench.curvature.isolation import kept_rng
from optbench.curvature.selection import trainable
from optbench.lab.snapshot import Snapshot
from optbench.probes.after_update import flat
from optbench.run.update import Update
from optbench.task import Loss

Factory = Callable[[Sequence[nn.Parameter]], Optimizer]


def direction(snapshot: Snapshot, inputs: Tensor | None = None, targets: Any = None) -> Tensor:
    """Return the update w_{t+1} − w_t that comes next in a run, (P,); nothing of it is moved.

    The optimizer with its state and its schedule are built anew for it, whatever its class: SAM
    evaluates its closure twice, momentum has its buffers.

    Args:
        snapshot: The run at a step.
        inputs: Inputs of the batch; None for the batch that the run takes next.
        targets: Its targets.
    """
    twin = Snapshot(snapshot.folder, snapshot.step, snapshot.config.copy(), dict(snapshot.choices))
    update = twin.parts.update
    update.model.train()
    if inputs is None:
        inputs, targets = twin.batches.next()
    with kept_rng(inputs.device):
        return _taken(update, inputs, targets)


def _taken(update: Update, inputs: Tensor, targets: Tensor) -> Tensor:
    before = flat(update.parameters)
    update(inputs, targets)
    return flat(update.parameters) - before


class Shadow:
    """An optimizer that is fed with the gradients of another one's path.

    At each step it stands at the path's weights, with a state of its own that has seen the path so
    far, and says which step it would take. The path is only read.

    Args:
        model: Model of the path; a copy of it is the shadow's own.
        loss: (outputs, targets) → the mean over examples.
        optimizer: Makes the shadow's optimizer from parameters.

    Examples:
        >>> shadow = Shadow(model, task.loss, lambda p: torch.optim.Adam(p, 1e-3))
        >>> d = shadow.step(inputs, targets)  # then the driver steps
    """

    def __init__(self, model: nn.Module, loss: Loss, optimizer: Factory) -> None:
        self._path = model
        self._own = copy.deepcopy(model)
        self._update = Update(self._own, loss, optimizer(trainable(self._own)))

    @property
    def optimizer(self) -> Optimizer:
        """The shadow's optimizer."""
        return self._update.optimizer

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the step that the shadow would take at the path's weights, (P,)."""
        with torch.no_grad():
            path = [*self._path.parameters(), *self._path.buffers()]
            for mine, theirs in zip(
                [*self._own.parameters(), *self._own.buffers()], path, strict=True
            ):
                mine.copy_(theirs)
        self._own.train(self._path.training)
        with kept_rng(inputs.device):
            return _taken(self._update, inputs, targets)
