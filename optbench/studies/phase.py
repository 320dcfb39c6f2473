"""Phase diagrams: how a run ends, over any two settings, as heat maps.

python -m optbench.study phase x=optimizer.lr y=batch_size run.task=digits
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optbench import metrics
from optbench.errors import UserError
from optbench.record.folder import METRICS, read_finished, read_lines
from optbench.studies.figures import new_figure, save
from optbench.studies.frame import Cell

PANELS = {
    "distance": ("distance to the edge, end", "{:.2f}"),
    "error": ("test error, end", "{:.3f}"),
    "gap": ("generalization gap, loss, end", "{:.2g}"),
    "diverged": ("share diverged", "{:.0%}"),
}
"""What is drawn: {column: (title, format)}."""

DEFAULTS: Mapping[str, Sequence[str]] = {
    "optimizer.lr": ("0.003", "0.01", "0.03", "0.1", "0.3", "1"),
    "optimizer.scale": ("0.1", "0.3", "1", "3", "10"),
    "batch_size": ("10", "30", "100", "300", "full"),
    "optimizer.momentum": ("0", "0.5", "0.9", "0.99"),
    "optimizer.weight_decay": ("0", "0.0001", "0.001", "0.01"),
    "model.widths": ("[16]", "[64]", "[256]"),
}
"""Values of an axis for which none are given."""


@dataclass(frozen=True)
class Axis:
    """One side of the diagram: a key of the main job, and its values as they are typed."""

    key: str
    values: Sequence[str]

    @classmethod
    def of(cls, key: str, values: Sequence[str], name: str) -> "Axis":
        """The axis of a key, with the default values where none are given.

        Raises:
            UserError: If there are no values, or only one.
        """
        chosen = tuple(values) or DEFAULTS.get(key, ())
        if not chosen:
            raise UserError(f"say {name}s=VALUE,VALUE,…: no values are known for {key}")
        if len(set(chosen)) != len(chosen) or len(chosen) < 2:
            raise UserError(f"{name}s must be two different values or more, got {','.join(chosen)}")
        return cls(key, chosen)


def plan(x: Axis, y: Axis, words: Sequence[str], seeds: int) -> list[Cell]:
    """The runs of a diagram.

    Raises:
        UserError: If both axes are one key, or a word sets an axis.
    """
    if x.key == y.key:
        raise UserError(f"x and y are both {x.key}: name two keys")
    for word in words:
        if word.partition("=")[0] in (x.key, y.key, "seed"):
            raise UserError(f"run.{word} is set by the diagram itself")
    # the median is over the last quarter of what was measured
    often = "probes.sharpness.share=1"
    common = ("picture=false", "wandb.mode=disabled", "probes.layers.every=never", often)
    return [
        Cell(
            {"x": a, "y": b, "seed": seed},
            (*common, *words, f"{x.key}={a}", f"{y.key}={b}", f"seed={seed}"),
        )
        for a, b, seed in product(x.values, y.values, range(seeds))
    ]


def read(cell: Cell, folder: Path) -> dict[str, Any]:
    """The row of a run: how it ended; a diverged one has no distance and no error."""
    summary = read_finished(folder) or {}
    diverged = summary.get("status") == "diverged"
    row: dict[str, Any] = {**cell.factors, "diverged": float(diverged)}
    if diverged:
        return row
    last = summary.get("last", {})
    return row | {
        "distance": _end_of(folder, metrics.EDGE_DISTANCE),
        "error": last.get(metrics.TEST_ERROR, last.get(metrics.TEST_LOSS)),
        "gap": last.get(metrics.GAP_LOSS),
    }


def _end_of(folder: Path, metric: str) -> float | None:
    """Median over the last quarter of a run: at the edge a series swings from step to step."""
    values = [r[metric] for r in read_lines(folder / METRICS) if metric in r]
    return float(np.median(values[-max(1, len(values) // 4) :])) if values else None


def draw(rows: Sequence[Mapping[str, Any]], x: Axis, y: Axis, title: str, place: Path) -> str:
    """Draw a heat map for each panel, the median over seeds written into it."""
    columns, lines = len(x.values), len(y.values)
    figure = new_figure(2 * (0.75 * columns + 2.3), 2 * (0.5 * lines + 1.3))
    panels = figure.subplots(2, 2)
    for axis, (name, (label, form)) in zip(panels.flat, PANELS.items(), strict=True):
        grid = grid_of(rows, name, x, y)
        cmap, low, high = _colors(name, grid)
        image = axis.imshow(grid, cmap=cmap, vmin=low, vmax=high, origin="lower", aspect="auto")
        axis.set_xticks(range(columns), x.values)
        axis.set_yticks(range(lines), y.values)
        axis.set_xlabel(x.key)
        axis.set_ylabel(y.key)
        axis.set_title(label, fontsize=10, loc="left")
        for (i, j), value in np.ndenumerate(grid):
            text = "–" if math.isnan(value) else form.format(value)
            axis.text(j, i, text, ha="center", va="center", fontsize=8, **_ink(image, value))
        figure.colorbar(image, ax=axis, shrink=0.85)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return save(figure, place)


def grid_of(rows: Sequence[Mapping[str, Any]], name: str, x: Axis, y: Axis) -> NDArray[np.float64]:
    """Values (Y, X): the share of a count, the median over seeds of anything else."""
    grid = np.full((len(y.values), len(x.values)), np.nan)
    for (i, b), (j, a) in product(enumerate(y.values), enumerate(x.values)):
        of_cell = [row.get(name) for row in rows if (row["x"], row["y"]) == (a, b)]
        known = [value for value in of_cell if value is not None]
        if known:
            grid[i, j] = np.mean(known) if name == "diverged" else np.median(known)
    return grid


def _colors(name: str, grid: NDArray[np.float64]) -> tuple[str, float, float]:
    """Colour map and its ends: 1 is the middle of the distance, as the edge is."""
    known = grid[np.isfinite(grid)]
    if name == "distance":
        return "PuOr_r", 0.0, 2.0
    if name == "diverged":
        return "Greys", 0.0, 1.0
    return "cividis", *((float(known.min()), float(known.max())) if len(known) else (0.0, 1.0))


def _ink(image: Any, value: float) -> dict[str, str]:
    """Black on light cells, white on dark ones."""
    red, green, blue, alpha = image.cmap(image.norm(value))
    if math.isnan(value) or alpha == 0:
        return {"color": "black"}
    return {"color": "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"}


def told(rows: Sequence[Mapping[str, Any]], x: Axis, y: Axis) -> Iterator[str]:
    """Lines for the terminal: the distance to the edge as a small table."""
    grid = grid_of(rows, "distance", x, y)
    width = max(8, *(len(value) + 1 for value in (*x.values, y.key)))
    yield "distance to the edge, median of the last quarter (– : not measured or diverged)"
    yield "".join(f"{text:>{width}}" for text in (y.key, *x.values)) + f"   {x.key}"
    for value, row in zip(y.values[::-1], grid[::-1], strict=True):
        cells = ("–" if math.isnan(number) else f"{number:.2f}" for number in row)
        yield "".join(f"{text:>{width}}" for text in (value, *cells))
