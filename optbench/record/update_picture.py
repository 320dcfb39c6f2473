"""`updates.png`: what `probes=dynamics` measures of the updates, and of the batches they come from.

1. The change of the loss that a quadratic foretells, g·d + ½dᵀHd, against what it was.
2. λ₁, critical sharpness 2/(κη) and batch sharpness E_B[g_BᵀH_Bg_B/‖g_B‖²], with the edge.
3. The gradient noise scale tr Σ/‖g‖², with its 95 % interval.
4. gᵀHg/(λ₁‖g‖²) and dᵀHd/(λ₁‖d‖²): 1 where gradient or update lies along the sharpest direction.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN = (
    metrics.PREDICTED_CHANGE,
    metrics.CRITICAL_SHARPNESS,
    metrics.BATCH_SHARPNESS,
    metrics.NOISE_SCALE,
)


def has_updates(records: Records) -> bool:
    """Whether a run has measured any of what this picture is for."""
    return any(metric in record for record in records for metric in DRAWN)


def draw_updates(records: Records, title: str, path: Path, name: str = "") -> None:
    """Draw the four panels; one without data says so.

    Args:
        records: Lines of the run's metrics.
        title: What was run, for a reader.
        path: File to write.
        name: Name of the run, which stands small below.
    """
    with picture_file(path, 2, 2, (11, 8), title, name) as (_, axes):
        _predicted(axes[0], records)
        _kinds_of_sharpness(axes[1], records)
        _noise(axes[2], records)
        _alignment(axes[3], records)
        for axis in axes:
            if axis.lines or axis.collections:
                axis.legend(framealpha=0.85, edgecolor="none", fontsize=9)
            else:
                place, look = axis.transAxes, {"ha": "center", "color": "#666666"}
                axis.text(0.5, 0.5, "not measured", look, transform=place)
            axis.grid(alpha=0.25)


def _predicted(axis: "Axes", records: Records) -> None:
    """Draw a point an update, on axes that are linear about 0 and logarithmic beyond."""
    keys = (metrics.PREDICTED_CHANGE, metrics.LOSS_CHANGE)
    rows = [record for record in records if all(key in record for key in keys)]
    axis.set(xlabel="predicted change of the loss, $g·d + ½dᵀHd$", ylabel="actual change")
    if not rows:
        return
    predicted, actual = ([float(row[key]) for row in rows] for key in keys)
    sizes = [abs(value) for value in (*predicted, *actual) if value]
    largest, typical = max(sizes, default=1.0), sorted(sizes)[len(sizes) // 2] if sizes else 1.0
    if largest > 10 * typical:
        for scale, ticks in (
            (axis.set_xscale, axis.set_xticks),
            (axis.set_yscale, axis.set_yticks),
        ):
            scale("symlog", linthresh=typical)
            ticks(decades_about_0(typical, largest))
    ends = [min(*predicted, *actual), max(*predicted, *actual)]
    axis.plot(ends, ends, color=BLACK, linestyle="--", linewidth=1, label="as predicted")
    steps = [row["step"] for row in rows]
    points = axis.scatter(predicted, actual, c=steps, cmap="cividis", s=16, label="an update")
    # the points lie along the diagonal, so the lower right is free
    place = axis.inset_axes((0.6, 0.16, 0.36, 0.035))
    axis.figure.colorbar(points, cax=place, label="step", orientation="horizontal")


def decades_about_0(linear: float, largest: float) -> list[float]:
    """Ticks of an axis that is linear up to ±linear: 0, and at most three decades on each side."""
    low, high = math.ceil(math.log10(linear)), math.floor(math.log10(largest))
    sizes = [10.0**k for k in range(high, low - 1, -math.ceil((high - low + 1) / 3))]
    return [*(-size for size in sizes), 0.0, *reversed(sizes)]


def _kinds_of_sharpness(axis: "Axes", records: Records) -> None:
    kinds = (
        (metrics.SHARPNESS, "$\\lambda_1$ of the Hessian", RED, "-"),
        (metrics.CRITICAL_SHARPNESS, "critical: $2/(\\kappa\\eta)$", BLUE, "-."),
        (metrics.BATCH_SHARPNESS, "batch: $E[g_B^T H_B g_B/|g_B|^2]$", GREEN, ":"),
    )
    for metric, label, color, style in kinds:
        draw_line(axis, records, metric, label, color, style)
    _band(axis, records, metrics.BATCH_SHARPNESS, GREEN)
    values = [value for metric, *_ in kinds for value in series(records, metric)[1]]
    # another quantity has a threshold that is not λ₁'s
    if metrics.threshold_is_on(records) == metrics.SHARPNESS:
        _, thresholds = series(records, metrics.EDGE_THRESHOLD)
        if values and thresholds and min(thresholds) < 3 * max(values):
            label = "edge of stability"
            draw_line(axis, records, metrics.EDGE_THRESHOLD, label, BLACK, "--", marker="")
    if values and min(values) > 0 and max(values) > DECADES * min(values):
        plain_log(axis, "y")
    axis.set(xlabel=STEP, ylabel="curvature")


def _noise(axis: "Axes", records: Records) -> None:
    draw_line(axis, records, metrics.NOISE_SCALE, "tr Σ/‖g‖²", BLUE, "-")
    _band(axis, records, metrics.NOISE_SCALE, BLUE)
    if any(value > 0 for value in series(records, metrics.NOISE_SCALE)[1]):
        plain_log(axis, "y")
    axis.set(xlabel=STEP, ylabel="gradient noise scale (examples)")


def _band(axis: "Axes", records: Records, metric: str, color: str) -> None:
    """Draw the 95 % interval of a metric, where it was recorded with one."""
    steps, low = series(records, metric + metrics.LOW)
    high = series(records, metric + metrics.HIGH)[1]
    if steps and len(low) == len(high):
        axis.fill_between(
            steps, low, high, color=color, alpha=0.15, linewidth=0, label="95 % interval"
        )


def _alignment(axis: "Axes", records: Records) -> None:
    kinds = (
        (metrics.GRADIENT_SHARPNESS, "gradient: $g^T H g/(\\lambda_1|g|^2)$", ORANGE, "-"),
        (metrics.UPDATE_SHARPNESS, "update: $d^T H d/(\\lambda_1|d|^2)$", BLUE, "--"),
    )
    for metric, label, color, style in kinds:
        steps, shares = alignment(records, metric)
        rows = [{"step": s, metric: share} for s, share in zip(steps, shares, strict=True)]
        draw_line(axis, rows, metric, label, color, style)
    if axis.lines:
        axis.axhline(1, color=BLACK, linestyle="--", linewidth=1, label="along the sharpest")
    axis.set(xlabel=STEP, ylabel="alignment with the sharpest direction")


def alignment(records: Records, metric: str) -> tuple[list[int], Sequence[float]]:
    """Return (steps, curvature along a direction / λ₁), where λ₁ is positive.

    A record at step t is of the update from t − 1, and its curvature of the weights there; so λ₁ is
    the last one measured at step t − 1 or before.
    """
    at, sharpness = series(records, metrics.SHARPNESS)
    steps: list[int] = []
    shares: list[float] = []
    for step, value in zip(*series(records, metric), strict=True):
        known = bisect_right(at, step - 1) - 1
        if known >= 0 and sharpness[known] > 0 and math.isfinite(value):
            steps.append(step)
            shares.append(value / sharpness[known])
    return steps, shares
