"""The probes inside a training script that knows nothing of our runner."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench.curvature.chunks import Chunks
from optbench.curvature.isolation import kept_rng
from optbench.probes import Probe, State, Stateful, Value
from optbench.probes.edge import Edge
from optbench.probes.generalization import Generalization
from optbench.probes.shared import Shared
from optbench.probes.sharpness import Sharpness
from optbench.task import Error, Loss, Split, Task, error_of_classes

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
            steps_per_epoch=1,
            seed=self.seed,
            say=self.say,
            shared=self._shared,
        )
        try:
            with kept_rng(self.task.train.inputs.device), torch.inference_mode(False), torch.enable_grad():
                for probe in self.probes.values():
                    state.found |= probe(state)
        finally:
            self._shared.release()
        return state.found

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the probes' warm starts, for those who resume."""
        return {"step": self.step} | {k: p.state_dict() for k, p in self.probes.items() if isinstance(p, Stateful)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
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
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Watch:
    """Sharpness with its error bound, distance to the edge and generalization gap, in any PyTorch loop.

        measure = watch(model, optimizer, loss, loader, every=100)
        for inputs, targets in loader:
            ...                                  # the loop as it was
            if found := measure():
                wandb.log(found)                 # {"sharpness/lambda_max": 17.3, "edge/distance": 0.87, …}

    It only reads: weights, `.grad`, buffers, modes, the optimizer's state and all random number generators are
    afterwards what they were, bit for bit, so that training goes on as it would have. Call it where `optimizer` has
    the hyperparameters of the coming update, so after `optimizer.step()` and `scheduler.step()`. Metrics are those of
    the runner: `sharpness/…` and `edge/…` of the training loss in train mode, `train/…`, `test/…` and `gap/…` in eval
    mode; over the same examples each time.

    Args:
        model: Takes a batch of inputs. It is put in train or eval mode for the measurement, then back.
        optimizer: Any torch optimizer of its parameters.
        loss: (outputs, targets) → the mean over the batch's examples, a scalar.
        batches: The training data to measure on: one (inputs, targets) pair, or what can be read again and again, such
            as a DataLoader. It is read once, now, into memory.
        every: Steps between measurements.
        test: The same for data that are not trained on; then there is a gap.
        error: (outputs, targets) → mean error in [0, 1]; None for none; `auto` for misclassification where targets
            are integers.
        examples: How many examples of either, the first ones read; None for all.
        full_batch: Whether each update sees the whole training set: the edge of some optimizers (SAM) needs to know.
        probes: Any of `optbench.probes` by name, in place of sharpness, edge and generalization.
        seed: Of the measurements' own random numbers.
        say: Takes what there is to say once, such as why a number is absent; None prints it on stderr.

    Raises:
        ValueError: If `every` is not positive, or the data are not pairs of tensors.
    """
    if not every >= 1:
        raise ValueError(f"every must be a positive number of steps, got {every}")
    like = next(model.parameters())
    train = _read(batches, examples, like)
    if isinstance(error, str):
        error = None if train.targets.is_floating_point() else error_of_classes
    task = Task(train, None, None if test is None else _read(test, examples, like), 0, loss, error)
    if probes is None:
        probes = {"sharpness": Sharpness("adaptive", thin=1), "edge": Edge(), "generalization": Generalization()}
    return Watch(model, optimizer, task, probes, every, full_batch, seed, say or _print_once())


def _read(data: Data, examples: int | None, like: Tensor) -> Split:
    """The first so many examples, on a parameter's device and in its precision; no generator is moved."""
    chunks = Chunks(data, like.device, like.dtype)
    parts, count = [], 0
    with chunks.kept_rng():
        for inputs, targets in chunks:
            parts.append((inputs, targets))
            count += len(inputs)
            if examples is not None and count >= examples:
                break
    inputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Split(inputs, targets).first(examples)


def _print_once() -> Callable[[str], None]:
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            print(f"optbench: {line}", file=sys.stderr)

    return say
