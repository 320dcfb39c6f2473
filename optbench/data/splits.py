"""Labelled examples → train, validation and test splits: what all tasks with labels share."""

from dataclasses import dataclass
from itertools import count
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from optbench.boundary.kinds import Count, CountFromZero, Share, Whole
from optbench.boundary.signature import check_fields
from optbench.errors import UserError
from optbench.seeds import generator
from optbench.task import Augment, Split, Task, classification

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Handling:
    """What can be said of any labelled data, under `task.`; each task's YAML has its defaults.

    Attributes:
        seed: Seed of the run; only the label noise depends on it.
        loss: Loss: `ce` (mean cross-entropy, natural log) or `mse` (½‖f − y‖² on one-hot targets).
        train_size: Training examples; None for as many as validation and imbalance leave.
        val_size: Examples to choose with, class-balanced, taken from those meant for training; 0
            for none.
        split_seed: Seed of the division into training and validation, the same for every run.
        label_noise: Share of training labels replaced by a wrong one.
        imbalance: Training examples of the most frequent class over those of the rarest. In between
            they fall off geometrically with the number of the class, as in Cui et al. (2019),
            arXiv:1901.05555.
        normalise: Scaling of inputs: `standard` subtracts the mean and divides by the standard
            deviation of each channel (or feature); `none` leaves bytes in [0, 1] and numbers as
            they are.
    """

    seed: Whole
    loss: Literal["ce", "mse"] = "ce"
    train_size: Count | None = None
    val_size: CountFromZero = 0
    split_seed: Whole = 0
    label_noise: Share = 0.0
    imbalance: Annotated[float, Field(ge=1)] = 1.0
    normalise: Literal["standard", "none"] = "none"

    def __post_init__(self) -> None:
        check_fields(self, "task.")

    def check_sizes(self, name: str, pool: int) -> None:
        """Raise a UserError unless validation and training examples fit in a pool of this size."""
        if not 0 <= self.val_size < pool:
            raise UserError(
                f"task.val_size must be between 0 and {pool - 1} for {name}, got {self.val_size}"
            )
        available = pool - self.val_size
        if self.train_size is not None and not 1 <= self.train_size <= available:
            raise UserError(
                f"task.train_size must be between 1 and {available} for {name}, got "
                f"{self.train_size}"
            )


Labelled = Annotated[Any, Handling]
"""Of a task's `**handling`: its keys are the fields of `Handling`."""


def divide(
    name: str,
    pool: Split,
    test: Split,
    classes: int,
    handling: Handling,
    statistics: Statistics | None = None,
    val: Split | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Divide a pool into train and validation; add label noise and normalisation to all splits.

    Args:
        name: Of the task, for errors.
        pool: Inputs (N, channels or features, ...), bytes or numbers, and labels (N,).
        test: The same, for reporting; it stays whole, and clean.
        classes: Number of classes, C.
        handling: What the user asked for.
        statistics: Published means and standard deviations of the channels, of bytes in [0, 1];
            None to take those of the training examples.
        val: Examples to choose with, where they come apart; then `val_size` is 0.

    Raises:
        UserError: If there are too few examples for what is asked.
    """
    labels = pool.targets
    handling.check_sizes(name, len(labels))
    chosen, rest = balanced_split(labels, handling.val_size, handling.split_seed)
    if val is None:
        val = Split(pool.inputs[chosen], labels[chosen])
    train = rest[_subset(labels[rest], handling)]
    noisy = with_label_noise(
        labels[train], classes, handling.label_noise, generator(handling.seed, "label_noise")
    )
    inputs = {"train": pool.inputs[train], "val": val.inputs, "test": test.inputs}
    targets = {"train": noisy, "val": val.targets, "test": test.targets}
    ready = {split: as_numbers(x) for split, x in inputs.items()}
    if handling.normalise == "standard":
        mean, std = (
            _statistics(ready["train"]) if statistics is None else map(torch.tensor, statistics)
        )
        for x in ready.values():
            shape = (-1, *(1 for _ in x.shape[2:]))
            x.sub_(mean.to(x).reshape(shape)).div_(std.to(x).reshape(shape))
    return {split: (x, targets[split]) for split, x in ready.items() if len(x)}


def labelled(
    name: str,
    pool: Split,
    test: Split,
    classes: int,
    handling: Handling,
    statistics: Statistics | None = None,
    augment: Augment | None = None,
    facts: dict[str, object] | None = None,
    val: Split | None = None,
) -> Task:
    """Build a classification task from a pool (train, validation) and a test set; see `divide`."""
    parts = divide(name, pool, test, classes, handling, statistics, val)
    return classification(parts, classes, handling.loss, augment, facts)


def as_numbers(inputs: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; a copy of anything else."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.clone()


def _statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel or feature; 0 and 1 for a constant one."""
    dims = [0, *range(2, inputs.ndim)]
    std, mean = torch.std_mean(inputs, dim=dims, correction=0)
    return mean, torch.where(std > 0, std, torch.ones_like(std))


def _subset(labels: Tensor, handling: Handling) -> Tensor:
    """Indices of the training examples: all in their order, or a balanced or imbalanced choice."""
    size, available = handling.train_size, len(labels)
    if handling.imbalance == 1 and size in (None, available):
        return torch.arange(available)
    classes = len(labels.unique())
    if size is None:
        counts = labels.unique(return_counts=True)[1]
        size = next(
            n - 1 for n in count(1) if bool((_quota(n, classes, handling.imbalance) > counts).any())
        )
    return _choose(labels, _quota(size, classes, handling.imbalance), handling.split_seed)[0]


def _quota(size: int, classes: int, imbalance: float = 1.0) -> Tensor:
    """Divide `size` among classes in proportion to imbalance^(−c/(C−1)), by largest remainder."""
    shares = torch.tensor(
        [imbalance ** (-c / max(classes - 1, 1)) for c in range(classes)], dtype=torch.float64
    )
    exact = size * shares / shares.sum()
    quota = exact.floor().long()
    remainders = (exact - quota).argsort(descending=True, stable=True)
    quota[remainders[: size - int(quota.sum())]] += 1
    return quota


def balanced_split(labels: Tensor, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Choose `size` examples, as many per class as possible alike; return (chosen, rest).

    Both are indices in a shuffled order that depends on `seed` alone: the data set of a task is the
    same for every run, whatever the run's own seed.

    Raises:
        UserError: If a class has too few examples.
    """
    return _choose(labels, _quota(size, len(labels.unique())), seed)


def _choose(labels: Tensor, quota: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label, n in zip(labels.unique().tolist(), quota.tolist(), strict=True):
        members = order[labels[order] == label]
        if n > len(members):
            raise UserError(
                f"cannot take {int(quota.sum())} examples of {len(labels)}: class {label} would "
                f"need {n} and has "
                f"{len(members)}; say a smaller task.train_size or task.val_size, or a "
                "task.imbalance nearer 1"
            )
        mask[members[:n]] = True
    return order[mask[order]], order[~mask[order]]


def with_label_noise(
    labels: Tensor, classes: int, fraction: float, generator: torch.Generator
) -> Tensor:
    """Replace exactly round(fraction·N) of N labels by a uniformly random *other* label.

    Labels of any shape: in a sequence each token has its own.

    Raises:
        UserError: If `fraction` is outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise UserError(f"task.label_noise must be between 0 and 1, got {fraction}")
    noisy = labels.flatten().clone()
    chosen = torch.randperm(len(noisy), generator=generator)[: round(fraction * len(noisy))]
    shift = torch.randint(1, classes, (len(chosen),), generator=generator)
    noisy[chosen] = (noisy[chosen] + shift) % classes
    return noisy.reshape(labels.shape)
