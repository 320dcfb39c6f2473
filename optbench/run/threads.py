"""How many threads a run takes, where nobody has said it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from optbench.curvature.isolation import kept_rng
from optbench.probes.generalization import evaluating
from optbench.run.loop import Experiment

SMALL = 5 * 10**7
"""Multiply-adds of a forward pass below which a run takes one thread.

Threads meet after every operation, and where others use the cores one waits for a thread that is
not running. On two cores, one of them in use, two threads instead of one made updates 1.8 to 4.6
times longer below this number and 1.6 to 2.8 times above it; with both cores free, 1.0 to 1.6 times
shorter below and 1.5 to 1.9 times above. Many cores gain a small operation no more than two do."""

SAID = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
EXAMPLES = 4  # that multiply-adds are counted on


@contextmanager
def fitting_threads(experiment: Experiment) -> Iterator[None]:
    """Context of one thread if the run is small, on a CPU, and the environment sets no number.

    Decided by the run alone and not by how busy the machine is, since rounding depends on it.
    """
    before = torch.get_num_threads()
    on_cpu = experiment.update.parameters[0].device.type == "cpu"
    if on_cpu and before > 1 and not any(map(os.environ.get, SAID)):
        count = multiply_adds(experiment)
        if count is not None and count < SMALL:
            torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def multiply_adds(experiment: Experiment) -> int | None:
    """Multiply-adds of a forward pass on the most examples that an update or a probe takes.

    Matrix products, convolutions and attention count; None for a model that does not run on a few
    examples, or not where operations are counted.
    """
    train, update = experiment.task.train, experiment.update
    of_probes = [
        len(train) if probe.examples is None else min(probe.examples, len(train))
        for probe in experiment.probes.values()
        if hasattr(probe, "examples") and probe.every != "never"
    ]
    few = train.first(min(EXAMPLES, len(train)))
    counter = FlopCounterMode(display=False)
    try:
        with (
            kept_rng(few.inputs.device),
            evaluating(update.model, update.optimizer, experiment.task),
            torch.no_grad(),
            counter,
        ):
            update.model(few.inputs)
    except Exception:  # models are anybody's; what is wrong with one is told where it trains
        return None
    examples = max([experiment.batches.size, *of_probes])
    return int(counter.get_total_flops()) // 2 * examples // len(few)
