"""The probes inside a training script that knows nothing of our runner."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench.curvature.chunk_loss import PRECISIONS
from optbench.curvature.chunks import Chunks
from optbench.curvature.isolation import untouched
from optbench.probes import Probe, State, Stateful, Value, measure
from optbench.probes.edge import Edge
from optbench.probes.generalization import Generalization, NoErrorError
from optbench.probes.shared import Shared
from optbench.probes.sharpness import Sharpness
from optbench.record.progress import hidden
from optbench.task import Error, Loss, Split, Task, Weight

Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


@dataclass
class Watch:
    """Call it once a step; it measures at the first and every `every`-th one. See `watch`."""

    model: nn.Module
    optimizer: Optimizer
    task: Task
    probes: Mapping[str, Probe]
    every: int
    full_batch: bool
    seed: int
    say: Callable[[str], None]
    steps_per_epoch: int = 1  # over the examples measured on, in batches like those that were read
    step: int = 0
    _shared: Shared = field(default_factory=Shared)

    def __call__(self) -> dict[str, Value]:
        """Count a step, and return {metric: number}; empty where it is not due."""
        due = self.step % self.every == 0
        found = self.measure() if due else {}
        self.step += 1
        return found

    def measure(self) -> dict[str, Value]:
        """Measure now, whatever the step."""
        state = State(
            step=self.step,
            steps=self.step,
            task=self.task,
            model=self.model,
            optimizer=self.optimizer,
            full_batch=self.full_batch,
            steps_per_epoch=self.steps_per_epoch,
            seed=self.seed,
            say=self.say,
            shared=self._shared,
        )
        try:
            # the loop is the user's, and so is its bar
            with untouched(self.model), torch.inference_mode(False), torch.enable_grad(), hidden():
                return measure(self.probes, state)
        except FloatingPointError as why:
            self.say(f"nothing can be measured at step {self.step}: {why}")
            return {}

    @property
    def notes(self) -> dict[str, str]:
        """What was measured and how: precision, modes of modules, layers."""
        return self._shared.notes

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the probes' warm starts, for those who resume."""
        return {"step": self.step} | {
            k: p.state_dict() for k, p in self.probes.items() if isinstance(p, Stateful)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        wanted = {
            "step",
            *(name for name, probe in self.probes.items() if isinstance(probe, Stateful)),
        }
        if not isinstance(state, Mapping) or not wanted <= state.keys():
            raise ValueError(
                f"state must be what state_dict() returned, with {sorted(wanted)}, got "
                f"{state!r:.80}"
            )
        self.step = state["step"]
        for name, probe in self.probes.items():
            if isinstance(probe, Stateful):
                probe.load_state_dict(state[name])


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    loss: Loss,
    batches: Data,
    every: int = 100,
    *,
    test: Data | None = None,
    error: Error | str | None = "auto",
    examples: int | None = 1000,
    full_batch: bool = False,
    probes: Mapping[str, Probe] | None = None,
    dtype: torch.dtype | None = None,
    weight: Weight | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Watch:
    """Measure sharpness, distance to the edge and generalization gap in any PyTorch loop.

        measure = watch(model, optimizer, loss, loader, every=100)
        for inputs, targets in loader:
            ...                                  # the loop as it was
            if found := measure():
                wandb.log(found)                 # {"sharpness/lambda_max": 17.3, "edge/distance":
                0.87, …}

    It only reads: weights, `.grad`, buffers, modes, the optimizer's state and all random number
    generators are afterwards what they were, bit for bit, so that training goes on as it would
    have. Call it where `optimizer` has the hyperparameters of the coming update, so after
    `optimizer.step()` and `scheduler.step()`. Metrics are those of the runner: `sharpness/…` and
    `edge/…` of the training loss, with every module in the mode that it is in when measured;
    `train/…`, `test/…` and `gap/…` in eval mode; over the same examples each time. Autocast and
    compiled code are off meanwhile, inside the model too. Layers that are frozen, unfrozen or put
    in later are noticed.

    Args:
        model: Takes a batch of inputs. It is put in eval mode for loss and error, then back.
        optimizer: Any torch optimizer of its parameters.
        loss: (outputs, targets) → a scalar; that of all examples measured on together is what is
            measured.
        batches: The training data to measure on: one (inputs, targets) pair, or what can be read
            again and again, such as a DataLoader. It is read once, now, into memory.
        every: Steps between measurements.
        test: The same for data that are not trained on; then there is a gap.
        error: (outputs, targets) → mean error in [0, 1]; None for none; `auto` for
            misclassification where targets are integers: see `misclassified`.
        examples: How many examples of either, the first ones read; None for all.
        full_batch: Whether each update sees the whole training set: the edge of some optimizers
            (SAM) needs to know.
        probes: Any of `optbench.probes` by name, in place of sharpness, edge and generalization.
        dtype: Precision of curvature, torch.float32 or float64; None for the weights' own, and
            float32 for weights in half precision.
        weight: (inputs, targets) → what a part of the examples weighs in the loss, such as its
            number of targets that are not ignored, where the loss is no mean over examples and must
            be taken in parts to fit in memory.
        seed: Seed of the measurements' own random numbers.
        say: Takes what there is to say once, such as why a number is absent; None prints it on
            stderr.

    Raises:
        ValueError: If an argument is not what is said above, the data are not pairs of tensors, or
            the optimizer holds none of the model's parameters.
    """
    _check_trained(model, optimizer, loss)
    _check_settings(every, error, examples, dtype)
    _check_data(batches, test)
    _check_functions(probes, weight, say)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    like = next(model.parameters())
    train, batch_size = _read(batches, examples, like)
    own_error = error if callable(error) else None
    if error == "auto" and not train.targets.is_floating_point():
        own_error = misclassified
    held_out = None if test is None else _read(test, examples, like)[0]
    task = Task(train, None, held_out, 0, loss, own_error, weight=weight)
    if probes is None:
        probes = {
            "sharpness": Sharpness("adaptive", thin=1),
            "edge": Edge(),
            "generalization": Generalization(),
        }
    shared = Shared(dtype)
    shared.is_open_ended = True
    per_epoch = 1 if full_batch else math.ceil(len(train) / batch_size)
    return Watch(
        model,
        optimizer,
        task,
        probes,
        every,
        full_batch,
        seed,
        say or _print_once(),
        per_epoch,
        _shared=shared,
    )


def _check_trained(model: object, optimizer: object, loss: object) -> None:
    if not isinstance(model, nn.Module) or not any(True for _ in model.parameters()):
        raise ValueError(
            f"model must be a torch.nn.Module with parameters, got {type(model).__name__}"
        )
    if any(p.is_meta for p in model.parameters()):
        raise ValueError(
            "model must have data, got parameters on device meta: model.to_empty(device=…), then "
            "load them"
        )
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer must hold parameters of this model, got one that holds none of them: pass "
            "the model that it was made for, or the optimizer that was made after the model's "
            "last copy or move"
        )
    if not callable(loss):
        raise ValueError(f"loss must be a function (outputs, targets) -> scalar, got {loss!r}")


def _check_settings(every: object, error: object, examples: object, dtype: object) -> None:
    if not _is_positive(every):
        raise ValueError(f"every must be a positive number of steps, got {every!r}")
    if not (examples is None or _is_positive(examples)):
        raise ValueError(f"examples must be a positive number, or None for all, got {examples!r}")
    if not (error is None or error == "auto" or callable(error)):
        raise ValueError(
            "error must be 'auto', None or a function (outputs, targets) -> mean error, got "
            f"{error!r}"
        )
    if not (dtype is None or dtype in PRECISIONS):
        raise ValueError(f"dtype must be torch.float32, torch.float64 or None, got {dtype!r}")


def _check_data(batches: object, test: object) -> None:
    for name, data in (("batches", batches), ("test", test)):
        read = isinstance(data, Iterable) or hasattr(data, "__getitem__")
        if not (read or (name == "test" and data is None)):
            raise ValueError(
                f"{name} must be a pair (inputs, targets), or an iterable of such pairs, got "
                f"{data!r}"
            )


def _check_functions(probes: object, weight: object, say: object) -> None:
    named = isinstance(probes, Mapping) and all(callable(p) for p in probes.values())
    if not (probes is None or named):
        raise ValueError(
            "probes must be a mapping of names to probes, or None for the usual ones, got "
            f"{probes!r}"
        )
    if not (weight is None or callable(weight)):
        raise ValueError(
            f"weight must be a function (inputs, targets) -> number, or None, got {weight!r}"
        )
    if not (say is None or callable(say)):
        raise ValueError(f"say must be a function of a line of text, or None, got {say!r}")


def _is_positive(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


def _read(data: Data, examples: int | None, like: Tensor) -> tuple[Split, int]:
    """First examples, on a parameter's device and in its precision, and the size of a batch."""
    chunks = Chunks(
        data, like.device, like.dtype if like.dtype.is_floating_point else torch.float32
    )
    parts, count = list[tuple[Tensor, Tensor]](), 0
    with chunks.kept_rng():
        for inputs, targets in chunks:
            if parts and (inputs.shape[1:], targets.shape[1:]) != (
                parts[0][0].shape[1:],
                parts[0][1].shape[1:],
            ):
                raise ValueError(
                    "batches must have inputs and targets of one shape, got "
                    f"{tuple(parts[0][0].shape)} and "
                    f"{tuple(inputs.shape)}: pad them alike, or pass one batch"
                )
            parts.append((inputs, targets))
            count += len(inputs)
            if examples is not None and count >= examples:
                break
    if not parts:
        raise ValueError(
            f"batches must hold at least one, got a {type(data).__name__} that is empty"
        )
    inputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Split(inputs, targets).first(examples), len(parts[0][0])


def misclassified(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of targets that are not the class of the largest output.

    Classes are the last dimension of outputs, (…, C) for targets (…), or the second as in torch's
    cross-entropy, (N, C, …) for targets (N, …). A negative target is no class and does not count,
    such as torch's −100 for ignored.

    Raises:
        NoErrorError: If outputs are not scores of C > 1 classes, or either dimension may be that of
            classes.
    """
    got = f"{tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
    way_out = "pass error=(outputs, targets) -> mean error, or error=None"
    if not isinstance(outputs, Tensor) or outputs.ndim != targets.ndim + 1:
        raise NoErrorError(
            f"outputs must be scores of classes for targets {tuple(targets.shape)}, got {got}: "
            f"{way_out}"
        )
    dims = [
        d
        for d in sorted({1, outputs.ndim - 1})
        if (*outputs.shape[:d], *outputs.shape[d + 1 :]) == targets.shape
    ]
    if len(dims) != 1:
        which = "two dimensions may be that of classes" if dims else "none fits"
        raise NoErrorError(f"outputs {got} for targets {tuple(targets.shape)}: {which}; {way_out}")
    classes = outputs.shape[dims[0]]
    if classes < 2 or int(targets.max()) >= classes:
        raise NoErrorError(
            f"targets up to {int(targets.max())} are not classes of {classes} outputs: {way_out}"
        )
    wrong: Tensor = (outputs.argmax(dims[0]) != targets)[targets >= 0]
    return wrong.double().mean()


def _print_once() -> Callable[[str], None]:
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            print(f"optbench: {line}", file=sys.stderr)

    return say
