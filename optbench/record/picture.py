"""`dynamics.png`: loss, sharpness against its threshold, and the generalization gap, over the run.

Beside it `updates.png` and `spectrum.png`, for runs that have measured what they show.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from optbench import metrics
from optbench.record.axes import (
    BLACK,
    BLUE,
    DECADES,
    GREEN,
    ORANGE,
    RED,
    STEP,
    Records,
    draw_line,
    picture_file,
    plain_log,
    series,
)
from optbench.record.update_picture import draw_updates, has_updates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE, UPDATES, SPECTRUM = "dynamics.png", "updates.png", "spectrum.png"
PICTURES = (PICTURE, UPDATES, SPECTRUM)


def pictures(records: Records) -> tuple[str, ...]:
    """Return which pictures `draw` makes of a run."""
    updates = (UPDATES,) if has_updates(records) else ()
    spectrum = (SPECTRUM,) if any(metrics.NODES in record for record in records) else ()
    return (PICTURE, *updates, *spectrum)


def is_drawn(path: Path) -> bool:
    """Say whether there is a whole picture."""
    return path.is_file() and path.read_bytes()[-8:-4] == b"IEND"


def draw(records: Records, title: str, folder: Path, name: str = "") -> None:
    """Draw `dynamics.png`, `updates.png` if updates were measured, `spectrum.png` if spectra were.

    A panel without data says so. Where the edge is on another quantity than λ₁, such as Adam's, λ₁
    and the distance to the edge have a panel each.

    Args:
        records: Lines of the run's metrics.
        title: What was run, for a reader.
        folder: Where to draw.
        name: Name of the run, which stands small below.
    """
    panels = [_loss, _sharpness, _gap]
    if metrics.threshold_is_on(records) != metrics.SHARPNESS:
        panels = [_loss, _sharpness, _lambda_1, _distance, _gap]
    with _column(folder / PICTURE, len(panels), title, name) as axes:
        for axis, panel in zip(axes, panels, strict=True):
            panel(axis, records)
            if axis.lines:
                axis.legend(framealpha=0.85, edgecolor="none", fontsize=9)
            else:
                axis.text(
                    0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#666666"
                )
            axis.grid(alpha=0.25)
        axes[-1].set_xlabel(STEP)
    if has_updates(records):
        draw_updates(records, title, folder / UPDATES, name)
    spectra = [record for record in records if metrics.NODES in record]
    if spectra:
        with _column(folder / SPECTRUM, 2, title, name, sharex=False) as axes:
            _density(axes[0], spectra)
            _outliers(axes[1], records)


@contextmanager
def _column(
    path: Path, rows: int, title: str, name: str, sharex: bool = True
) -> Iterator[Sequence["Axes"]]:
    size = (8, (3 if rows < 4 else 2.4) * rows)
    with picture_file(path, rows, 1, size, title, name, sharex) as (_, axes):
        yield axes


def _loss(axis: "Axes", records: Records) -> None:
    draw_line(
        axis,
        records,
        metrics.BATCH_LOSS,
        "batch trained on",
        BLUE,
        "-",
        linewidth=0.6,
        alpha=0.5,
        marker="",
    )
    draw_line(axis, records, metrics.TRAIN_LOSS, "train", BLUE, "-")
    draw_line(axis, records, metrics.VAL_LOSS, "validation", GREEN, ":")
    draw_line(axis, records, metrics.TEST_LOSS, "test", ORANGE, "--")
    if any(
        value > 0
        for metric in (metrics.BATCH_LOSS, metrics.TRAIN_LOSS)
        for value in series(records, metric)[1]
    ):
        plain_log(axis, "y")
    axis.set_ylabel("loss")


NAMES = metrics.MEASURED_AT_THE_EDGE | {
    metrics.SHARPNESS: "sharpness $\\lambda_1$",
    metrics.NORM_SHARPNESS: "norm sharpness (lower bound)",
}
AT_EDGE = 0.95


def _sharpness(axis: "Axes", records: Records) -> None:
    """Draw λ_1 … λ_k of what the threshold is on, shaded where at the edge."""
    first = metrics.threshold_is_on(records)
    _next_eigenvalues(axis, records, first)
    name = NAMES[first]
    draw_line(axis, records, first, name, RED, "-")
    if first == metrics.SHARPNESS:
        _on_others(axis, records, metrics.SHARPNESS_HELD_OUT, metrics.SHARPNESS_HELD_OUT_ERROR)
    _shade(axis, records)
    _, thresholds = series(records, metrics.EDGE_THRESHOLD)
    _, sharpness = series(records, first)
    # A threshold far away, or one that a schedule sends to infinity, must not flatten the curve.
    shown = [t for t in thresholds if t < 3 * max(sharpness, default=math.inf)]
    label = "edge of stability"
    if sharpness:
        _fit(axis, sharpness, shown)
        label += _off_the_picture(thresholds, shown)
    draw_line(axis, records, metrics.EDGE_THRESHOLD, label, BLACK, "--", marker="")
    axis.set_ylabel(metrics.MEASURED_AT_THE_EDGE[first])


def _lambda_1(axis: "Axes", records: Records) -> None:
    """Draw λ₁ of the Hessian itself, where the edge is on another quantity."""
    draw_line(axis, records, metrics.SHARPNESS, NAMES[metrics.SHARPNESS], RED, "-")
    _on_others(axis, records, metrics.SHARPNESS_HELD_OUT, metrics.SHARPNESS_HELD_OUT_ERROR)
    sharpness = series(records, metrics.SHARPNESS)[1]
    if sharpness:
        _fit(axis, sharpness, [])
    axis.set_ylabel(metrics.MEASURED_AT_THE_EDGE[metrics.SHARPNESS])


def _distance(axis: "Axes", records: Records) -> None:
    """Draw measured/threshold on a logarithmic axis, 1 at the edge."""
    draw_line(axis, records, metrics.EDGE_DISTANCE, "distance to the edge", RED, "-")
    _on_others(axis, records, metrics.EDGE_HELD_OUT, metrics.EDGE_HELD_OUT_ERROR)
    distances = series(records, metrics.EDGE_DISTANCE)[1]
    if any(distance > 0 for distance in distances):
        axis.axhline(1, color=BLACK, linestyle="--", linewidth=1, label="edge of stability")
        plain_log(axis, "y")
    axis.set_ylabel("measured / threshold")


def _on_others(axis: "Axes", records: Records, value: str, error: str) -> None:
    """Draw the curvature along the same direction on other examples, with its standard error."""
    found = [(r["step"], r[value], r[error]) for r in records if value in r and error in r]
    if found:
        steps, values, errors = zip(*found, strict=True)
        axis.errorbar(
            steps, values, errors, fmt="o", color=BLUE, markersize=4, markerfacecolor="none",
            linewidth=1, capsize=2, label="along it on other examples, ± standard error",
        )  # fmt: skip


def _next_eigenvalues(axis: "Axes", records: Records, first: str) -> None:
    """Draw λ_2 … λ_k as thin lines under one label."""
    if first not in metrics.NEXT_EIGENVALUES:
        return
    prefix = metrics.NEXT_EIGENVALUES[first].removesuffix("K")
    keys = {key for r in records for key in r if key.startswith(prefix)}
    numbers = sorted(int(end) for key in keys if (end := key.removeprefix(prefix)).isdigit())
    for i, number in enumerate(numbers):
        label = "" if i else "the next" if len(numbers) == 1 else f"the next {len(numbers)}"
        key = f"{prefix}{number}"
        draw_line(axis, records, key, label, RED, "-", marker="", linewidth=0.7, alpha=0.6)


def _fit(axis: "Axes", sharpness: Sequence[float], thresholds: Sequence[float]) -> None:
    """Let the axis hold what is shown; it is logarithmic if the sharpness spans two decades."""
    low, high = min(sharpness), max([*sharpness, *thresholds])
    if low > 0 and max(sharpness) > DECADES * low:
        plain_log(axis, "y")
        axis.set_ylim(low / 1.5, 1.5 * high)
    else:
        axis.set_ylim(min(0.0, low), 1.15 * high)


def _off_the_picture(thresholds: Sequence[float], shown: Sequence[float]) -> str:
    """Where the threshold is, if none of it is shown; it moves with a schedule or the optimizer."""
    if not thresholds or shown:
        return ""
    moves = max(thresholds) > 1.01 * min(thresholds)
    return f", off the picture at {min(thresholds):.3g}{' and above' if moves else ''}"


def _shade(axis: "Axes", records: Records) -> None:
    """Shade from each measurement at the edge to the next one.

    Not where the few examples that are measured are at it, and others contradict that.
    """
    measured = [r for r in records if isinstance(r.get(metrics.EDGE_DISTANCE), (int, float))]
    label = f"at the edge (≥ {AT_EDGE:g})"
    for record, following in pairwise(measured):
        denied = metrics.others_deny(AT_EDGE, *metrics.distance_on_others(record))
        if record[metrics.EDGE_DISTANCE] >= AT_EDGE and not denied:
            begin, end = record["step"], following["step"]
            axis.axvspan(begin, end, color=ORANGE, alpha=0.15, linewidth=0, label=label)
            label = ""


def _gap(axis: "Axes", records: Records) -> None:
    draw_line(axis, records, metrics.GAP_LOSS, "gap of loss", ORANGE, "--")
    draw_line(axis, records, metrics.GAP_ERROR, "gap of error", BLUE, "-")
    if axis.lines:
        axis.axhline(0, color="#888888", linewidth=0.8)
    axis.set_ylabel("test − train")


def _density(axis: "Axes", spectra: Records) -> None:
    """Draw the spectral density at the first, a middle and the last step.

    Each node is a narrow Gaussian.
    """
    import numpy as np

    chosen = sorted({0, len(spectra) // 2, len(spectra) - 1})
    low = min(spectra[i][metrics.NODES][0] for i in chosen)
    high = max(spectra[i][metrics.NODES][-1] for i in chosen)
    width, top = max((high - low) / 200, 1e-12), 0.0
    grid = np.linspace(low - 5 * width, high + 5 * width, 1000)
    for i, color, style in zip(chosen, (ORANGE, GREEN, BLUE), ("--", ":", "-"), strict=False):
        nodes, weights = (
            np.array(spectra[i][metric]) for metric in (metrics.NODES, metrics.WEIGHTS)
        )
        bumps = np.exp(-(((grid[:, None] - nodes) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
        top = max(top, float((bumps @ weights).max()))
        axis.semilogy(grid, bumps @ weights, style, color=color, label=f"step {spectra[i]['step']}")
    axis.set(xlabel="eigenvalue of the Hessian", ylabel="density", ylim=(1e-6 / width, 3 * top))
    axis.legend(frameon=False, fontsize=9)


def _outliers(axis: "Axes", records: Records) -> None:
    """Draw the eigenvalues tracked, and the lowest, over the run."""
    names = [
        key
        for key in records[0]
        if key.startswith("sharpness/lambda_") and not key.endswith("bound")
    ]
    for name in names:
        draw_line(axis, records, name, "", RED, "-", marker="", linewidth=0.9)
    draw_line(axis, records, metrics.LAMBDA_MIN, "smallest", BLUE, ":")
    draw_line(axis, records, metrics.EDGE_THRESHOLD, "edge of stability", BLACK, "--", marker="")
    axis.plot([], [], color=RED, label=f"{len(names)} largest")
    axis.set(xlabel=STEP, ylabel="eigenvalue")
    axis.legend(frameon=False, fontsize=9)
