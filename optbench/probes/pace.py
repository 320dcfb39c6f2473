"""The adaptive cadence: often where curvature moves, and never dearer than a share of training."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optbench.probes import State

STILL, MOVING = (0.02, 0.1)
"""Relative change below which the cadence slows, and above which it speeds up."""

PRODUCT = 3.0
"""Updates on its examples that a product with the Hessian counts as, with its part of the graph;
alone it is 1.3 (MLP) to 2.3 gradients (transformer), docs/curvature.md."""

FIRST = 10  # steps from the first measurement to the second
FEWEST = 10  # measurements of a run of as many steps, whatever they cost
GROWTH = 4  # of the interval from one measurement to the next, at most, where the share wants more
MEMORY = 8  # measurements that the mean cost remembers, about


def updates_worth(products: float, state: State, examples: int | None) -> float:
    """Updates that products with the Hessian of so many examples count as; None for all."""
    total = len(state.task.train.inputs)
    part = 1.0 if examples is None else min(1.0, examples / total)
    return PRODUCT * products * part * state.steps_per_epoch


def _longest(steps: int) -> int:
    """The longest odd interval of which a run has as many as `FEWEST`; 1 in a shorter one."""
    most = max(1, steps // FEWEST)
    return most - (most % 2 == 0)


@dataclass
class Pace:
    """Sets the step of the next measurement from what this one found and cost.

    The interval halves after a change of more than 10 % since the last measurement of the quantity,
    and doubles, up to `longest`, after one of less than 2 %. It is not below cost/share, where the
    cost is a running mean in updates, each product counted as three updates on its examples; it
    grows no faster than to four times the last. Then it is made odd, upwards, so that an
    oscillation of period two, which training has at its edge, is seen on both sides. It is never
    above a tenth of the run, whatever that costs. Counts decide and no clock, so that a resumed run
    measures at the same steps.

    Args:
        share: Updates' worth of products for each update, at most, the first measurement aside.
        longest: Longest interval in steps, where the share allows it.

    Attributes:
        next_step: Step of the next measurement.
    """

    share: float
    longest: int
    next_step: int = 0
    _step: int = -1  # of the measurement that is being taken
    _before: int = 0  # interval before it; 0: there was none
    _spent: float = 0.0  # updates at this step
    _cold: bool = False  # whether a quantity was found at this step for the first time
    _mean: float = math.nan  # updates of a measurement, without those from a cold start
    _last: dict[str, float] = field(default_factory=dict)

    def begin(self, step: int) -> None:
        """A measurement is due at this step; if nothing is taken the interval stays."""
        if step == self._step:
            return
        self._mean = self._mean_with_this()
        self._before = max(0, self.next_step - self._step) if self._step >= 0 else 0
        self._step, self._spent, self._cold = step, 0.0, False
        self.next_step = step + (self._before or FIRST)

    def take(
        self, quantity: str, value: float, products: float, state: State, examples: int | None
    ) -> None:
        """Take in a measurement; the last one that is taken at a step decides.

        Args:
            quantity: Name of what was measured.
            value: Its value.
            products: Hessian-vector products that it cost.
            state: Training.
            examples: Number of examples of the Hessian; None for all.
        """
        self._spent += updates_worth(products, state, examples)
        before = self._last.get(quantity)
        self._cold |= before is None
        self._last[quantity] = value
        is_known = state.steps > state.step  # how long the run is
        most = _longest(state.steps) if is_known else sys.maxsize
        interval = min(self._before or FIRST, most)
        if before is not None:
            change = abs(value - before) / max(abs(before), 1e-30)
            if change > MOVING:
                interval = max(1, interval // 2)
            elif change < STILL:
                interval = min(2 * interval, max(self.longest, interval), most)
        mean = self._mean_with_this()
        if not math.isnan(mean):
            worth = mean / self.share
            interval = max(interval, math.ceil(min(worth, GROWTH * self._before, most)))
        self.next_step = self._step + interval + 1 - interval % 2

    def left(self, after: int, steps: int, updates: float | None) -> int:
        """Measurements after a step, the one at the last step among them, if nothing moves faster.

        Below what the share allows the interval grows fourfold; it stays where it is above that.

        Args:
            after: Step.
            steps: Steps of the whole run.
            updates: Updates' worth of a later measurement; None if it is not known. What the
                measurements were seen to cost counts more.
        """
        cost = updates if math.isnan(self._mean) else self._mean
        allowed = math.ceil(min(_longest(steps), 0.0 if cost is None else cost / self.share))
        step, interval, count = self.next_step, max(1, self.next_step - after), 1
        while step < steps:
            count += 1
            interval = max(interval, min(GROWTH * interval, allowed))
            step += interval + 1 - interval % 2
        return count

    def _mean_with_this(self) -> float:
        # Nothing was taken before the edge was known, and the first search for a quantity is cold:
        # neither says what later ones cost.
        if self._cold or (not self._spent and math.isnan(self._mean)):
            return self._mean
        if math.isnan(self._mean):
            return self._spent
        return self._mean + (self._spent - self._mean) / MEMORY

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on from."""
        return {k: v for k, v in asdict(self).items() if k not in ("share", "longest")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        for name, value in state.items():
            setattr(self, name, value)
