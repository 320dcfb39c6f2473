"""The edge atlas as a picture: measured/threshold over the run, a panel an optimizer."""

import math
from collections.abc import Sequence
from pathlib import Path

from optbench.studies.edge_atlas import Row

COLUMNS = 5
COLORS = ("#0072B2", "#E69F00", "#009E73")
STYLES = ("-", "--", ":")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw every row's ratio against the step, a line a seed; the band is the tolerance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    height = math.ceil(len(rows) / COLUMNS)
    figure, axes = plt.subplots(
        height,
        COLUMNS,
        figsize=(3 * COLUMNS, 2.2 * height),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, rows, strict=False):
        if row.tolerance is not None:
            axis.axhspan(
                1 - row.tolerance, 1 + row.tolerance, color="#888888", alpha=0.25, linewidth=0
            )
        axis.axhline(1, color="#000000", linewidth=0.8)
        for i, (steps, ratios) in enumerate(row.series):
            axis.plot(steps, ratios, STYLES[i % 3], color=COLORS[i % 3], linewidth=0.9)
        number = "" if math.isnan(row.median) else f"{row.median:.3f}, "
        axis.set_title(f"{row.optimizer}\n{number}{row.verdict}", fontsize=8)
        axis.set_ylim(0, 2)
        axis.grid(alpha=0.25)
    figure.supxlabel("step (optimizer updates)")
    figure.supylabel("measured / threshold")
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
