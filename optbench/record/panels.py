"""Panels that compare groups of runs: lines with bands over the steps, as a PNG.

A page draws the same panels; see `optbench.leaderboard.side_by_side`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.boundary.counting import counted
from optbench.record.axes import BLACK, DECADES, picture_file, plain_log

COLORS = (
    "#0072b2",
    "#c44e00",
    "#00805c",
    "#b0558c",
    "#2f9bd6",
    "#b07a00",
    "#1b1f24",
    "#7a5195",
)
"""Those of `page.css`, told apart by colour-blind people; a group keeps its colour on the page."""
MOST_GROUPS = 16  # in a PNG, whose legend would push the panels out
SECOND = (0, (4, 2))  # dashes of a panel's second quantity
LOOKS: tuple[Any, ...] = ("-", (0, (1, 1.2)))  # of the first and the second eight groups


@dataclass(frozen=True)
class Line:
    """What one group of runs did: its median, and the least and the greatest of its runs.

    Attributes:
        group: Name of the group.
        index: Number of the group, which says its colour.
        steps: Steps (S,), rising.
        middle: Median over the group's runs at each step, (S,).
        low: Least, (S,); empty for a single run.
        high: Greatest, (S,); empty for a single run.
        is_second: Whether it is the panel's second quantity, drawn dashed.
    """

    group: str
    index: int
    steps: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_second: bool = False


@dataclass(frozen=True)
class Panel:
    """One quantity of all groups over the steps.

    Attributes:
        name: Short name of the quantity.
        title: What is drawn, with what dashes.
        lines: The lines.
        log: Whether the axis is logarithmic; None for where the lines span two decades.
        level: A value to mark, such as 1 for the edge of stability.
        view: Least and greatest value to show; None for all of the lines.
        note: What is missing, and why.
        second: Short name of the second quantity, if there is one.
    """

    name: str
    title: str
    lines: Sequence[Line]
    log: bool | None = None
    level: float | None = None
    view: tuple[float, float] | None = None
    note: str = ""
    second: str = ""

    @property
    def is_log(self) -> bool:
        """Whether its axis is logarithmic."""
        values = [v for line in self.lines for v in line.middle if math.isfinite(v)]
        if not any(v > 0 for v in values):
            return False
        if self.log is not None:
            return self.log
        return min(values) > 0 and max(values) > DECADES * min(values)


def draw_panels(panels: Sequence[Panel], groups: Sequence[str], title: str, path: Path) -> None:
    """Draw panels, two in a row, with one legend of the groups below.

    Args:
        panels: The panels.
        groups: Names of the groups in the order of their numbers; the first `MOST_GROUPS` are
            drawn, and the title says of how many.
        title: What is compared.
        path: File to write.
    """
    if len(groups) > MOST_GROUPS:
        title += f"\n(the first {MOST_GROUPS} of {counted(len(groups), 'group')})"
    if any(line.low for panel in panels for line in panel.lines):
        title += "\nmedian of each group, band from its least to its greatest run"
    rows = math.ceil(len(panels) / 2)
    shown = groups[:MOST_GROUPS]
    size = (11, 3.4 * rows + 0.25 * math.ceil(len(shown) / 3))
    with picture_file(path, rows, 2, size, title) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=False):
            _panel(axis, panel, len(shown))
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        handles = [axes[0].plot([], [], **_look(i))[0] for i in range(len(shown))]
        figure.legend(
            handles,
            shown,
            loc="outside lower center",
            ncols=min(3, len(shown)),
            frameon=False,
            fontsize=9,
        )


def _look(index: int) -> dict[str, Any]:
    style = LOOKS[index // len(COLORS) % len(LOOKS)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": style, "linewidth": 1.6}


def _panel(axis: Any, panel: Panel, groups: int) -> None:
    lines = [line for line in panel.lines if line.index < groups]
    for line in lines:
        look = _look(line.index) | ({"linestyle": SECOND} if line.is_second else {})
        marker = {"marker": "o", "markersize": 3} if len(line.steps) < 3 else {}
        axis.plot(line.steps, line.middle, **(look | marker))
        if line.low:
            color = look["color"]
            axis.fill_between(line.steps, line.low, line.high, color=color, alpha=0.15, linewidth=0)
    if panel.is_log:
        plain_log(axis, "y")
    if panel.level is not None and lines:
        axis.axhline(panel.level, color=BLACK, linestyle="--", linewidth=1)
    if panel.view is not None:
        axis.set_ylim(panel.view)
    if not lines:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#666666")
    axis.set_title(panel.title, loc="left", fontsize=10)
    axis.set_xlabel("step" + f"\n{panel.note}" * bool(panel.note), fontsize=9)
    axis.grid(alpha=0.25)
