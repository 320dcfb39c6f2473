"""What the person at the terminal sees: a live bar, or plain lines, then a table.

That nothing written here can stop a run is the work of `optbench.startup`.
"""

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from optbench import metrics

SHOWN = {
    metrics.BATCH_LOSS: "loss",
    metrics.TEST_ERROR: "error",
    metrics.SHARPNESS: "sharpness",
    metrics.PRECONDITIONED_SHARPNESS: "preconditioned",
    metrics.NORM_SHARPNESS: "norm sharpness",
    metrics.EDGE_THRESHOLD: "threshold",
    metrics.EDGE_DISTANCE: "distance to edge",
}
PLAIN_LINES = 10
PLAIN_SECONDS = 60.0


class Terminal:
    """Shows one run's progress, as a context."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._steps, self._latest = steps, dict[str, float]()
        self._said: set[str] = set()
        self._began, self._start = time.monotonic(), -1
        self._next_line, self._next_refresh = 0, 0.0
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                BarColumn(bar_width=20),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                auto_refresh=False,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=steps)

    def __enter__(self) -> "Terminal":
        if self._bar:
            self._bar.start()
            self._bar.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line, the first time that it is said."""
        if line not in self._said:
            self._said.add(line)
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        """Take in one step's values; redraws a few times a second."""
        if self._start < 0:
            self._start = self._next_line = step
            self._began = time.monotonic()
        if values:
            self._latest |= {metric: values[metric] for metric in SHOWN if metric in values}
        if self._bar:
            self._redraw(self._bar, step)
        elif step >= self._next_line:
            self._next_line += max(1, (self._steps - self._start) // PLAIN_LINES)
            rate = (time.monotonic() - self._began) / max(1, step - self._start)
            left = f"  {rate * (self._steps - step):.0f} s left" if step > self._start else ""
            self.say(f"step {step}/{self._steps}  {self._numbers()}{left}")

    def _redraw(self, bar: Progress, step: int) -> None:
        now = time.monotonic()
        if now >= self._next_refresh:
            self._next_refresh = now + 0.2
            bar.update(self._task, completed=step, description=self._numbers(), refresh=True)

    def _numbers(self) -> str:
        return "  ".join(f"{SHOWN[metric]} {value:.4g}" for metric, value in self._latest.items())


class ManyRuns:
    """Shows how many of a number of runs are made, as a context: a live bar, or plain lines.

    Without a terminal a line comes as it begins, whenever another tenth is made, and a minute after
    the last one.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total, self._done, self._what = total, 0, ""
        self._next_line, self._next_time = 0, 0.0
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(
                *columns, TextColumn("left"), TimeRemainingColumn(), console=self._console
            )
            self._task = self._bar.add_task("runs", total=total)

    def __enter__(self) -> "ManyRuns":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def begin(self, what: str = "") -> None:
        """Say what the runs that come now are of."""
        self._what = what
        if self._bar:
            self._bar.update(self._task, description=what)
        else:
            self._tell()

    def advance(self, count: int = 1) -> None:
        """Count so many runs more."""
        if not count:
            return
        self._done += count
        if self._bar:
            self._bar.advance(self._task, count)
        elif self._done >= self._next_line or time.monotonic() > self._next_time:
            self._tell()

    def _tell(self) -> None:
        self._next_line = self._done + max(1, self._total // PLAIN_LINES)
        self._next_time = time.monotonic() + PLAIN_SECONDS
        self.say(f"{self._done}/{self._total} runs  {self._what}".rstrip())


def closing_table(summary: Mapping[str, Any], lr: float | None) -> None:
    """Print the run's result as a small table, to standard output, and what to try next."""
    console = Console(file=sys.stdout, highlight=False)
    table = Table(
        title=f"{summary['name']}: {summary['status']} at step {summary['step']}",
        title_justify="left",
    )
    table.add_column("")
    for column in ("train", "validation", "test", "gap"):
        table.add_column(column, justify="right")
    last = summary["last"]
    for quantity in ("loss", "error"):
        cells = [last.get(f"{split}/{quantity}") for split in ("train", "val", "test", "gap")]
        if any(cell is not None for cell in cells):
            table.add_row(quantity, *("–" if cell is None else f"{cell:.4f}" for cell in cells))
    console.print(table)
    for line in [*_findings(summary), f"try next: {_try_next(summary, lr)}"]:
        console.print(line, soft_wrap=True, markup=False)


def _findings(summary: Mapping[str, Any]) -> list[str]:
    last, lines = summary["last"], []
    if metrics.SHARPNESS in last:
        bound = last.get(metrics.SHARPNESS_BOUND)  # absent where it overflowed
        line = f"sharpness {last[metrics.SHARPNESS]:.4g}" + (
            f" ± {bound:.1g}" if bound is not None else ""
        )
        lines.append(
            line
            + (
                ""
                if last.get(metrics.SHARPNESS_CONVERGED, 1)
                else "; not every search for it converged"
            )
        )
    events = summary.get("events", {})
    lines += _at_the_edge(summary, last, events)
    if events.get("unstable_convergence"):
        lines.append(
            f"loss falls, not monotonically: {events['rises_after_crossing']:.0%} of the steps "
            "raise it"
        )
    best = summary.get("best_val")
    if best:
        lines.append(f"best validation {best['metric']} {best['value']:.4f} at step {best['step']}")
    lines.append(
        f"training {summary['train_seconds']:.1f} s, measuring {summary['probe_seconds']:.1f} s"
    )
    return lines


def _at_the_edge(
    summary: Mapping[str, Any], last: Mapping[str, Any], events: Mapping[str, Any]
) -> list[str]:
    """How far training went, when it came to the edge, where it stayed, and where it ended."""
    lines = []
    if events.get("annealed"):
        to = f" to {last[metrics.EDGE_LR]:.2g}" if metrics.EDGE_LR in last else ""
        lines.append(
            f"lr annealed{to}, so that the edge went away: the last distance is of the schedule's "
            "making"
        )
    elif metrics.EDGE_DISTANCE in last and metrics.EDGE_THRESHOLD in last:
        metric, what = metrics.threshold_is_on([last]), ""
        if metric != metrics.SHARPNESS:
            what = f"{metrics.MEASURED_AT_THE_EDGE[metric]} {last[metric]:.4g}, "
        lines.append(
            f"{what}{last[metrics.EDGE_DISTANCE]:.3f} of the edge at "
            f"{last[metrics.EDGE_THRESHOLD]:.4g}"
        )
    if events.get("max_ratio_at") is not None:
        lines.append(
            f"at most {events['max_ratio']:.3f} of the edge, at step {events['max_ratio_at']}"
        )
    match events.get("verdict"):
        case "edge reached":
            lines.append(f"reached the edge at step {events['first_crossing']}")
        case "edge not reached":
            lines.append("edge of stability not reached")
    if events.get("plateau_ratio") is not None:
        low, high = events["plateau_low"], events["plateau_high"]
        catapults = len(events["catapults"])
        lines.append(
            f"plateau at {events['plateau_ratio']:.3f} of the edge (quartiles {low:.3f} to "
            f"{high:.3f}), "
            f"{events['share_at_edge']:.0%} of the steps at it, {catapults} "
            f"catapult{'s' * (catapults != 1)}"
        )
    return lines


def _try_next(summary: Mapping[str, Any], lr: float | None) -> str:
    """Say what to try: never a learning rate beyond the threshold.

    λ₁ η/2 = distance, so η/distance is the rate whose threshold is the sharpness last measured.
    """
    last = summary["last"]
    distance = last.get(metrics.EDGE_DISTANCE)
    known = distance is not None and 0 < distance < math.inf
    largest = last.get(metrics.EDGE_LR, lr or math.inf) / distance if known else math.inf
    if summary["status"] == "interrupted":
        return "the same command, which goes on from here"
    if summary["status"] == "diverged":
        return _after_divergence(lr, largest)
    verdict = summary.get("events", {}).get("verdict", "not measured")
    if verdict == "not measured":
        return COMPARE
    if verdict == "edge not reached" and lr:
        return _to_the_edge(summary, lr, largest)
    if summary.get("events", {}).get("annealed"):
        return (
            "schedule=constant, which leaves the edge where it is, to see whether training stays "
            "there"
        )
    if not lr:
        return COMPARE
    if largest < lr / 2:
        return f"optimizer.lr={largest:.3g}, whose threshold is the sharpness last measured"
    return f"optimizer.lr={lr / 2:g}, which doubles the threshold: the sharpness follows"


COMPARE = "--multirun optimizer=sgd,momentum,adam seed=0,1,2, to compare"


def _after_divergence(lr: float | None, largest: float) -> str:
    if not lr:
        return "smaller steps"
    if largest / 2 < lr / 4:
        return f"optimizer.lr={largest / 2:.3g}, half of what the sharpness last measured allows"
    return f"optimizer.lr={lr / 4:g}, a quarter of this"


def _to_the_edge(summary: Mapping[str, Any], lr: float, largest: float) -> str:
    longer = f"steps={2 * summary['steps']}"
    if 2 * lr <= largest:
        return f"optimizer.lr={2 * lr:g}, which halves the threshold, or {longer}"
    return longer
