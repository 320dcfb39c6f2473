"""How many threads a run or a measurement takes, where nobody has said it."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from optbench.curvature.isolation import kept_rng
from optbench.probes.generalization import evaluating
from optbench.run.loop import Parts
from optbench.task import Task

SMALL = 5 * 10**7
"""Multiply-adds of a forward pass below which a run takes one thread.

Threads meet after every operation, and where others use the cores one waits for a thread that is
not running. On two cores, one of them in use, two threads instead of one made updates 1.8 to 4.6
times longer below this number and 1.6 to 2.8 times above it; with both cores free, 1.0 to 1.6 times
shorter below and 1.5 to 1.9 times above. Many cores gain a small operation no more than two do."""

SAID = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
EXAMPLES = 4  # that multiply-adds are counted on


@contextmanager
def fitting_threads(
    model: nn.Module, optimizer: Optimizer | None, task: Task, examples: int
) -> Iterator[None]:
    """Context of one thread if passes are small, on a CPU, and the environment sets no number.

    Decided by the work alone and not by how busy the machine is, since rounding depends on it.

    Args:
        model: Model.
        optimizer: Its optimizer, which may evaluate at other weights.
        task: Task.
        examples: The most examples of a pass.
    """
    small = False
    if task.train.inputs.device.type == "cpu" and torch.get_num_threads() > 1 and not _is_said():
        count = multiply_adds(model, optimizer, task, examples)
        small = count is not None and count < SMALL
    with one_thread(small):
        yield


@contextmanager
def one_thread(pays: bool) -> Iterator[None]:
    """Context of one thread where that pays and the environment sets no number."""
    before = torch.get_num_threads()
    if pays and not _is_said():
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_said() -> bool:
    """Whether the environment sets a number of threads."""
    return any(map(os.environ.get, SAID))


def threads_of(run: Parts) -> AbstractContextManager[None]:
    """Context of the threads that fit a run, see `fitting_threads`."""
    return fitting_threads(run.update.model, run.update.optimizer, run.task, most_examples(run))


def most_examples(run: Parts) -> int:
    """The most training examples that an update or a probe of a run takes."""
    count = len(run.task.train)
    of_probes = [
        count if probe.examples is None else min(probe.examples, count)
        for probe in run.probes.values()
        if hasattr(probe, "examples") and probe.every != "never"
    ]
    return max([run.batches.size, *of_probes])


def multiply_adds(
    model: nn.Module, optimizer: Optimizer | None, task: Task, examples: int
) -> int | None:
    """Multiply-adds of a forward pass on so many examples.

    Matrix products, convolutions and attention count; None for a model that does not run on a few
    examples, or not where operations are counted.
    """
    few = task.train.first(min(EXAMPLES, len(task.train)))
    if not len(few):
        return None
    counter = FlopCounterMode(display=False)
    try:
        with (
            kept_rng(few.inputs.device),
            evaluating(model, optimizer, task),
            torch.no_grad(),
            counter,
        ):
            model(few.inputs)
    except Exception:  # models are anybody's; what is wrong with one is told where it trains
        return None
    return int(counter.get_total_flops()) // 2 * examples // len(few)
