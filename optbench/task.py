"""What is learned, without the network: the contract that every file in `tasks/` fulfils.

Inputs are numbers, or tokens: integers that no conversion touches. A sequence task has targets (N,
T) and wants outputs (N, T, C); its loss and error are means over tokens, which is the mean over
examples, all being as long.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from optbench.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
Error = Callable[[Tensor, Tensor], Tensor]
Weight = Callable[[Tensor, Tensor], float | Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Split:
    """Examples in memory: inputs of shape (N, *input_shape) and targets of shape (N, ...)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, n: int | None) -> "Split":
        """Return the first n examples (all of them for None), as views."""
        return self if n is None or n >= len(self) else Split(self.inputs[:n], self.targets[:n])

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, targets) of at most `size` examples, in order."""
        yield from zip(self.inputs.split(size), self.targets.split(size), strict=True)

    def to(self, device: torch.device, dtype: torch.dtype, channels_last: bool = False) -> "Split":
        """Move to a device; real tensors take `dtype`, images optionally channels_last."""
        inputs, targets = (
            x.to(device, dtype if x.is_floating_point() else x.dtype)
            for x in (self.inputs, self.targets)
        )
        if channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return Split(inputs, targets)


@dataclass(frozen=True)
class Task:
    """A learning problem: data, loss, error; any model that fits its shapes can be trained on it.

    Attributes:
        train: What is trained on, label noise included.
        val: For choosing; never trained on. None where the task has no such split.
        test: For reporting; never trained on or chosen with. None likewise.
        output_width: Width of the model's output.
        loss: (outputs, targets) → the mean over examples, a scalar.
        error: (outputs, targets) → the mean misclassification in [0, 1]; None for regression.
        weight: (inputs, targets) → what a batch weighs in the mean over all; None for its number of
            examples.
        augment: (inputs, generator) → inputs of the same shape; None for no augmentation.
        facts: What the record should say about the data, such as whether its checksum was verified.
    """

    train: Split
    val: Split | None
    test: Split | None
    output_width: int
    loss: Loss
    error: Error | None = None
    augment: Augment | None = None
    facts: dict[str, object] = field(default_factory=dict)
    weight: Weight | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch dimension."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def to(self, device: torch.device, dtype: torch.dtype, channels_last: bool = False) -> "Task":
        """Move every split to a device and dtype."""
        train, val, test = (
            split and split.to(device, dtype, channels_last)
            for split in (self.train, self.val, self.test)
        )
        assert train is not None
        return replace(self, train=train, val=val, test=test)

    def data_hash(self) -> str:
        """SHA-256 over the shapes, types and bytes of every split."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            for tensor in (split.inputs, split.targets):
                digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                # a copy in another memory format, if it takes one, stays small
                for part in tensor.split(1000):
                    digest.update(part.contiguous().cpu().numpy().data)
        return digest.hexdigest()


def half_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples of ½‖f(x) − y‖², the squared loss of the edge-of-stability literature.

    `nn.MSELoss` is 2/C times this for C outputs, and so are its curvature and its thresholds.
    """
    return 0.5 * (outputs - targets).square().sum() / len(outputs)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats, of outputs (N, C) and classes (N,), or (N, T, C) and (N, T)."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def error_of_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of examples, or of tokens, whose largest output is not that of their class."""
    return (outputs.argmax(-1) != targets).double().mean()


def _error_of_one_hot(outputs: Tensor, targets: Tensor) -> Tensor:
    return error_of_classes(outputs, targets.argmax(-1))


def classification(
    splits: dict[str, tuple[Tensor, Tensor]],
    classes: int,
    loss: str,
    augment: Augment | None = None,
    facts: dict[str, object] | None = None,
) -> Task:
    """Build a classification task from (inputs, integer labels) for train, val and test.

    Args:
        splits: By name, inputs (N, ...) and labels, (N,) or for a sequence (N, T).
        classes: Number of classes, C.
        loss: `ce` (mean cross-entropy, natural log) or `mse` (`half_mse` on one-hot targets).
        augment: See `Task`.
        facts: See `Task`.

    Raises:
        UserError: If `loss` is neither.
    """
    if loss not in ("ce", "mse"):
        raise UserError(f"task.loss must be ce or mse, got {loss}")
    one_hot = loss == "mse"
    ready = {
        name: Split(inputs, F.one_hot(labels, classes).float() if one_hot else labels)
        for name, (inputs, labels) in splits.items()
    }
    return Task(
        train=ready["train"],
        val=ready.get("val"),
        test=ready.get("test"),
        output_width=classes,
        loss=half_mse if one_hot else cross_entropy,
        error=_error_of_one_hot if one_hot else error_of_classes,
        augment=augment,
        facts=facts or {},
    )
