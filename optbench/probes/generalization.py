"""Loss and error on each split, and the generalization gap."""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench import metrics
from optbench.boundary.kinds import Count
from optbench.curvature.errors import MeasurementError
from optbench.curvature.isolation import untouched
from optbench.curvature.loss_state import kept_state, modules_of
from optbench.probes import State, Value
from optbench.probes.shared import HALF
from optbench.task import Split, Task

Mean = Callable[[Tensor, Tensor], Tensor]

OUTPUTS = 2**28  # bytes of outputs that may be kept, to take a loss of all of them at once
# relative difference that rounding may make between the loss of a whole and the mean of its parts'
SAME = 1e-5
ALIKE = 1e-3  # and of the outputs of an example in batches of different sizes
FEW = 2  # examples that are looked at alone, to see whether others in the batch matter to them


class NoErrorError(MeasurementError):
    """There is a loss, but no misclassification of these outputs."""


@dataclass
class Generalization:
    """`train/`, `val/`, `test/` `loss` and `error`, and `gap/loss`, `gap/error` = test − train.

    All in eval mode without augmentation; the training labels are those trained on, label noise
    included. A loss is that of all outputs together, also where it is no mean over examples. Cost:
    a forward pass over the examples named.

    Args:
        every: Cadence.
        train_examples: How many training examples, always the same, the first ones; None for all.
        chunk: Examples a forward pass, which bounds memory; all at once where examples of a batch
            depend on each other.
    """

    every: int | str = "epoch"
    train_examples: Count | None = None
    chunk: Count = 250

    def __call__(self, state: State) -> dict[str, Value]:
        """Evaluate every split that the task has."""
        found: dict[str, Value] = {}
        with evaluating(state.model, state.optimizer, state.task):
            for name, split in state.task.splits.items():
                examples = split.first(self.train_examples) if name == "train" else split
                means = self._means(state, name, examples)
                found |= {metrics.of(name, quantity): value for quantity, value in means.items()}
        for quantity in ("loss", "error"):
            train, test = (found.get(metrics.of(split, quantity)) for split in ("train", "test"))
            if isinstance(train, float) and isinstance(test, float):
                found[metrics.of("gap", quantity)] = test - train
        return found

    def _means(self, state: State, name: str, split: Split) -> dict[str, float]:
        try:
            return evaluate(state.task, state.model, split, self.chunk, state.say)
        except NoErrorError as why:
            state.say(f"error is absent: {why}")
            task = replace(state.task, error=None)
            return evaluate(task, state.model, split, self.chunk, state.say)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, IndexError) as why:
            shapes = f"inputs of shape {tuple(split.inputs.shape)}, {split.inputs.dtype}"
            raise MeasurementError(
                f"the model or its loss does not run on the {name} split, {shapes} "
                f"({type(why).__name__}: {why})"
            ) from why


@torch.no_grad()
def evaluate(
    task: Task,
    model: nn.Module,
    split: Split,
    chunk: int = 250,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Return the loss and, where the task has one, the error over a split, in the model's mode.

    Outputs in half precision are put in single before a loss is taken of them; where that cannot
    be, it is said.

    1. The model is called on `chunk` examples at a time, if their outputs do not depend on each
       other: a few of the first chunk's are compared with those of the same examples alone. Else it
           is called once on all.
    2. Each quantity is the weighted mean over chunks, if that is its value on the outputs of all:
       class weights or ignored targets make it another. Where these outputs do not fit together, or
       in memory, thirds of the first chunk tell, and of examples from all over the split, which may
       be sorted; what is no mean is then taken over all examples at once.

    Raises:
        MeasurementError: If a quantity is not a real scalar.
        NoErrorError: If it is the error that there is none of.
    """
    given = {"loss": task.loss, "error": task.error}
    measures = {
        name: _in_single(name, mean, say) for name, mean in given.items() if mean is not None
    }
    if len(split) <= chunk:
        return {
            name: len(split) * value / len(split)
            for name, value in _at_once(measures, model, split).items()
        }
    outputs: list[Tensor] | None = []
    parts: list[tuple[float, dict[str, float]]] = []
    for inputs, targets in split.chunks(chunk):
        found = model(inputs)
        if not parts and _depends_on_the_batch(model, inputs, found):
            return _at_once(measures, model, split)
        weight = float(len(inputs) if task.weight is None else task.weight(inputs, targets))
        parts.append((weight, _values(measures, found, targets)))
        outputs = _kept(outputs, found, len(inputs))
    total = sum(weight for weight, _ in parts)
    means = {name: sum(weight * each[name] for weight, each in parts) / total for name in measures}
    if outputs is None:
        samples, third = (split.first(chunk), _spread(split, chunk)), math.ceil(chunk / 3)
        additive = all(
            is_mean_of_parts(task, q, model, few, third)
            for few in samples
            for q in measures.values()
        )
        return means if additive else _at_once(measures, model, split)
    everything = torch.cat(outputs)
    whole = _values(measures, everything, split.targets)
    return {
        name: means[name] if _same(means[name], whole[name]) else whole[name] for name in measures
    }


def _spread(split: Split, count: int) -> Split:
    places = torch.linspace(0, len(split) - 1, count, device=split.inputs.device).long()
    return Split(split.inputs[places], split.targets[places.to(split.targets.device)])


def _at_once(measures: dict[str, Mean], model: nn.Module, split: Split) -> dict[str, float]:
    return _values(measures, model(split.inputs), split.targets)


def _values(measures: dict[str, Mean], outputs: Tensor, targets: Tensor) -> dict[str, float]:
    return {name: _number(name, mean(outputs, targets)) for name, mean in measures.items()}


def _in_single(name: str, mean: Mean, say: Callable[[str], None]) -> Mean:
    """A quantity of outputs put in single precision; it is said where it is in half all the same."""

    def taken(outputs: Tensor, targets: Tensor) -> Tensor:
        value = _of_single(mean, outputs, targets)
        if isinstance(value, Tensor) and value.dtype in HALF:
            rounding = torch.finfo(value.dtype).eps / 2
            say(
                f"{name} is rounded to {value.dtype} by the model or its loss: a relative error of "
                f"{rounding:.0e}"
            )
        return value

    return taken


def _of_single(mean: Mean, outputs: Tensor, targets: Tensor) -> Tensor:
    # a scalar is a loss, rounded already
    if isinstance(outputs, Tensor) and outputs.ndim and outputs.dtype in HALF:
        with contextlib.suppress(RuntimeError):  # such as constants in half precision in the loss
            return mean(outputs.float(), targets.float() if targets.dtype in HALF else targets)
    return mean(outputs, targets)


def _number(name: str, value: object) -> float:
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex():
            return float(value)
        got = f"{value.dtype} of shape {tuple(value.shape)}"
    elif isinstance(value, (int, float)):
        return float(value)
    else:
        got = type(value).__name__
    raise MeasurementError(f"{name} must be a real scalar, the mean over examples, got {got}")


def _depends_on_the_batch(model: nn.Module, inputs: Tensor, outputs: object) -> bool:
    if not (isinstance(outputs, Tensor) and outputs.ndim and len(outputs) == len(inputs)):
        return False
    few, alone = outputs[:FEW], model(inputs[:FEW])
    if not few.is_floating_point():
        return not torch.equal(few, alone)
    rounding = max(ALIKE, 100 * torch.finfo(few.dtype).eps)
    return bool((few - alone).norm() > rounding * few.norm())


def _kept(outputs: list[Tensor] | None, found: object, count: int) -> list[Tensor] | None:
    rows = isinstance(found, Tensor) and found.ndim > 0 and len(found) == count
    if outputs is None or not isinstance(found, Tensor) or not rows:
        return None
    fits = sum(x.nbytes for x in outputs) + found.nbytes <= OUTPUTS
    alike = not outputs or outputs[0].shape[1:] == found.shape[1:]
    return [*outputs, found] if fits and alike else None


def is_mean_of_parts(task: Task, quantity: Mean, model: nn.Module, split: Split, size: int) -> bool:
    """Whether a loss or an error over a split is the weighted mean of its values over parts of so many examples."""
    whole, total, mean = float(quantity(model(split.inputs), split.targets)), 0.0, 0.0
    for inputs, targets in split.chunks(size):
        weight = float(len(inputs) if task.weight is None else task.weight(inputs, targets))
        total += weight
        mean += weight * float(quantity(model(inputs), targets))
    return bool(total) and _same(mean / total, whole)


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SAME, abs_tol=1e-12) or not math.isfinite(b)


@contextmanager
def evaluating(
    model: nn.Module, optimizer: Optimizer | None = None, task: Task | None = None
) -> Iterator[None]:
    """Put model and optimizer in eval mode, and every bit of them, and of what the task's loss holds, back afterwards.

    Optimizers with train() and eval() (Schedule-Free) move the weights between two points and back,
    which rounding does not undo, and a forward pass may write to the model.
    """
    modes = {module: module.training for module in model.modules()}
    swaps = callable(getattr(optimizer, "eval", None)) and callable(
        getattr(optimizer, "train", None)
    )
    quantities = [] if task is None else [task.loss, task.error]
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        for quantity in quantities:
            stack.enter_context(kept_state(quantity))
            for module in modules_of(quantity, model):
                stack.enter_context(untouched(module))
        model.eval()
        if swaps:
            optimizer.eval()  # type: ignore[union-attr]
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            if swaps:
                optimizer.train()  # type: ignore[union-attr]
