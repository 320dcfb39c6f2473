"""What measuring will cost: how often each probe is still due, times the seconds of each time."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from optbench.boundary.counting import counted
from optbench.curvature.errors import MeasurementError
from optbench.curvature.isolation import kept_rng
from optbench.probes import Probe, State, due
from optbench.probes.pace import updates_worth

RECENT = 20  # calls whose mean is what the next one is taken to cost; even: some take turns
ENOUGH = 4  # calls after the first one from which on they are trusted more than what was foretold
TIMED = 0.2  # seconds of products from which on one more tells nothing new
TOLD = 0.05  # share of the whole from which on a probe's part of it is said
WORTH_SAYING = 5.0  # seconds of measuring that are worth a line


@runtime_checkable
class Foretelling(Protocol):
    """A probe whose first call does not show what a later one costs.

    The first starts cold, or comes before there is anything to measure.
    """

    def later_products(self, state: State) -> float | None:
        """Hessian-vector products that a later call costs, about; None: what the first cost."""


@dataclass
class Costs:
    """Seconds that the probes' calls took in this session.

    Attributes:
        first: Seconds of each probe's first call.
        recent: Seconds of its calls after that, the last ones.
        spent: Seconds of all of its calls.
        expected: Seconds of a later call, where its probe foretells them; runs that differ in their
            seed can share it, and then only the first asks.
        updates: Updates that a later call is worth, as the adaptive cadence counts them; shared as
            `expected` is.
    """

    first: dict[str, float] = field(default_factory=dict)
    recent: dict[str, list[float]] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    updates: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, seconds: float) -> None:
        """Take in what a call took."""
        self.spent[name] = self.spent.get(name, 0.0) + seconds
        if name not in self.first:
            self.first[name] = seconds
        else:
            self.recent[name] = [*self.recent.get(name, ()), seconds][-RECENT:]

    def each(self, name: str) -> float:
        """Seconds that a later call of a probe is taken to cost."""
        calls = self.recent.get(name, [])
        if len(calls) >= ENOUGH or (calls and name not in self.expected):
            return math.fsum(calls) / len(calls)
        return self.expected.get(name, self.first.get(name, 0.0))

    def expect(self, probes: Mapping[str, Probe], state: State) -> None:
        """Ask the probes what later calls will cost, and time a product for it.

        It only reads. Where no product can be computed the first calls stand for the later ones.
        """
        if self.expected:
            return
        asked = {n: p for n, p in probes.items() if isinstance(p, Foretelling)}
        try:
            with kept_rng(state.task.train.inputs.device):
                seconds = _seconds_of_a_product(state, asked) if asked else 0.0
                for name, probe in asked.items():
                    products = probe.later_products(state)
                    if products is not None:
                        self.expected[name] = products * seconds
                        examples = getattr(probe, "examples", None)
                        self.updates[name] = updates_worth(products, state, examples)
        except (MeasurementError, FloatingPointError):
            self.expected.clear()
            self.updates.clear()
        finally:
            state.shared.release()

    def left(
        self, probes: Mapping[str, Probe], after: int, steps: int, per_epoch: int
    ) -> dict[str, tuple[int, float]]:
        """Calls that are left after a step, and their seconds together, of each probe."""
        times = times_left(probes, after, steps, per_epoch, self.updates)
        return {name: (times[name], times[name] * self.each(name)) for name in probes}

    def foretold(
        self, probes: Mapping[str, Probe], after: int, steps: int, per_epoch: int
    ) -> str | None:
        """Say what all measurements after a step will cost; None where that is little."""
        parts = self.left(probes, after, steps, per_epoch)
        total = math.fsum(seconds for _, seconds in parts.values())
        if total < WORTH_SAYING:
            return None
        dear = sorted(parts.items(), key=lambda part: -part[1][1])
        said = [
            f"{name} {seconds:.0f} s ({counted(times, 'time')})"
            for name, (times, seconds) in dear
            if seconds >= TOLD * total
        ]
        return f"measuring will take about {total:.0f} s: {', '.join(said)}"


def _seconds_of_a_product(state: State, asked: Mapping[str, Probe]) -> float:
    """Seconds of a product on a graph that is there, over as many examples as the probes take."""
    examples = getattr(next(iter(asked.values())), "examples", None)
    hessian = state.shared.hessian(state, examples)
    vector = torch.ones(hessian.size, dtype=hessian.dtype, device=hessian.device)
    hessian @ vector  # makes the graph
    seconds, ranks = list[float](), state.shared.ranks
    # clocks differ between processes, which have to compute as many products
    while ranks.any(math.fsum(seconds) < TIMED)[0] and len(seconds) < 9:
        start = time.perf_counter()
        float((hessian @ vector)[0])  # to be read, it has to be there
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def times_left(
    probes: Mapping[str, Probe],
    after: int,
    steps: int,
    per_epoch: int,
    updates: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """How often each probe will be due after a step, about where it paces itself.

    See `optbench.probes.due`. The last step counts for all but those with the cadence `never`.

    Args:
        probes: Probes by name.
        after: Step.
        steps: Steps of the whole run.
        per_epoch: Updates per epoch.
        updates: Updates that a later call of a probe is worth, where that is known.
    """
    times: dict[str, int] = {}
    for name, probe in probes.items():
        every = probe.every
        if every in times:
            times[name] = times[str(every)]
        elif every == "never" or after >= steps:
            times[name] = 0
        elif every == "log":
            times[name] = len(_log_steps(name, probe, after, steps))
        elif every == "adaptive":
            followed = [n for n, p in probes.items() if n == name or p.every == name]
            known = [updates[n] for n in followed if n in updates] if updates else []
            worth = math.fsum(known) if known else None
            times[name] = _at_its_pace(probe, after, steps, worth)
        else:
            n = per_epoch if every == "epoch" else int(every)
            times[name] = steps // n - after // n + (steps % n != 0)
            if getattr(probe, "paces_itself", False) and n > 1:
                # also at the step after each n-th one
                times[name] += (steps - 1) // n - (after - 1) // n - (steps % n == 1)
    return times


def _log_steps(name: str, probe: Probe, after: int, steps: int) -> set[int]:
    tenths = range(int(10 * math.log10(steps)) + 2)
    near = {math.ceil(10 ** (i / 10)) + k for i in tenths for k in (-1, 0, 1)} | {steps}
    return {s for s in near if after < s <= steps and due({name: probe}, s, steps, 1)}


def _at_its_pace(probe: Probe, after: int, steps: int, updates: float | None) -> int:
    """Times left as the probe itself foretells them, else at the interval that now is."""
    if (foretell := getattr(probe, "times_left", None)) is not None:
        return int(foretell(after, steps, updates))
    interval = max(1, getattr(probe, "next_step", after + 1) - after)
    return math.ceil((steps - after) / interval)
