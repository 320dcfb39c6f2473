"""A task: the same at every build, its loss a mean over examples, and learnable."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from optbench.boundary.counting import counted
from optbench.check import Check, Finding, passed
from optbench.configuration.construct import build_model
from optbench.task import Task


@dataclass(frozen=True)
class TaskSubject:
    """A task under check: how to build it from a seed, and the configuration that it comes with."""

    name: str
    build: Callable[[int], Task]
    config: DictConfig


def is_the_same_at_every_build(subject: TaskSubject) -> Finding:
    """One seed gives one data hash."""
    one = subject.build(0).data_hash()
    return passed(one == subject.build(0).data_hash(), f"data hash {one[:12]}")


def splits_fit_each_other(subject: TaskSubject) -> Finding:
    """Splits are not empty, finite and of one shape."""
    splits = subject.build(0).splits
    shapes = {tuple(s.inputs.shape[1:]) for s in splits.values()}
    whole = all(len(s) and len(s.inputs) == len(s.targets) for s in splits.values())
    finite = all(
        bool(s.inputs.isfinite().all()) for s in splits.values() if s.inputs.is_floating_point()
    )
    sizes = ", ".join(f"{name} {len(s)}" for name, s in splits.items())
    return passed(whole and finite and len(shapes) == 1, sizes)


def loss_is_a_mean_over_examples(subject: TaskSubject) -> Finding:
    """The loss of a batch is the mean of those of its halves, and so is the error, in [0, 1]."""
    task = subject.build(0)
    model = build_model(subject.config, task)
    found = []
    with torch.no_grad():
        x, y = (t[:64] for t in (task.train.inputs, task.train.targets))
        outputs, half = model(x), len(x) // 2
        for mean in filter(None, (task.loss, task.error)):
            parts = [float(mean(outputs[s], y[s])) for s in (slice(0, half), slice(half, 2 * half))]
            whole = float(mean(outputs[: 2 * half], y[: 2 * half]))
            found.append(abs(whole - sum(parts) / 2) <= 1e-5 * max(1.0, abs(whole)))
        inside = task.error is None or 0 <= float(task.error(outputs, y)) <= 1
    return passed(all(found) and inside)


def gives_gradients(subject: TaskSubject) -> Finding:
    """The default model gets a finite gradient that is not zero."""
    task = subject.build(0)
    model = build_model(subject.config, task)
    task.loss(model(task.train.inputs[:64]), task.train.targets[:64]).backward()
    norm = sum(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
    return passed(
        0 < norm < float("inf"), counted(sum(p.numel() for p in model.parameters()), "parameter")
    )


CHECKS: list[Check] = [
    is_the_same_at_every_build,
    splits_fit_each_other,
    loss_is_a_mean_over_examples,
    gives_gradients,
]
