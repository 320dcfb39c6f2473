"""`python -m optbench.landscape RUN…`: the loss on lines and planes about a run's weights."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from optbench import lab
from optbench.boundary.comma_separated import comma_separated
from optbench.boundary.command_line import Command, FilePath, Key
from optbench.boundary.kinds import CountFromZero, Positive
from optbench.errors import UserError, printable
from optbench.lab import loss_slices
from optbench.lab.loss_slices import Array, Direction, Landscape, Losses
from optbench.lab.point import Point
from optbench.record.axes import BLACK, BLUE, GREEN, ORANGE, picture_file
from optbench.record.durable import write_whole
from optbench.record.terminal import ManyRuns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 14  # contour lines of a plane


@dataclass(frozen=True)
class Settings:
    """Draw slices of the loss about the weights of a finished run: PNG and CSV in its folder.

    along=eigenvectors: the two sharpest directions of the Hessian of the training loss, of norm 1.
    along=update: what the optimizer would add next, and the sharpest direction less its part
    along that.
    along=runs: from the first run's weights (0) to the second's (1); a third spans a plane.
    along=random: two Gaussian directions of the norm of the weights.

    normalize=filter scales each filter of a direction to the norm of the model's own (Li et al.
    2018, section 4), so that networks of other scales can be compared; what is left of an
    eigenvector is another direction, whose curvature is no eigenvalue. Training loss: all training
    examples, modules in the mode they train in. Validation loss: eval mode. Never the test split.
    """

    runs: Annotated[
        tuple[FilePath, ...],
        Key("a run folder; for along=runs two or three", positional=True, placeholder="RUN"),
    ]
    along: Annotated[
        Literal["eigenvectors", "update", "runs", "random"], Key("directions of the slices")
    ] = "eigenvectors"
    normalize: Annotated[
        Literal["none", "filter"], Key("scale of each filter of a direction; not of along=runs")
    ] = "none"
    points: Annotated[
        Annotated[int, Field(ge=3, le=10_001)], Key("losses on a line; odd: one is at the weights")
    ] = 41
    grid: Annotated[
        Annotated[int, Field(ge=0, le=1001)], Key("losses a side of a plane; 0 for no plane")
    ] = 21
    radius: Annotated[
        Positive | None, Key("half of the range of a coefficient", placeholder="RADIUS")
    ] = None
    step: Annotated[
        CountFromZero | None, Key("step of a kept checkpoint; the last without it", placeholder="N")
    ] = None


COMMAND = Command(
    "optbench.landscape",
    Settings,
    examples=(
        "results/runs/digits-mlp-adam-seed0-1a2b3c4d",
        "results/runs/digits-mlp-adam-seed0-1a2b3c4d along=update radius=8 grid=0",
        "results/runs/digits-mlp-adam-seed0-1a2b3c4d along=random normalize=filter",
        "RUN ANOTHER_RUN along=runs",
    ),
    elsewhere="a folder that you may write to",
)


@dataclass(frozen=True)
class Line:
    """Losses on a line."""

    direction: Direction
    coefficients: Array
    losses: Sequence[Losses]


@dataclass(frozen=True)
class Plane:
    """Losses on a plane, a row for each coefficient of the second direction."""

    one: Direction
    other: Direction
    alphas: Array
    betas: Array
    losses: Sequence[Sequence[Losses]]


def main() -> None:
    """Do what the command line says."""
    COMMAND.run(draw_landscape)


def draw_landscape(settings: Settings) -> int:
    """Evaluate the losses, write the files and name them; return the exit code."""
    _check(settings)
    runs = [lab.open(path) for path in settings.runs]
    for run in runs:
        if not run.kept:
            raise UserError(f"{run.name} has no checkpoint to look around: it is {run.status}")
    first = runs[0]
    point = first.at(step=settings.step).point()
    landscape = Landscape(point)
    with point.fitting_threads():
        directions = _directions(settings, runs, point)
        lines, plane = _evaluate(settings, landscape, directions)
    name = f"landscape-{settings.along}" + "-filter" * (settings.normalize == "filter")
    files = [first.folder / f"{name}.csv"]
    write_whole(files[0], _table_of_lines(lines))
    if plane is not None:
        files.append(first.folder / f"{name}-plane.csv")
        write_whole(files[-1], _table_of_plane(plane))
    files.append(first.folder / f"{name}.png")
    draw(lines, plane, _title(first, settings), files[-1])
    for line in _notes(landscape, directions):
        print(line)
    for file in files:
        print(file)
    return 0


def _check(settings: Settings) -> None:
    """Refuse what cannot be.

    Raises:
        UserError: With the way out.
    """
    count = len(settings.runs)
    if settings.grid == 1:
        raise UserError("grid must be 0, for no plane, or at least 2, got 1")
    if settings.along != "runs":
        if count > 1:
            raise UserError(f"along={settings.along} is about one run, got {count}: say along=runs")
        return
    if count not in (2, 3):
        raise UserError(f"along=runs is about two runs or three, got {count}")
    if settings.normalize != "none":
        raise UserError("normalize=filter would lead past the other run: leave it out")


def _directions(settings: Settings, runs: Sequence[lab.Run], point: Point) -> list[Direction]:
    """One direction or two."""
    radius = settings.radius
    match settings.along:
        case "eigenvectors":
            found = loss_slices.eigenvectors(point, 2, radius)
        case "update":
            step = loss_slices.update(runs[0].at(step=settings.step), radius)
            sharpest = loss_slices.eigenvectors(point, 1, None)[0]
            found = [step, loss_slices.orthogonal(sharpest, step)]
        case "runs":
            others = [(run.at().point().weights, run.name) for run in runs[1:]]
            found = [loss_slices.between(point.weights, w, name, radius) for w, name in others]
        case "random":
            found = loss_slices.random_directions(point, 2, radius)
    if settings.normalize == "filter":
        found = [loss_slices.filter_normalized(d, point.parameters, radius) for d in found]
    return found


def _evaluate(
    settings: Settings, landscape: Landscape, directions: Sequence[Direction]
) -> tuple[list[Line], Plane | None]:
    has_plane = settings.grid >= 2 and len(directions) > 1
    total = len(directions) * settings.points + has_plane * settings.grid**2
    with ManyRuns(total, unit="places") as shown:
        lines = []
        for direction in directions:
            shown.begin(direction.name, line=False)
            lines.append(
                Line(direction, *landscape.line(direction, settings.points, shown.advance))
            )
        if not has_plane:
            return lines, None
        one, other = directions
        shown.begin("the plane of both", line=False)
        plane = landscape.plane(one, other, settings.grid, shown.advance)
        return lines, Plane(one, other, *plane)


def _title(run: lab.Run, settings: Settings) -> str:
    step = settings.step if settings.step is not None else run.summary["step"]
    chosen = run.choices
    about = f"{chosen['optimizer']} · {chosen['task']}, {chosen['model']} · seed {run.config.seed}"
    return f"Loss about step {step}: {about}"


def _notes(landscape: Landscape, directions: Sequence[Direction]) -> Iterator[str]:
    """What a reader of the files should know."""
    for direction in directions:
        norm = float(direction.vector.norm())
        bent = f", curvature {direction.curvature:.4g}" if direction.curvature is not None else ""
        yield printable(f"{direction.name}: norm {norm:.4g}{bent}")
    if landscape.point.task.val is None:
        yield "the task has no validation split: the training loss alone is drawn"
    elif loss_slices.has_batch_norm(landscape.point.model):
        yield (
            "batch norm: the validation loss has the running statistics of the checkpoint at every "
            "place, the training loss those of each place"
        )


def _cell(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def _table_of_lines(lines: Sequence[Line]) -> str:
    rows = (
        [line.direction.name, _cell(a), _cell(found.train), _cell(found.val)]
        for line in lines
        for a, found in zip(line.coefficients, line.losses, strict=True)
    )
    return comma_separated(("direction", "coefficient", "train_loss", "val_loss"), rows)


def _table_of_plane(plane: Plane) -> str:
    rows = (
        [_cell(a), _cell(b), _cell(found.train), _cell(found.val)]
        for b, row in zip(plane.betas, plane.losses, strict=True)
        for a, found in zip(plane.alphas, row, strict=True)
    )
    heads = (plane.one.name, plane.other.name, "train_loss", "val_loss")
    return comma_separated(heads, rows)


def draw(lines: Sequence[Line], plane: Plane | None, title: str, path: Path) -> None:
    """Draw a panel for each line, and one for each split of the plane.

    Args:
        lines: Losses on lines.
        plane: Losses on a plane, if there is one.
        title: What is drawn.
        path: File to write.
    """
    splits = [] if plane is None else ["train"]
    if plane is not None and plane.losses[0][0].val is not None:
        splits.append("validation")
    panels = len(lines) + len(splits)
    columns = min(2, panels)
    rows = math.ceil(panels / columns)
    with picture_file(path, rows, columns, (5.5 * columns, 4.8 * rows), title) as (figure, axes):
        for axis, line in zip(axes, lines, strict=False):
            _draw_line(axis, line)
        for axis, which in zip(axes[len(lines) :], splits, strict=False):
            assert plane is not None
            _draw_plane(figure, axis, plane, which)
        for axis in axes[panels:]:
            axis.set_visible(False)


def _draw_line(axis: "Axes", line: Line) -> None:
    at, direction = line.coefficients, line.direction
    train = np.array([found.train for found in line.losses])
    axis.plot(at, train, color=BLUE, label="training loss")
    if line.losses[0].val is not None:
        val = np.array([found.val for found in line.losses], dtype=float)
        axis.plot(at, val, color=GREEN, linestyle="--", label="validation loss")
    if direction.slope is not None and direction.curvature is not None and 0 in at:
        start = train[list(at).index(0)]
        parabola = start + direction.slope * at + direction.curvature * at**2 / 2
        axis.plot(at, parabola, color=ORANGE, linestyle=":", label="quadratic of its λ")
    _mark(axis, direction)
    finite = train[np.isfinite(train) & (train > 0)]
    if len(finite) and finite.max() > 100 * finite.min():
        axis.set_yscale("log")
    axis.set(xlabel=f"coefficient of {_short(direction.name)}", ylabel="loss")
    axis.grid(alpha=0.25)
    axis.legend(framealpha=0.85, edgecolor="none", fontsize=9)


def _mark(axis: "Axes", direction: Direction) -> None:
    axis.axvline(0, color="#888888", linewidth=0.8)
    if direction.center:
        axis.axvline(1, color="#888888", linewidth=0.8)


def _draw_plane(figure: Any, axis: "Axes", plane: Plane, which: str) -> None:
    from matplotlib.colors import BoundaryNorm

    def of(found: Losses) -> float:
        value = found.train if which == "train" else found.val
        return math.nan if value is None or not math.isfinite(value) else value

    values = np.array([[of(found) for found in row] for row in plane.losses])
    levels = _levels(values[np.isfinite(values)])
    norm = BoundaryNorm(levels.tolist(), 256)
    drawn = axis.contourf(plane.alphas, plane.betas, values, levels, cmap="cividis", norm=norm)
    axis.contour(plane.alphas, plane.betas, values, levels, colors="white", linewidths=0.5)
    axis.plot(0, 0, "+", color="white", markersize=12, markeredgewidth=3)
    axis.plot(0, 0, "+", color=BLACK, markersize=10, markeredgewidth=1.5)
    if plane.one.center:
        for place in ((1, 0), (0, 1)):
            axis.plot(*place, "x", color="white", markersize=10, markeredgewidth=3)
            axis.plot(*place, "x", color=BLACK, markersize=8, markeredgewidth=1.5)
    bar = figure.colorbar(
        drawn, ax=axis, label=f"{which} loss", format="%.3g", location="bottom", aspect=40
    )
    bar.ax.tick_params(labelsize=8)
    axis.set(xlabel=_short(plane.one.name), ylabel=_short(plane.other.name))


def _levels(values: Array) -> Array:
    """Levels evenly spaced on a quadratic; on a log scale where two decades are spanned."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if low > 0 and high > 100 * low:
        return np.geomspace(low, high, LEVELS)
    room = (high - low) or abs(high) or 1.0  # a flat plane has no levels of its own
    return low + room * np.linspace(0, 1, LEVELS) ** 2


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:43]}…"
