"""How figures of studies look: readable in print, and with any colour vision."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optbench.intervals import Interval
from optbench.record.axes import plain_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, and a marker each: neither is needed to tell the other's meaning
LOOKS = (
    ("#000000", "o"),
    ("#E69F00", "s"),
    ("#56B4E9", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#0072B2", "P"),
    ("#D55E00", "X"),
)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches, whose parts keep out of each other's way."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", place: Path) -> str:
    """Write a figure as PNG and as SVG; return its name."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "optbench"}):
        figure.savefig(place.with_suffix(".png"), dpi=150, metadata={"Software": None})
        figure.savefig(place.with_suffix(".svg"), metadata={"Date": None})
    return place.name


def draw_forest(
    panels: Mapping[str, Sequence[tuple[str, Interval]]],
    unit: str,
    place: Path,
    sesoi: float | None = None,
) -> str:
    """Draw intervals as a forest plot, a panel beside the other.

    Args:
        panels: {title: [(label, interval), …]}; a label of several panels is on the same row.
        unit: What the intervals are in.
        place: File, without its ending.
        sesoi: Smallest effect of interest: ±sesoi is shaded.
    """
    labels = list(dict.fromkeys(label for rows in panels.values() for label, _ in rows))
    figure = new_figure(1.8 + 3.2 * len(panels), 0.3 * len(labels) + 1.1)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        if sesoi is not None:
            axis.axvspan(-sesoi, sesoi, color="#56B4E9", alpha=0.2, linewidth=0)
        axis.axvline(0, color="#888888", linewidth=0.8)
        for label, interval in rows:
            row = labels.index(label)
            axis.plot([interval.low, interval.high], [row, row], color="#0072B2")
            axis.plot(interval.value, row, "o", color="#0072B2", markersize=5)
        axis.set_yticks(range(len(labels)), labels, fontsize=9)
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel(unit, fontsize=9)
        axis.grid(alpha=0.25, axis="x")
    return save(figure, place)


def draw_heat(
    values: Mapping[str, Mapping[str, float]],
    title: str,
    place: Path,
    limit: float | None = None,
) -> str:
    """Draw a heat map whose middle colour is 0; numbers are written into it.

    Args:
        values: {row: {column: value}}; NaN is drawn as a dash.
        title: Title.
        place: File, without its ending.
        limit: Value of the outermost colours; None for the largest magnitude.
    """
    names, headers = list(values), list(next(iter(values.values())))
    grid = np.array([[values[name][header] for header in headers] for name in names])
    magnitudes = np.abs(grid[np.isfinite(grid)])
    limit = limit or float(magnitudes.max(initial=0.0)) or 1.0
    figure = new_figure(1.3 * len(headers) + 3.4, 0.34 * len(names) + 1.3)
    axis = figure.subplots()
    image = axis.imshow(grid, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_xticks(range(len(headers)), [header.replace("_", " ") for header in headers])
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    for (i, j), value in np.ndenumerate(grid):
        color = "white" if abs(value) > 0.6 * limit else "black"
        text = f"{value:+.2f}" if np.isfinite(value) else "–"
        axis.text(j, i, text, ha="center", va="center", color=color, fontsize=9)
    axis.set_title(title, fontsize=10, loc="left")
    figure.colorbar(image, ax=axis, shrink=0.8)
    return save(figure, place)


def draw_curves(
    panels: Mapping[str, Mapping[str, tuple[Any, Any]]],
    x: str,
    y: str,
    place: Path,
    log: str = "",
) -> str:
    """Draw curves, a panel beside the other, with one legend below.

    Args:
        panels: {title: {curve: (x values, y values)}}; a curve has one look in all panels.
        x: Label of the horizontal axes.
        y: Label of the vertical axes.
        place: File, without its ending.
        log: Which axes are logarithmic: "", "x", "y" or "xy".
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    figure = new_figure(4.0 * len(panels), 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, (at, values) in curves.items():
            color, marker = LOOKS[names.index(name) % len(LOOKS)]
            axis.plot(at, values, marker=marker, color=color, label=name, markersize=4)
        if "x" in log:
            plain_log(axis)
        if "y" in log:
            plain_log(axis, "y")
        axis.set_xlabel(x)
        axis.set_ylabel(y if axis is axes[0] else "")
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(alpha=0.25)
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= {str(line.get_label()): line for line in axis.get_lines()}
    shown = [name for name in names if name in handles]
    figure.legend(
        handles=[handles[name] for name in shown],
        loc="outside lower center",
        ncols=min(5, len(shown)),
        frameon=False,
    )
    return save(figure, place)
