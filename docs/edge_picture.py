"""`python -m docs.edge_picture`, in a checkout: the picture of the edge of stability.

It is drawn from `docs/images/edge.csv`, which `renew=true` makes again: three runs of the main job
that differ in their learning rate. The picture says which table it is of, and a test holds it to
that.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from docs.picture_source import FOLDER, SOURCE, digest
from optbench import metrics
from optbench.boundary.comma_separated import comma_separated
from optbench.boundary.command_line import Command, Key

TABLE, PICTURE = FOLDER / "edge.csv", FOLDER / "edge.png"
EVERY_TENTH = ("probes.sharpness.every=10", "probes.generalization.every=10")
RATES = (0.075, 0.1, 0.2)
COLOURS = ("#0072B2", "#E69F00", "#009E73")
MARKS = ("-", "--", ":")
COLUMNS = ("lr", "step", metrics.TRAIN_LOSS, metrics.SHARPNESS)


@dataclass(frozen=True)
class Settings:
    """Draw docs/images/edge.png: λ₁ of three rates of gradient descent against 2/η."""

    renew: Annotated[bool, Key("make the runs and the table again: a minute")] = False
    results_dir: Annotated[Path, Key("folder of the runs", placeholder="DIR")] = Path("results")


COMMAND = Command("docs.edge_picture", Settings, examples=("renew=true",))


def main() -> None:
    """Draw the picture, from runs of its own if asked to."""
    COMMAND.run(build)


def build(settings: Settings) -> int:
    """Draw the picture, and return the exit code."""
    if settings.renew:
        write_table(settings.results_dir)
    draw(TABLE, PICTURE)
    print(PICTURE)
    return 0


def write_table(results: Path) -> None:
    """Train at each rate, and write what was measured every ten steps."""
    from optbench import lab

    rows: list[Sequence[float]] = []
    for lr in RATES:
        run = lab.start(f"optimizer.lr={lr}", *EVERY_TENTH, *lab.QUIET, results_dir=results).train()
        losses = dict(zip(*map(list, run.series(metrics.TRAIN_LOSS)), strict=True))
        steps, sharpness = run.series(metrics.SHARPNESS)
        rows += [
            (lr, int(step), float(losses[step]), float(value))
            for step, value in zip(steps, sharpness, strict=True)
        ]
    FOLDER.mkdir(exist_ok=True)
    cells = ([f"{value:.6g}" for value in row] for row in rows)
    TABLE.write_text(comma_separated(COLUMNS, cells))


def draw(table: Path, picture: Path) -> None:
    """Draw λ₁ and the loss against the step, a line a rate; 2/η beside each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for lr, colour, mark in zip(RATES, COLOURS, MARKS, strict=True):
        own = [row for row in rows if float(row["lr"]) == lr]
        steps = [int(row["step"]) for row in own]
        left.plot(steps, _column(own, metrics.SHARPNESS), color=colour, ls=mark, lw=1.6)
        left.axhline(2 / lr, color=colour, lw=0.8, alpha=0.7)
        left.text(
            1.01, 2 / lr, f"2/η = {2 / lr:.3g}", va="center", color=colour, transform=_beside(left)
        )
        right.semilogy(
            steps,
            _column(own, metrics.TRAIN_LOSS),
            color=colour,
            ls=mark,
            lw=1.6,
            label=f"η = {lr:g}",
        )
    left.set(xlabel="step", ylim=(0, 34), title="sharpness λ₁ rises to 2/η, and stays there")
    right.set(xlabel="step", title="the training loss goes on falling")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(11)
    figure.savefig(picture, dpi=110, metadata={SOURCE: digest(table), "Software": None})


def _column(rows: Iterable[Any], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _beside(axis: Any) -> Any:
    """Coordinates: share of the width, and the data's height."""
    return axis.get_yaxis_transform()


if __name__ == "__main__":
    main()
