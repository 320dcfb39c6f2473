"""The edge atlas as pictures: where every optimizer stands, and how it came there."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optbench.intervals import Interval
from optbench.studies.atlas_page import Row
from optbench.studies.figures import LOOKS, new_figure, save
from optbench.studies.frame import Table, subset

COLUMNS = 5
LEFT, RIGHT = 0.7, 1.45
"""Ends of the axis of distances; what is beyond is a number at the margin."""

STYLES = ("-", "--", ":")


def draw_distances(rows: Sequence[Row], place: Path) -> str:
    """Draw each entry's distance by formula and multiplier, or its amplitude; 1 is the edge.

    "By the flow" is where the formula's would stand at a quarter of the learning rate. Points are
    medians, lines the range over the seeds, bands the tolerance of the formula.
    """
    figure = new_figure(7.6, 0.3 * len(rows) + 1.5)
    axis = figure.subplots()
    axis.axvline(1, color="#000000", linewidth=0.8)
    for i, row in enumerate(rows):
        if (tolerance := row.entry.tolerance) is not None:
            band = (1 - tolerance, 2 * tolerance)
            axis.broken_barh([band], (i - 0.4, 0.8), color="#BBBBBB", alpha=0.5, linewidth=0)
        _mark(axis, row.formula, i - 0.14, 0, "by the formula")
        if row.entry.fixed_size:
            _mark(axis, row.amplitude, i + 0.14, 3, "amplitude, predicted/measured")
        else:
            _mark(axis, row.multiplier, i + 0.14, 6, "by the multiplier")
        _mark(axis, row.flow, i, 4, "by the flow")
    axis.set_yticks(range(len(rows)), [row.entry.name for row in rows], fontsize=9)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(LEFT, RIGHT)
    axis.set_xlabel("distance to the edge (1 is the edge; band: tolerance of the formula)")
    axis.grid(alpha=0.25, axis="x")
    handles = {str(line.get_label()): line for line in axis.get_lines()}
    shown = [line for label, line in handles.items() if not label.startswith("_")]
    figure.legend(handles=shown, loc="outside upper center", ncols=2, frameon=False)
    return save(figure, place)


def _mark(axis: Any, at: Interval, y: float, look: int, label: str) -> None:
    if not math.isfinite(at.value):
        return
    color, marker = LOOKS[look]
    if LEFT <= at.value <= RIGHT:
        axis.plot([at.low, at.high], [y, y], color=color, linewidth=1.2, label="_range")
        axis.plot(at.value, y, marker, color=color, markersize=5, label=label, linestyle="")
        return
    right = at.value > RIGHT
    text = f"{at.value:.2f} →" if right else f"← {at.value:.2f}"
    axis.text(
        RIGHT - 0.01 if right else LEFT + 0.01,
        y,
        text,
        color=color,
        fontsize=7,
        ha="right" if right else "left",
        va="center",
    )


def draw_levels(rows: Sequence[Row], table: Table, place: Path) -> str:
    """Draw measured/threshold over the run, a panel an optimizer and a line a seed.

    Each point is a ratio of means over one part of the run; the band is the tolerance.
    """
    height = math.ceil(len(rows) / COLUMNS)
    figure = new_figure(3 * COLUMNS, 2.1 * height + 0.4)
    axes = figure.subplots(height, COLUMNS, squeeze=False, sharey=True, sharex=True)
    parts = [name for name in table if name.startswith("part_")]
    share = (np.arange(len(parts)) + 0.5) / len(parts)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(rows) - COLUMNS) : len(rows)]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
    for axis, row in zip(axes.flat, rows, strict=False):
        if (tolerance := row.entry.tolerance) is not None:
            axis.axhspan(1 - tolerance, 1 + tolerance, color="#BBBBBB", alpha=0.5, linewidth=0)
        axis.axhline(1, color="#000000", linewidth=0.8)
        own = subset(table, table["optimizer"] == row.entry.name)
        for i in range(len(own["seed"])):
            values = [own[name][i] for name in parts]
            color, style = (LOOKS[5][0], LOOKS[6][0], LOOKS[3][0])[i % 3], STYLES[i % 3]
            axis.plot(share, values, style, color=color, linewidth=1.2)
        number = "" if math.isnan(row.formula.value) else f"{row.formula.value:.3f}, "
        axis.set_title(f"{row.entry.name}\n{number}{row.verdict}", fontsize=9)
        axis.set_ylim(0, 2)
        axis.grid(alpha=0.25)
    figure.supxlabel("share of the run")
    figure.supylabel("measured / threshold, by the formula")
    return save(figure, place)
