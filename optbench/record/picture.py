"""`dynamics.png`: loss, sharpness against its threshold, and the generalization gap, over the run.

Colours are Okabe and Ito's, told apart by colour-blind people; every line also has a dash pattern
or marker of its own, for print.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench import metrics
from optbench.record.durable import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE, SPECTRUM = "dynamics.png", "spectrum.png"
PICTURES = (PICTURE, SPECTRUM)
BLUE, ORANGE, GREEN, RED, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#000000"
Records = Sequence[Mapping[str, Any]]


def series(records: Records, metric: str) -> tuple[list[int], list[float]]:
    """Return (steps, values) of one metric where it was measured."""
    rows = [(r["step"], r[metric]) for r in records if isinstance(r.get(metric), (int, float))]
    return [step for step, _ in rows], [value for _, value in rows]


def pictures(records: Records) -> tuple[str, ...]:
    """Return which pictures `draw` makes of a run."""
    return PICTURES if any(metrics.NODES in record for record in records) else (PICTURE,)


def is_drawn(path: Path) -> bool:
    """Say whether there is a whole picture."""
    return path.is_file() and path.read_bytes()[-8:-4] == b"IEND"


def draw(records: Records, title: str, folder: Path, name: str = "") -> None:
    """Draw `dynamics.png`, and `spectrum.png` if there are spectra.

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
    with _figure(folder / PICTURE, len(panels), title, name=name) as axes:
        for axis, panel in zip(axes, panels, strict=True):
            panel(axis, records)
            if axis.lines:
                axis.legend(framealpha=0.85, edgecolor="none", fontsize=9)
            else:
                axis.text(
                    0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#666666"
                )
            axis.grid(alpha=0.25)
        axes[-1].set_xlabel("step (optimizer updates)")
    spectra = [record for record in records if metrics.NODES in record]
    if spectra:
        with _figure(folder / SPECTRUM, 2, title, sharex=False, name=name) as axes:
            _density(axes[0], spectra)
            _outliers(axes[1], records)


@contextmanager
def _figure(
    path: Path, rows: int, title: str, sharex: bool = True, name: str = ""
) -> Iterator[Sequence["Axes"]]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(
            rows,
            1,
            figsize=(8, (3 if rows < 4 else 2.4) * rows),
            sharex=sharex,
            layout="constrained",
        )
        yield axes
        figure.suptitle(title)
        if name:
            figure.supxlabel(name, fontsize=7, color="#888888", x=0.99, ha="right")
        content = io.BytesIO()
        figure.savefig(content, dpi=150, format="png", metadata={"Software": None})
        plt.close(figure)
    write_whole(path, content.getvalue())


def _line(
    axis: "Axes", records: Records, metric: str, label: str, color: str, style: str, **more: Any
) -> None:
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


def _loss(axis: "Axes", records: Records) -> None:
    _line(
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
    _line(axis, records, metrics.TRAIN_LOSS, "train", BLUE, "-")
    _line(axis, records, metrics.VAL_LOSS, "validation", GREEN, ":")
    _line(axis, records, metrics.TEST_LOSS, "test", ORANGE, "--")
    if any(
        value > 0
        for metric in (metrics.BATCH_LOSS, metrics.TRAIN_LOSS)
        for value in series(records, metric)[1]
    ):
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        # within a decade every tick is a minor one, and 2 × 10⁰ is a long name for 2
        if high < 10 * low:
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_ylabel("loss")


NAMES = metrics.MEASURED_AT_THE_EDGE | {
    metrics.SHARPNESS: "sharpness $\\lambda_1$",
    metrics.NORM_SHARPNESS: "norm sharpness (lower bound)",
}
AT_EDGE = 0.95
DECADES = 100  # range of sharpness from which on its axis is logarithmic


def _sharpness(axis: "Axes", records: Records) -> None:
    """Draw λ_1 … λ_k of what the threshold is on, shaded where at the edge."""
    first = metrics.threshold_is_on(records)
    _next_eigenvalues(axis, records, first)
    name = NAMES[first]
    _line(axis, records, first, name, RED, "-")
    _shade(axis, records)
    _, thresholds = series(records, metrics.EDGE_THRESHOLD)
    _, sharpness = series(records, first)
    # A threshold far away, or one that a schedule sends to infinity, must not flatten the curve.
    shown = [t for t in thresholds if t < 3 * max(sharpness, default=math.inf)]
    label = "edge of stability"
    if sharpness:
        _fit(axis, sharpness, shown)
        label += _off_the_picture(thresholds, shown)
    _line(axis, records, metrics.EDGE_THRESHOLD, label, BLACK, "--", marker="")
    axis.set_ylabel(metrics.MEASURED_AT_THE_EDGE[first])


def _lambda_1(axis: "Axes", records: Records) -> None:
    """Draw λ₁ of the Hessian itself, where the edge is on another quantity."""
    _line(axis, records, metrics.SHARPNESS, NAMES[metrics.SHARPNESS], RED, "-")
    sharpness = series(records, metrics.SHARPNESS)[1]
    if sharpness:
        _fit(axis, sharpness, [])
    axis.set_ylabel(metrics.MEASURED_AT_THE_EDGE[metrics.SHARPNESS])


def _distance(axis: "Axes", records: Records) -> None:
    """Draw measured/threshold on a logarithmic axis, 1 at the edge."""
    _line(axis, records, metrics.EDGE_DISTANCE, "distance to the edge", RED, "-")
    distances = series(records, metrics.EDGE_DISTANCE)[1]
    if any(distance > 0 for distance in distances):
        axis.axhline(1, color=BLACK, linestyle="--", linewidth=1, label="edge of stability")
        axis.set_yscale("log")
    axis.set_ylabel("measured / threshold")


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
        _line(axis, records, key, label, RED, "-", marker="", linewidth=0.7, alpha=0.6)


def _fit(axis: "Axes", sharpness: Sequence[float], thresholds: Sequence[float]) -> None:
    """Let the axis hold what is shown; it is logarithmic if the sharpness spans two decades."""
    low, high = min(sharpness), max([*sharpness, *thresholds])
    if low > 0 and max(sharpness) > DECADES * low:
        axis.set_yscale("log")
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
    """Shade from each measurement at the edge to the next one."""
    steps, distances = series(records, metrics.EDGE_DISTANCE)
    labelled = False
    for i, distance in enumerate(distances[:-1]):
        if distance >= AT_EDGE:
            label = "" if labelled else f"at the edge (≥ {AT_EDGE:g})"
            axis.axvspan(steps[i], steps[i + 1], color=ORANGE, alpha=0.15, linewidth=0, label=label)
            labelled = True


def _gap(axis: "Axes", records: Records) -> None:
    _line(axis, records, metrics.GAP_LOSS, "gap of loss", ORANGE, "--")
    _line(axis, records, metrics.GAP_ERROR, "gap of error", BLUE, "-")
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
        _line(axis, records, name, "", RED, "-", marker="", linewidth=0.9)
    _line(axis, records, metrics.LAMBDA_MIN, "smallest", BLUE, ":")
    _line(axis, records, metrics.EDGE_THRESHOLD, "edge of stability", BLACK, "--", marker="")
    axis.plot([], [], color=RED, label=f"{len(names)} largest")
    axis.set(xlabel="step (optimizer updates)", ylabel="eigenvalue")
    axis.legend(frameon=False, fontsize=9)
