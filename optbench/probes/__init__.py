"""Probes, one file each: training state → {metric: number}. A probe only reads.

It changes no parameter, buffer, `.grad`, optimizer state or global random state: a run with probes
is bit-identical to the run without. One that keeps something between calls also has `state_dict`
and `load_state_dict`. One that does not apply leaves its keys out and says why once through
`State.say`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.optim import Optimizer

from optbench.boundary.files import printable
from optbench.curvature.errors import MeasurementError
from optbench.curvature.isolation import kept_rng
from optbench.errors import UserError
from optbench.probes.shared import Shared
from optbench.task import Task

Value = float | int | list[float]


@dataclass
class State:
    """Training as a probe sees it, before the update of this step.

    Attributes:
        step: Updates done so far.
        steps: Updates in all.
        task: On the device that is trained on.
        model: In train mode.
        optimizer: With its hyperparameters for the coming update.
        full_batch: Whether the coming update uses the whole training set.
        steps_per_epoch: Updates an epoch, 1 for the full batch.
        seed: The run's; take randomness from `optbench.seeds` with a stream of your own.
        found: What earlier probes found at this step.
        say: Tells the user something once.
        shared: What the probes of this step need in common.
    """

    step: int
    steps: int
    task: Task
    model: nn.Module
    optimizer: Optimizer
    full_batch: bool
    steps_per_epoch: int
    seed: int
    found: dict[str, Value] = field(default_factory=dict)
    say: Callable[[str], None] = print
    shared: Shared = field(default_factory=Shared)


class Probe(Protocol):
    """What the runner asks of a probe. `every` is its cadence, see `due`."""

    every: int | str

    def __call__(self, state: State) -> Mapping[str, Value]:
        """Measure."""


@runtime_checkable
class Stateful(Protocol):
    """A probe that keeps something between calls, such as a warm start."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers, strings, and containers of these."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""


@runtime_checkable
class SelfPaced(Protocol):
    """A probe with `every: adaptive`, which says itself when it wants to measure next.

    One that has to be called at other steps than those that `every` counts, such as the step after,
    says so by a true attribute `paces_itself`.
    """

    every: int | str
    next_step: int


def measure(probes: Mapping[str, Probe], state: State) -> dict[str, Value]:
    """Call the probes, in their order, and return what they found; random generators are left as they were.

    A probe whose curvature cannot be measured on this model is left out, and says why once.

    Raises:
        FloatingPointError: If a product is not finite: the run has diverged.
    """
    try:
        with kept_rng(state.task.train.inputs.device):
            for name, probe in probes.items():
                try:
                    state.found |= _numbers(name, probe(state))
                except MeasurementError as why:
                    state.say(f"{name} is absent: {why}")
    finally:
        state.shared.release()
    return state.found


def _numbers(name: str, found: Mapping[str, Any]) -> Mapping[str, Value]:
    """What a probe returned; raises a UserError for what no series can hold."""
    for metric, value in found.items():
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float):
                raise UserError(
                    f"probe {name} returned {metric}={printable(repr(number))[:80]} "
                    f"({type(number).__name__}): a probe "
                    "returns numbers or lists of numbers, float(x) of a tensor"
                )
    return found


def check_cadences(probes: Mapping[str, Probe]) -> None:
    """Raise a UserError unless each `every` is a cadence, or the name of a probe that stands before."""
    before: list[str] = []
    for name, probe in probes.items():
        every = probe.every
        whole = isinstance(every, int) and not isinstance(every, bool) and every > 0
        paced = every == "adaptive" and isinstance(probe, SelfPaced)
        if not (whole or paced or every in ("epoch", "log", "never") or every in before):
            known = "epoch, log, never" + (", adaptive" if isinstance(probe, SelfPaced) else "")
            raise UserError(
                f"probes.{name}.every must be a positive number of steps, {known} or a probe "
                f"before it, got {every}"
            )
        before.append(name)


def due(
    probes: Mapping[str, Probe], step: int, steps: int, steps_per_epoch: int
) -> dict[str, Probe]:
    """Return the probes whose cadence falls on this step; each does on the first and the last, unless it never does.

    `never` switches a probe off, and those whose cadence is its name; a number means every so many
    steps, `epoch` once an epoch, `log` ten times a decade (at the first step in each [10^(i/10),
    10^((i+1)/10))), `adaptive` when the probe says, a probe's name whenever that one is due.
    """
    chosen: dict[str, Probe] = {}
    for name, probe in probes.items():
        # a name stands before its followers, and is due on the first and last step if they are
        follows = probe.every in probes
        if probe.every in chosen if follows else _falls(probe, step, steps, steps_per_epoch):
            chosen[name] = probe
    return chosen


def _falls(probe: Probe, step: int, steps: int, steps_per_epoch: int) -> bool:
    """Whether a probe's own cadence falls on this step."""
    match probe.every:
        case "never":
            return False
        case _ if step in (0, steps):
            return True
        case _ if isinstance(probe, SelfPaced) and _paces_itself(probe):
            return step >= probe.next_step
        case "epoch":
            return step % steps_per_epoch == 0
        case "log":
            return _new_tenth_of_a_decade(step)
        case int(number):
            return step % number == 0
        case _:
            return False


def _paces_itself(probe: SelfPaced) -> bool:
    return probe.every == "adaptive" or bool(getattr(probe, "paces_itself", False))


def _new_tenth_of_a_decade(step: int) -> bool:
    return step == 1 or math.floor(10 * math.log10(step)) > math.floor(10 * math.log10(step - 1))
