"""A probe: it measures, and it only reads."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch

from optbench.check import Check, Finding, passed
from optbench.configuration.compose import compose_config
from optbench.configuration.construct import build_task
from optbench.models.mlp import mlp
from optbench.probes import Probe, State, Stateful, Value, check_cadences
from optbench.run.update import Update


@dataclass(frozen=True)
class ProbeSubject:
    """A probe under check: how to build it."""

    name: str
    build: Callable[[], Probe]


def _training(seed: int = 0) -> tuple[Update, Callable[[int], State]]:
    task = build_task(compose_config(["task=digits", "task.train_size=200", "device=cpu"]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = mlp(task.input_shape, task.output_width, widths=[8])
    update = Update(model, task.loss, torch.optim.SGD(model.parameters(), 0.1))

    def state(step: int) -> State:
        return State(step, 4, task, model, update.optimizer, True, 1, seed, say=lambda text: None)

    return update, state


def _measure(subject: ProbeSubject, probing: bool) -> tuple[Update, dict[str, Value], Probe]:
    """Four steps, with or without measurements; return the probe and its last values."""
    update, state = _training()
    probe, found = subject.build(), dict[str, Value]()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for step in range(5):
            if probing:
                now = state(step)
                found |= probe(now)
                now.shared.release()
            if step < 4:
                update(now.task.train.inputs, now.task.train.targets) if probing else update(
                    state(step).task.train.inputs, state(step).task.train.targets
                )
        update.gradients += int(torch.randint(10**6, ()))  # where the random state stands
    return update, found, probe


def measures_something(subject: ProbeSubject) -> Finding:
    """Its metrics are called group/quantity and are numbers."""
    _, found, _ = _measure(subject, True)
    if not found:
        return Finding("warn", "found nothing on a small network under SGD")
    named = all("/" in key for key in found)
    numbers = all(isinstance(value, (int, float, list)) for value in found.values())
    return passed(named and numbers, ", ".join(sorted(found))[:160])


def only_reads(subject: ProbeSubject) -> Finding:
    """Training with it is bit for bit that without: weights, gradients, random state."""
    with_it, _, _ = _measure(subject, True)
    without, _, _ = _measure(subject, False)
    pairs = list(zip(with_it.parameters, without.parameters, strict=True))
    weights = all(torch.equal(p, q) for p, q in pairs)
    gradients = all(
        p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad) for p, q in pairs
    )
    return passed(weights and gradients and with_it.gradients == without.gradients)


def has_a_cadence(subject: ProbeSubject) -> Finding:
    """`every` is a number of steps, epoch, log, adaptive with a next step, or a probe's name."""
    probe = subject.build()
    if isinstance(probe.every, str) and probe.every not in ("epoch", "log", "adaptive"):
        return Finding("reported", f"due whenever {probe.every} is")
    check_cadences({subject.name: probe})
    return Finding("pass", f"every {probe.every}")


def state_can_be_saved(subject: ProbeSubject) -> Finding:
    """What it keeps between calls goes through a checkpoint and back."""
    _, _, probe = _measure(subject, True)
    if not isinstance(probe, Stateful):
        return Finding("not tried", "has no state_dict(): it keeps nothing between calls")
    content = io.BytesIO()
    torch.save(probe.state_dict(), content)
    content.seek(0)
    subject.build().load_state_dict(torch.load(content, weights_only=True))  # type: ignore[attr-defined]
    return Finding("pass")


CHECKS: list[Check] = [has_a_cadence, measures_something, only_reads, state_can_be_saved]
