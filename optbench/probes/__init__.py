"""Probes, one file each: training state → {metric: number}. A probe only reads.

A probe changes no parameter, buffer, `.grad`, optimizer state or global random state: a run with
probes is bit-identical to the run without. A probe that keeps something between calls also has
`state_dict` and `load_state_dict`. A probe that does not apply leaves its keys out, and says why
once through `State.say`.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

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
        step: Number of updates done so far.
        steps: Number of updates of the whole run.
        task: Task, on the device of the training.
        model: Model, in train mode.
        optimizer: Optimizer, with its hyperparameters for the coming update.
        full_batch: Whether the coming update uses the whole training set.
        steps_per_epoch: Updates per epoch, 1 for the full batch.
        seed: Seed of the run; draw randomness from `optbench.seeds` with a stream of your own.
        found: Metrics that earlier probes measured at this step.
        say: Function that tells the user something once.
        shared: Quantities that several probes of this step need.
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
    """Interface of a probe. `every` is its cadence, see `due`."""

    every: int | str

    def __call__(self, state: State) -> Mapping[str, Value]:
        """Measure at this state."""


@runtime_checkable
class Stateful(Protocol):
    """A probe that keeps something between calls, such as a warm start."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers, strings, and containers of these."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


@runtime_checkable
class SelfPaced(Protocol):
    """A probe that may have `every: adaptive`: it sets the step of its next measurement.

    One that has to be called at other steps than those that `every` counts, such as the step after,
    says so by a true attribute `paces_itself`.
    """

    every: int | str

    @property
    def next_step(self) -> int:
        """Step of the next measurement."""


def _unwatched(name: str) -> AbstractContextManager[None]:
    return nullcontext()


def measure(
    probes: Mapping[str, Probe],
    state: State,
    watched: Callable[[str], AbstractContextManager[None]] = _unwatched,
) -> dict[str, Value]:
    """Call the probes in order and return their metrics; random generators are restored.

    A probe whose curvature cannot be measured on this model is left out, and says why once.

    Args:
        probes: Those that are due, by name.
        state: Training.
        watched: Context of the call of a probe, by its name, for who tells or times it.

    Raises:
        FloatingPointError: If a product is not finite: the run has diverged.
    """
    try:
        with kept_rng(state.task.train.inputs.device):
            for name, probe in probes.items():
                try:
                    with watched(name), state.shared.ranks.one_fate():
                        found = _numbers(name, probe(state))
                    state.found |= found
                except MeasurementError as why:
                    state.say(f"{name} is absent: {why}")
    finally:
        state.shared.release()
    return state.found


def _numbers(name: str, returned: Mapping[str, Any]) -> Mapping[str, Value]:
    """Return a probe's metrics; raise a UserError for values that are no numbers."""
    for metric, value in returned.items():
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float):
                raise UserError(
                    f"probe {name} returned {metric}={printable(repr(number))[:80]} "
                    f"({type(number).__name__}): a probe returns numbers or lists of numbers, "
                    "float(x) of a tensor"
                )
    return returned


def check_cadences(probes: Mapping[str, Probe]) -> None:
    """Raise a UserError unless each `every` is a cadence or the name of an earlier probe."""
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
    """Return the probes whose cadence falls on this step.

    Every probe is due on the first and the last step, except with the cadence `never`. Cadences:

    - a number: every so many steps;
    - `epoch`: once per epoch;
    - `log`: ten times a decade, at the first step in each [10^(i/10), 10^((i+1)/10));
    - `adaptive`: at the step that the probe has set;
    - a probe's name: whenever that probe is due;
    - `never`: switched off, with all probes whose cadence is its name.
    """
    chosen: dict[str, Probe] = {}
    for name, probe in probes.items():
        # A probe stands before the probes that follow it, so whether it is due is known by now.
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
        case _ if _paces_itself(probe) and hasattr(probe, "next_step"):  # isinstance: 10 μs a step
            return step >= cast(SelfPaced, probe).next_step
        case "epoch":
            return step % steps_per_epoch == 0
        case "log":
            return _new_tenth_of_a_decade(step)
        case int(number):
            return step % number == 0
        case _:
            return False


def _paces_itself(probe: Probe) -> bool:
    return probe.every == "adaptive" or bool(getattr(probe, "paces_itself", False))


def _new_tenth_of_a_decade(step: int) -> bool:
    """Whether floor(10 log10 step) is larger than at the step before."""
    return step == 1 or math.floor(10 * math.log10(step)) > math.floor(10 * math.log10(step - 1))
