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
from optbench.ranks import ALONE, Ranks
from optbench.task import Split, Task

Mean = Callable[[Tensor, Tensor], Tensor]

OUTPUTS = 2**28  # bytes of outputs that may be kept, for a loss of all of them at once
# Examples per forward pass: this many, or more, where they have no more than these numbers
# together, but never more than the last: a layer may make much of a small example. Of digits, 64
# numbers each, a pass over 250 takes half its time for calls.
CHUNK, NUMBERS, MOST = 250, 2**18, 4096
# Relative differences that count as rounding:
SAME = 1e-5  # between the loss of a whole and the mean of its parts'
ALIKE = 1e-3  # between outputs of an example in batches of different sizes
FEW = 2  # examples called on their own, to see whether outputs depend on the rest of a batch


class NoErrorError(MeasurementError):
    """The task's error is not defined for these outputs, though its loss is."""


@dataclass
class Generalization:
    """`loss` and `error` under `train/`, `val/` and `test/`; under `gap/` test minus train.

    Measured in eval mode, without augmentation. Training labels are those trained on, label noise
    included. The loss of a split is that of all its outputs together, even where it is not a mean
    over examples. Cost: a forward pass over these examples.

    Args:
        every: Cadence: steps between measurements, `epoch`, `log`, `never`, or the name of a probe
            whose cadence is taken.
        train_examples: Number of training examples, always the first ones; None for all.
        chunk: Examples per forward pass, which bounds memory; None for 250, or, if those are more,
            as many as have 2^18 numbers together, at most 4,096. Where examples of a batch affect
            each other, all are taken at once.
    """

    every: int | str = "epoch"
    train_examples: Count | None = None
    chunk: Count | None = None

    def __call__(self, state: State) -> dict[str, Value]:
        """Evaluate every split that the task has."""
        evaluations = state.shared.evaluations or self._evaluate(state)
        values: dict[str, Value] = {
            metrics.of(name, quantity): mean
            for name, means in evaluations.items()
            for quantity, mean in means.items()
        }
        for quantity in ("loss", "error"):
            train, test = (values.get(metrics.of(split, quantity)) for split in ("train", "test"))
            if isinstance(train, float) and isinstance(test, float):
                values[metrics.of("gap", quantity)] = test - train
        return values

    def _evaluate(self, state: State) -> dict[str, dict[str, float]]:
        with evaluating(state.model, state.optimizer, state.task):
            return {
                name: self._means(
                    state, name, split.first(self.train_examples) if name == "train" else split
                )
                for name, split in state.task.splits.items()
            }

    def _means(self, state: State, name: str, split: Split) -> dict[str, float]:
        try:
            return self._means_of(state.task, state, split)
        except NoErrorError as why:
            state.say(f"error is absent: {why}")
            return self._means_of(replace(state.task, error=None), state, split)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, IndexError) as why:
            shapes = f"inputs of shape {tuple(split.inputs.shape)}, {split.inputs.dtype}"
            raise MeasurementError(
                f"the model or its loss does not run on the {name} split, {shapes} "
                f"({type(why).__name__}: {why})"
            ) from why

    def _means_of(self, task: Task, state: State, split: Split) -> dict[str, float]:
        chunk = self.at_a_time(split)
        return evaluate(task, state.model, split, chunk, state.say, state.shared.ranks)

    def at_a_time(self, split: Split) -> int:
        """Examples per forward pass over a split."""
        if self.chunk is not None:
            return self.chunk
        # a token, an integer, becomes a whole vector
        are_numbers = split.inputs.is_floating_point() and len(split)
        fit = NUMBERS // max(1, split.inputs[0].numel()) if are_numbers else 0
        return max(CHUNK, min(fit, MOST))


@torch.no_grad()
def evaluate(
    task: Task,
    model: nn.Module,
    split: Split,
    chunk: int = CHUNK,
    say: Callable[[str], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Loss and, where the task has one, error over a split, in the model's mode.

    1. Call the model on `chunk` examples at a time. If outputs depend on other examples of a batch,
       call it once on all instead. To see that, compare outputs of a few examples of the first
       chunk with those of the same examples on their own.
    2. Take the weighted mean of each quantity over chunks. Class weights or ignored targets can
       make it differ from the quantity's value on all outputs together, which is then returned.
    3. Where all outputs do not fit together, or in memory, compare means over thirds with the whole
       for two samples: the first chunk, and examples from all over the split, which may be sorted.
       If they differ, call the model once on all examples.

    Outputs in half precision are converted to single before a quantity is computed from them. Where
    that fails, the user is told.

    Args:
        task: Task with the loss, the error and the weights of batches.
        model: Model.
        split: Inputs and targets.
        chunk: Examples per forward pass.
        say: Function that tells the user something.
        ranks: Processes that share the forward passes; the numbers are, to the bit, those of one.

    Raises:
        MeasurementError: If a quantity is not a real scalar.
        NoErrorError: If the task's error is not defined for these outputs.
    """
    quantities = {"loss": task.loss, "error": task.error}
    measures = {
        name: _in_single(name, mean, say) for name, mean in quantities.items() if mean is not None
    }
    if len(split) <= chunk:
        # Rounded as a weighted mean over one chunk would be.
        return {
            name: len(split) * value / len(split)
            for name, value in _at_once(measures, model, split).items()
        }
    chunked = _by_chunks(task, measures, model, split, chunk, ranks)
    if chunked is None:
        return _at_once(measures, model, split)
    means, outputs = chunked
    if outputs is None:
        additive = _are_means_of_parts(task, measures, model, split, chunk)
        return means if additive else _at_once(measures, model, split)
    whole = _values(measures, torch.cat(outputs), split.targets)
    return {
        name: means[name] if _same(means[name], whole[name]) else whole[name] for name in measures
    }


def _by_chunks(
    task: Task,
    measures: dict[str, Mean],
    model: nn.Module,
    split: Split,
    chunk: int,
    ranks: Ranks,
) -> tuple[dict[str, float], list[Tensor] | None] | None:
    """Weighted means over chunks, and the outputs if they fit together and in memory.

    None if the outputs of an example depend on others in its batch.
    """
    outputs: list[Tensor] | None = []
    parts: list[tuple[float, dict[str, float]]] = []

    def outputs_of(part: tuple[Tensor, Tensor]) -> Tensor:
        output: Tensor = model(part[0])
        return output

    for (inputs, targets), output in ranks.map(outputs_of, split.chunks(chunk)):
        if not parts and _depends_on_the_batch(model, inputs, output):
            return None
        weight = float(len(inputs) if task.weight is None else task.weight(inputs, targets))
        parts.append((weight, _values(measures, output, targets)))
        outputs = _kept(outputs, output, len(inputs))
    total = sum(weight for weight, _ in parts)
    means = {name: sum(weight * part[name] for weight, part in parts) / total for name in measures}
    return means, outputs


def _are_means_of_parts(
    task: Task, measures: dict[str, Mean], model: nn.Module, split: Split, chunk: int
) -> bool:
    """Whether all quantities are means over thirds, on the first chunk and on spread examples."""
    samples, third = (split.first(chunk), _spread(split, chunk)), math.ceil(chunk / 3)
    return all(
        is_mean_of_parts(task, quantity, model, sample, third)
        for sample in samples
        for quantity in measures.values()
    )


def _spread(split: Split, count: int) -> Split:
    """Examples at equal distances over the split."""
    places = torch.linspace(0, len(split) - 1, count, device=split.inputs.device).long()
    return Split(split.inputs[places], split.targets[places.to(split.targets.device)])


def _at_once(measures: dict[str, Mean], model: nn.Module, split: Split) -> dict[str, float]:
    return _values(measures, model(split.inputs), split.targets)


def _values(measures: dict[str, Mean], outputs: Tensor, targets: Tensor) -> dict[str, float]:
    return {name: _number(name, mean(outputs, targets)) for name, mean in measures.items()}


def _in_single(name: str, mean: Mean, say: Callable[[str], None]) -> Mean:
    """The quantity with outputs in single precision; the user is told if it is still in half."""

    def computed(outputs: Tensor, targets: Tensor) -> Tensor:
        value = _of_single_precision(mean, outputs, targets)
        if isinstance(value, Tensor) and value.dtype in HALF:
            rounding = torch.finfo(value.dtype).eps / 2
            say(
                f"{name} is rounded to {value.dtype} by the model or its loss: a relative error of "
                f"{rounding:.0e}"
            )
        return value

    return computed


def _of_single_precision(mean: Mean, outputs: Tensor, targets: Tensor) -> Tensor:
    # An output that is a scalar is the loss itself: it has been rounded already.
    if isinstance(outputs, Tensor) and outputs.ndim and outputs.dtype in HALF:
        with contextlib.suppress(RuntimeError):  # the loss may hold constants in half precision
            return mean(outputs.float(), targets.float() if targets.dtype in HALF else targets)
    return mean(outputs, targets)


def _number(name: str, value: object) -> float:
    """The value as a number; raises a MeasurementError unless it is a real scalar."""
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
    """Whether outputs of the first examples differ from those of a batch of these alone."""
    if not (isinstance(outputs, Tensor) and outputs.ndim and len(outputs) == len(inputs)):
        return False
    few, alone = outputs[:FEW], model(inputs[:FEW])
    if not few.is_floating_point():
        return not torch.equal(few, alone)
    rounding = max(ALIKE, 100 * torch.finfo(few.dtype).eps)
    return bool((few - alone).norm() > rounding * few.norm())


def _kept(outputs: list[Tensor] | None, output: object, count: int) -> list[Tensor] | None:
    """The outputs with one more; None if it has no rows, or does not fit together or in memory."""
    has_rows = isinstance(output, Tensor) and output.ndim > 0 and len(output) == count
    if outputs is None or not isinstance(output, Tensor) or not has_rows:
        return None
    fits = sum(x.nbytes for x in outputs) + output.nbytes <= OUTPUTS
    alike = not outputs or outputs[0].shape[1:] == output.shape[1:]
    return [*outputs, output] if fits and alike else None


def is_mean_of_parts(task: Task, quantity: Mean, model: nn.Module, split: Split, size: int) -> bool:
    """Whether a quantity of a split is the weighted mean over its parts of `size` examples."""
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
    """Context with model and optimizer in eval mode; restores them and the loss bit for bit.

    Optimizers with train() and eval(), such as Schedule-Free, move the weights to another point and
    back, which rounding makes inexact. A forward pass may write to the model.
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
