"""Where a run ends before its last step, and where it keeps a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optbench import metrics
from optbench.errors import UserError
from optbench.probes import Value


@dataclass(frozen=True)
class Stop:
    """The first measurement of a metric that is at most a value: m(t) ≤ below.

    The metric is looked at whenever a probe measures it: how closely the value is met depends on
    that probe's `every`.

    Attributes:
        metric: Name of the metric, such as `train/loss`.
        below: The value.
    """

    metric: str
    below: float

    def is_reached(self, step: int, measured: Mapping[str, Value]) -> bool:
        """Say whether these measurements end the run.

        Raises:
            UserError: If nothing measures the metric: on the first step every probe is called.
        """
        value = measured.get(self.metric)
        if step == 0 and not isinstance(value, int | float):
            known = sorted(k for k, v in measured.items() if isinstance(v, int | float))
            raise UserError(
                f"stop.metric={self.metric} is measured by no probe of this run; there are "
                f"{', '.join(known)}"
            )
        return isinstance(value, int | float) and value <= self.below


@dataclass(frozen=True)
class Keep:
    """Checkpoints to keep: at the first training loss measured at or below a value, and at steps.

    Attributes:
        losses: Values of `train/loss`.
        steps: Numbers of updates.
    """

    losses: Sequence[float] = ()
    steps: Sequence[int] = ()

    def reached(self, measured: Mapping[str, Value], before: Sequence[float]) -> list[float]:
        """Return the losses that these measurements reach for the first time."""
        loss = measured.get(metrics.TRAIN_LOSS)
        if not isinstance(loss, int | float):
            return []
        return [value for value in self.losses if loss <= value and value not in before]
