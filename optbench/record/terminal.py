"""What the person at the terminal sees: a live bar, or plain lines, then a table.

That nothing written here can stop a run is the work of `optbench.startup`.
"""

import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from optbench import metrics
from optbench.boundary.command_line import wrapped
from optbench.boundary.counting import counted
from optbench.record.progress import Left, Progress

SHOWN = {
    metrics.BATCH_LOSS: "loss",
    metrics.EDGE_DISTANCE: "edge",
    metrics.SHARPNESS: "λ₁",
    metrics.TEST_ERROR: "test error",
    metrics.PRECONDITIONED_SHARPNESS: "preconditioned λ₁",
    metrics.NORM_SHARPNESS: "norm sharpness",
    metrics.EDGE_THRESHOLD: "threshold",
}
"""What is shown of a run while it trains, the most important first: a narrow terminal ends there.
`edge` is measured/threshold."""

FIRST_PAUSE = 2.0  # seconds of the first measurement, after which another plain line may come


class Terminal:
    """Shows one run's progress, as a context."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._series = _series[-1] if _series else _Series(total=1, number=1)
        heading = self._series.heading
        self._progress = Progress(steps, "steps", "starting", console, heading=heading)
        self._progress.beyond = self._series.beyond
        self._entered = time.monotonic()
        self._steps, self._latest, self._start = steps, dict[str, float](), -1
        self._said: set[str] = set()

    def __enter__(self) -> "Terminal":
        self._entered = time.monotonic()
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, error, tb)
        self._series.seconds.append(time.monotonic() - self._entered)

    def say(self, line: str) -> None:
        """Print a line, the first time that it is said."""
        if line not in self._said:
            self._said.add(line)
            self._progress.say(line)

    @contextmanager
    def _measuring(self, step: int, probe: str) -> Iterator[None]:
        self._progress.done = step
        # without a terminal: what comes first, and which of the first ones takes long
        line = self._start < 0 and self._progress.quiet_for(FIRST_PAUSE)
        self._progress.begin(f"measuring {probe}", line)
        try:
            yield
        finally:
            self._progress.begin("", line=False)

    def measuring(self, step: int, probe: str) -> AbstractContextManager[None]:
        """Context of a probe's call: what the person who waits is told that it waits for."""
        return self._measuring(step, probe)

    def foretell(self, line: str) -> None:
        """Say what the measurements will cost."""
        self.say(line)

    def update(self, step: int, values: Mapping[str, Any], left: Left | None = None) -> None:
        """Take in one step's values.

        Args:
            step: The step.
            values: What was measured at it.
            left: Tells the seconds that are left; None for as long a step as so far.
        """
        if self._start < 0:
            self._start = step
        if not self._latest and not values:
            self._progress.begin("", line=False)
        self._latest |= {metric: values[metric] for metric in SHOWN if metric in values}
        self._progress.update(step, self._numbers(), left)

    def _numbers(self) -> list[str]:
        latest = self._latest
        return [f"{SHOWN[m]} {latest[m]:.4g}" for m in SHOWN if m in latest]


class ManyRuns(Progress):
    """Shows how many of a number of runs are made, as a context.

    Time left: of each kind of run, so many as are left times the seconds that one took, divided by
    how many went on at a time. A kind that none is known of counts as the mean of the others.

    Args:
        total: Number of runs.
        console: Where to; None for standard error.
        kinds: Number of runs of each kind, where their costs differ, such as {task: number}.
        unit: What a run is, in the plural.
    """

    def __init__(
        self,
        total: int,
        console: Console | None = None,
        kinds: Mapping[str, int] | None = None,
        unit: str = "runs",
    ) -> None:
        super().__init__(total, unit, console=console)
        self._waiting = dict(kinds or {})
        self._seconds: dict[str, list[float]] = {kind: [] for kind in self._waiting}
        self._making = math.nan  # when the first run was begun that had not been made before
        self._made = 0.0  # seconds that runs made since then took, together

    def run_ended(self, kind: str = "", seconds: float = 0.0, found: bool = False) -> None:
        """Count a run.

        Args:
            kind: Its kind.
            seconds: What it took; 0 where nobody knows.
            found: Whether it was made before.
        """
        if kind in self._waiting:
            self._waiting[kind] = max(0, self._waiting[kind] - 1)
            if seconds:
                self._seconds[kind].append(seconds)
        if not found:
            self._made += seconds
        self.advance(found=found)

    def making(self) -> None:
        """Say that runs are made from now on."""
        if math.isnan(self._making):
            self._making = time.monotonic()

    def _own_estimate(self) -> float | None:
        means = {k: math.fsum(s) / len(s) for k, s in self._seconds.items() if s}
        if not means or not self._made:
            return super()._own_estimate()
        usual = math.fsum(means.values()) / len(means)
        left = math.fsum(n * means.get(kind, usual) for kind, n in self._waiting.items())
        return left * (time.monotonic() - self._making) / self._made


@dataclass
class _Series:
    """Runs that this process makes one after the other."""

    total: int
    number: int = 0
    seconds: list[float] = field(default_factory=list)  # of those that took any

    @property
    def heading(self) -> str:
        return f"run {self.number}/{self.total}" if self.total > 1 else ""

    def beyond(self, this_one: float) -> float:
        """Seconds of the runs after this one, which takes so many."""
        seconds = [*self.seconds, this_one]
        return math.fsum(seconds) / len(seconds) * (self.total - self.number)


_series: list[_Series] = []


@contextmanager
def series(total: int) -> Iterator[None]:
    """Context of so many runs in this process, one after the other, which say where they stand."""
    _series.append(_Series(total))
    try:
        yield
    finally:
        _series.pop()


def next_of_series() -> None:
    """Say that the next run of the series begins, if there is a series."""
    if _series:
        _series[-1].number += 1


def say(line: str) -> None:
    """Print a line; in a terminal it breaks between words, and stays indented."""
    if not sys.stdout.isatty():
        print(line)
        return
    text = line.lstrip()
    indent = " " * (len(line) - len(text) + 2 * text.startswith("- "))
    # an address or a path stays whole, to be copied
    print("\n".join(wrapped(line, shutil.get_terminal_size().columns, indent)))


def show_table(
    table: Table, title: str = "", width: int | None = None, all_in: str | None = None
) -> None:
    """Print a table to standard output under a title that does not wrap, however narrow the table.

    Args:
        table: The table.
        title: Its title, on a line of its own.
        width: Columns to use where standard output is no terminal; None for 80.
        all_in: Where the whole table is; given, columns on the right that a terminal has no room
            for are left out, and named.
    """
    console = Console(file=sys.stdout, highlight=False)
    if width is not None and not console.is_terminal:
        console.width = width
    if title:
        console.print(title, style="italic", markup=False, soft_wrap=True)
    left_out: list[str] = []
    while all_in is not None and len(table.columns) > 1 and _is_wider(table, console):
        left_out.insert(0, str(table.columns.pop().header))
    console.print(table)
    if left_out:
        say(f"{', '.join(left_out)}: in {all_in}, or in a wider terminal")


def _is_wider(table: Table, console: Console) -> bool:
    unlimited = console.options.update(max_width=10_000)
    return Measurement.get(console, unlimited, table).maximum > console.width


def closing_table(summary: Mapping[str, Any], lr: float | None) -> None:
    """Print the run's result as a small table, to standard output, and what to try next."""
    table = Table()
    table.add_column("")
    for column in ("train", "validation", "test", "gap"):
        table.add_column(column, justify="right")
    last = summary["last"]
    for quantity in ("loss", "error"):
        cells = [last.get(f"{split}/{quantity}") for split in ("train", "val", "test", "gap")]
        if any(cell is not None for cell in cells):
            table.add_row(quantity, *("–" if cell is None else f"{cell:.4f}" for cell in cells))
    show_table(table, f"{summary['name']}: {summary['status']} at step {summary['step']}")
    for line in [*_findings(summary), f"try next: {_try_next(summary, lr)}"]:
        say(line)


def _findings(summary: Mapping[str, Any]) -> list[str]:
    last, lines = summary["last"], []
    if metrics.SHARPNESS in last:
        bound = last.get(metrics.SHARPNESS_BOUND)  # absent where it overflowed
        line = f"sharpness {last[metrics.SHARPNESS]:.4g}" + (
            f" ± {bound:.1g}" if bound is not None else ""
        )
        line += _on_others(summary, metrics.SHARPNESS_HELD_OUT, metrics.SHARPNESS_HELD_OUT_ERROR)
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
        + _dearest(summary.get("each_probe_seconds", {}))
    )
    return lines


def _on_others(summary: Mapping[str, Any], value: str, error: str) -> str:
    """What the same is on other examples, where the last of both is of the same step."""
    last = summary["last"]
    if value not in last or summary["status"] != "done":
        return ""
    return _of_few(last[value], last.get(error, math.nan))


def _of_few(others: float, error: float) -> str:
    return f" on the examples measured, {others:.4g} ± {error:.1g} along it on others"


def _dearest(seconds: Mapping[str, float]) -> str:
    """What measuring was spent on, the dearest probe first: ` (edge 17.4, sharpness 7.7)`."""
    dear = sorted(((s, name) for name, s in seconds.items() if s >= 0.05), reverse=True)
    return f" ({', '.join(f'{name} {s:.1f}' for s, name in dear)})" if len(dear) > 1 else ""


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
            + _on_others(summary, metrics.EDGE_HELD_OUT, metrics.EDGE_HELD_OUT_ERROR)
        )
    if events.get("max_ratio_at") is not None:
        line = f"at most {events['max_ratio']:.3f} of the edge, at step {events['max_ratio_at']}"
        if (others := events.get("max_ratio_on_others")) is not None:
            line += f",{_of_few(others, events['max_ratio_on_others_error'])}"
        lines.append(line)
    match events.get("verdict"):
        case "edge reached":
            lines.append(f"reached the edge at step {events['first_crossing']}")
        case "edge reached on the examples measured":
            lines.append(
                f"reached the edge at step {events['first_crossing']} on the examples measured, "
                "but not along the same directions on others: whether all reach it is undecided"
            )
        case "edge not reached":
            lines.append("edge of stability not reached")
    if events.get("plateau_ratio") is not None:
        low, high = events["plateau_low"], events["plateau_high"]
        on_others = events.get("plateau_on_others")
        told = "" if on_others is None else f"; along it on others {on_others:.3f}"
        catapults = len(events["catapults"])
        lines.append(
            f"plateau at {events['plateau_ratio']:.3f} of the edge (quartiles {low:.3f} to "
            f"{high:.3f}{told}), "
            f"{events['share_at_edge']:.0%} of the steps at it, "
            f"{counted(catapults, 'catapult')}"
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
    if verdict == "edge reached on the examples measured":
        return (
            "more examples, such as probes.sharpness.examples=1024, to see whether all of them "
            "reach the edge"
        )
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
