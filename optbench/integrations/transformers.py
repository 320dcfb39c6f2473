"""`WatchCallback` for the Hugging Face Trainer: `trainer.add_callback(WatchCallback(trainer))`."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from optbench.curvature.isolation import kept_rng
from optbench.errors import UserError
from optbench.probes.generalization import evaluating
from optbench.task import Weight
from optbench.watching import Watch, watch

IGNORED = -100  # what a label is where the loss does not look at it
LOOKED_AT = 8  # examples by which it is told what they weigh
LABELS = ("labels", "label", "label_ids")


class WatchCallback(TrainerCallback):
    """Send sharpness, distance to the edge and generalization gap to the trainer's log.

    The loss is the one that the model computes itself when it is given labels, of all examples
    measured on together: the first of the training set and, for the gap, of the evaluation set
    where there is one. Where it must be taken in parts, these weigh what the model's loss makes of
    them, such as their labels that are not ignored.

    Args:
        trainer: The trainer. Of several evaluation sets by name, none is used.
        every: Optimizer updates between measurements.
        examples: How many examples of each set.
        options: The rest of `optbench.watch`.

    Raises:
        ValueError: If examples is not a positive number.
    """

    def __init__(
        self, trainer: Trainer, every: int = 100, examples: int = 64, **options: Any
    ) -> None:
        if not isinstance(examples, int) or isinstance(examples, bool) or examples < 1:
            raise ValueError(f"examples must be a positive number, got {examples!r}")
        self.trainer, self.every, self.examples, self.options = trainer, every, examples, options
        self._watch: Watch | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Read the data to measure on."""
        if not state.is_world_process_zero:
            return
        model, optimizer = objects["model"], objects["optimizer"]
        device = next(model.parameters()).device
        several = isinstance(self.trainer.eval_dataset, Mapping)
        with kept_rng(device):  # a collator may mask at random, a data set augment
            train = self._first(self.trainer.train_dataset)
            test = [] if several else self._first(self.trainer.eval_dataset)
            data = _collated(self.trainer, model, train + test)
        index = torch.arange(len(train) + len(test), device=device)
        indexed = _Indexed(model, {name: x.to(device) for name, x in data.items()})
        pairs = [(part, part) for part in (index[: len(train)], index[len(train) :])]
        self._watch = watch(
            indexed,
            getattr(optimizer, "optimizer", optimizer),  # what Accelerate wraps
            _itself,
            pairs[0],
            self.every,
            test=pairs[1] if test else None,
            error=None,
            **{"weight": indexed.weight()} | self.options,
        )
        self._watch.step = state.global_step
        if several:
            self._watch.say("gap/loss is absent: eval_dataset holds several sets")
        if other := _other_loss(self.trainer):
            self._watch.say(
                f"the loss that is measured is the model's own: what {other} makes of it is left "
                "out"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Measure where it is due."""
        found = {} if self._watch is None else self._watch()
        numbers = {key: value for key, value in found.items() if not isinstance(value, list)}
        if numbers:
            # which logging anything clears, and with it the trainer's own record
            own = control.should_log
            self.trainer.log(numbers)
            control.should_log = own

    def _first(self, data: Any) -> list[Any]:
        if data is None:
            return []
        if not hasattr(data, "__len__"):
            raise UserError(
                "WatchCallback needs data sets with a length: give the trainer one that is not a "
                "stream"
            )
        return [data[i] for i in range(min(self.examples, len(data)))]


def _other_loss(trainer: Trainer) -> str:
    """By what the trainer trains on another loss than the model's own, if so."""
    ways = {
        "label_smoothing_factor": trainer.label_smoother is not None,
        "compute_loss_func": trainer.compute_loss_func is not None,
        "compute_loss": type(trainer).compute_loss is not Trainer.compute_loss,
    }
    return " and ".join(name for name, there in ways.items() if there)


class _Indexed(nn.Module):
    """The model's own loss over the examples with given numbers, shape (B,)."""

    def __init__(self, model: nn.Module, data: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.data = model, data

    def forward(self, index: Tensor) -> Tensor:
        loss: Tensor = self.model(**{name: x[index] for name, x in self.data.items()}).loss
        return loss

    def weight(self) -> Weight | None:
        """Weight of examples in the model's loss: 1, or the number of their labels not ignored.

        That by which the mean of the examples' losses is the loss of them all. None where none of
        these is it: the loss is then never taken in parts.
        """
        labels = next(x for name, x in self.data.items() if name in LABELS)
        ones = torch.ones(len(labels), device=labels.device)
        counts = [ones]
        if labels.ndim > 1 and not labels.is_floating_point():
            used = (labels != IGNORED).flatten(1).float()
            counts += [used[:, 1:].sum(1), used.sum(1)]
        # Of all lengths: examples that are alike would not tell counts apart.
        places = torch.linspace(0, len(labels) - 1, min(len(labels), LOOKED_AT)).round().long()
        index = counts[-1].argsort()[places.to(labels.device)]
        with evaluating(self), torch.no_grad():
            whole = float(self(index))
            losses = torch.stack([self(index[i : i + 1]).nan_to_num() for i in range(len(index))])
        for count in counts:
            own = count[index]
            if torch.isclose((own * losses).sum() / own.sum(), losses.new_tensor(whole), rtol=1e-4):
                return None if count is ones else partial(_counted, count)
        return None


def _counted(counts: Tensor, index: Tensor, _: Tensor) -> Tensor:
    return counts[index].sum()


def _itself(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs


def _collated(trainer: Trainer, model: nn.Module, examples: list[Any]) -> dict[str, Tensor]:
    """One batch of all examples, so padded to one length, of what the model's forward takes."""
    taken = {*inspect.signature(model.forward).parameters, *LABELS}
    batch = trainer.data_collator(
        [{k: v for k, v in example.items() if k in taken} for example in examples]
    )
    if not any(name in batch for name in LABELS):
        raise UserError(
            "WatchCallback needs labels in the batches, from which the model computes its loss"
        )
    return {name: x for name, x in batch.items() if isinstance(x, Tensor)}
