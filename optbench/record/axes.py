"""What the pictures of a run share: figures, axes, colours, and lines of a metric.

Colours are Okabe and Ito's, told apart by colour-blind people; every line also has a dash pattern
or marker of its own, for print.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.record.durable import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#000000"
DECADES = 100  # range of sharpness from which on its axis is logarithmic
STEP = "step (optimizer updates)"
Records = Sequence[Mapping[str, Any]]


def series(records: Records, metric: str) -> tuple[list[int], list[float]]:
    """Return (steps, values) of one metric where it was measured."""
    rows = [(r["step"], r[metric]) for r in records if isinstance(r.get(metric), (int, float))]
    return [step for step, _ in rows], [value for _, value in rows]


@contextmanager
def picture_file(
    path: Path,
    rows: int,
    columns: int,
    size: tuple[float, float],
    title: str,
    name: str = "",
    sharex: bool = False,
) -> Iterator[tuple["Figure", Sequence["Axes"]]]:
    """Context of a figure with its axes, row by row, that is written in the end.

    Args:
        path: PNG to write, the same bytes each time.
        rows: Rows of axes.
        columns: Columns of axes.
        size: Width and height in inches.
        title: Title.
        name: What stands small below.
        sharex: Whether all have one horizontal axis.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(
            rows, columns, figsize=size, sharex=sharex, layout="constrained", squeeze=False
        )
        try:
            yield figure, list(axes.flat)
            figure.suptitle(title)
            if name:
                figure.supxlabel(name, fontsize=7, color="#888888", x=0.99, ha="right")
            content = io.BytesIO()
            figure.savefig(content, dpi=150, format="png", metadata={"Software": None})
        finally:
            plt.close(figure)
    write_whole(path, content.getvalue())


def plain_log(axis: Any, which: str = "x") -> None:
    """Make the x or the y axis logarithmic, with a few plain numbers however narrow it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    class PlainLocator(LogLocator):
        """Ticks at 1, 2 and 5 times powers of ten.

        Over many decades at powers of ten alone; evenly spaced where fewer than three would show.
        """

        def tick_values(self, vmin: float, vmax: float) -> Any:
            if vmin > 0 and vmax > 2000 * vmin:
                return decades.tick_values(vmin, vmax)
            ticks = super().tick_values(vmin, vmax)
            if sum(vmin <= tick <= vmax for tick in ticks) >= 3:
                return ticks
            return evenly.tick_values(vmin, vmax)

    decades, evenly = LogLocator(numticks=6), MaxNLocator(6, steps=(1, 2, 5, 10))

    getattr(axis, f"set_{which}scale")("log")
    of = getattr(axis, f"{which}axis")
    of.set_major_locator(PlainLocator(subs=(1, 2, 5), numticks=6))
    of.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    of.set_minor_formatter(NullFormatter())


def draw_line(
    axis: "Axes", records: Records, metric: str, label: str, color: str, style: str, **more: Any
) -> None:
    """Draw one metric over the steps, where it was measured; one that alternates as two lines.

    Args:
        axis: Where to.
        records: Lines of the run's metrics.
        metric: The metric.
        label: What the legend calls it; empty for nothing.
        color: Colour.
        style: Dash pattern.
        more: Settings of matplotlib's lines.
    """
    steps, values = series(records, metric)
    if steps:
        look: dict[str, Any] = {
            "linewidth": 1.4,
            "marker": "o" if len(steps) < 40 else "",
            "markersize": 3,
        }
        if not alternates(values):
            axis.plot(steps, values, linestyle=style, color=color, label=label, **(look | more))
            return
        # Drawn as one line an alternating series is a solid block: each branch is a line.
        for branch in (0, 1):
            own = {"label": f"{label}, two branches" if label and not branch else ""}
            axis.plot(
                steps[branch::2],
                values[branch::2],
                linestyle=style,
                color=color,
                **(look | more | own),
            )


ALTERNATING = 0.8  # share of turns among neighbours from which on a series is said to alternate
LONG = 40  # values below which it is not asked


def alternates(values: Sequence[float]) -> bool:
    """Whether a fifth of the series or more goes up and down at every value.

    In a window of 20 values at least 80 % are above or below both neighbours by changes of about
    one size, the smaller over half of the larger. Independent noise turns at two thirds of its
    values, and at fewer by changes of one size.
    """
    import numpy as np

    if len(values) < LONG:
        return False
    changes = np.diff(np.asarray(values, dtype=float))
    turns = (changes[1:] * changes[:-1] < 0).astype(float)
    size = np.abs(changes)
    even = np.minimum(size[1:], size[:-1]) > 0.5 * np.maximum(size[1:], size[:-1])
    share = np.convolve(turns * even, np.ones(20) / 20, mode="valid")
    return bool(np.mean(share >= ALTERNATING) > 0.2)
