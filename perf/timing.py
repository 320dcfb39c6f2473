"""Time and memory of an action, and the action that both are compared to."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from optbench.curvature.chunk_loss import Criterion
from optbench.curvature.chunks import Pair


def gradient(model: nn.Module, loss: Criterion, data: Pair) -> object:
    """One gradient, as in a training step."""
    return torch.autograd.grad(loss(model(data[0]), data[1]), list(model.parameters()))


def seconds(action: Callable[[], object], repeats: int = 7, warm: bool = True) -> float:
    """Median seconds of an action, after one to warm up."""
    if warm:
        action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return median(times)


def over(action: Callable[[], object], base: Callable[[], object], pairs: int = 15) -> float:
    """Median over pairs of the time of an action over that of a base."""
    action()
    return median(
        seconds(action, 1, warm=False) / seconds(base, 1, warm=False) for _ in range(pairs)
    )


def peak_bytes(action: Callable[[], object]) -> int:
    """Largest sum of live CPU allocations made by an action."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = action()
    del kept
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
