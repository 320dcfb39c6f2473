"""Mini-batches indexed and augmented where the data lies, resumable in the middle of an epoch."""

from typing import Any

import torch
from torch import Tensor

from optbench.errors import UserError
from optbench.seeds import generator
from optbench.task import Task


class Batches:
    """An endless sequence of batches: a new permutation every epoch, whole batches only.

    The examples left over at the end of an epoch (fewer than a batch) are left out of that epoch,
    others each time, so that every update averages over the same number of examples. The full batch
    keeps its order.

    Args:
        task: On the device trained on.
        batch_size: Number of examples, or `full`.
        seed: Of the run; order and augmentation are streams of their own.

    Raises:
        UserError: If the batch size is not between 1 and the number of training examples.
    """

    def __init__(self, task: Task, batch_size: int | str, seed: int) -> None:
        N = len(task.train)
        whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
        if batch_size != "full" and not (whole and 1 <= int(batch_size) <= N):
            raise UserError(
                f"batch_size must be full, or between 1 and the {N} training examples, got "
                f"{batch_size}"
            )
        self.full = batch_size == "full" or batch_size == N
        self.size = N if self.full else int(batch_size)
        self.per_epoch = N // self.size
        self._task = task
        self._order = generator(seed, "order")
        self._augmentation = generator(seed, "augmentation")
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._order_before = self._order.get_state()
        self._position = 0
        if not self.full:
            inputs = self._task.train.inputs
            permutation = torch.randperm(len(inputs), generator=self._order).to(inputs.device)
            self._indices = permutation.split(self.size)

    def next_indices(self) -> Tensor | None:
        """Return the indices of the next examples, None for all; `next` would have taken these."""
        if self._position == self.per_epoch:
            self._start_epoch()
        chosen = None if self.full else self._indices[self._position]
        self._position += 1
        return chosen

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next (inputs, targets)."""
        chosen = self.next_indices()
        train = self._task.train
        if chosen is None:
            inputs, targets = train.inputs, train.targets
        else:
            inputs, targets = train.inputs[chosen], train.targets[chosen]
        if self._task.augment is not None:
            inputs = self._task.augment(inputs, self._augmentation)
        return inputs, targets

    def state_dict(self) -> dict[str, Any]:
        """Return where the sequence stands."""
        return {
            "order": self._order_before,
            "position": self._position,
            "augmentation": self._augmentation.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where it stood."""
        self._order.set_state(state["order"])
        self._start_epoch()
        self._position = int(state["position"])
        self._augmentation.set_state(state["augmentation"])
