"""`python -m optbench.lr_range`: which learning rate is the largest stable one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.table import Table

from optbench.boundary.comma_separated import comma_separated
from optbench.boundary.command_line import Command, FilePath, Key
from optbench.boundary.kinds import Count, CountFromZero, Positive
from optbench.errors import UserError, printable
from optbench.lab.experiment import Run, start
from optbench.lab.rate_range import NoTheory, Theory, Trial, bracket, search, theory, trial
from optbench.record.axes import BLACK, BLUE, GREEN, ORANGE, RED, picture_file, plain_log
from optbench.record.durable import write_whole
from optbench.record.terminal import ManyRuns, show_table

PICTURE, TABLE = "lr_range.png", "lr_range.csv"
COLUMNS = (
    "rate",
    "scale",
    "status",
    "stable",
    "train_loss",
    "lambda_max",
    "distance",
    "distance_at_first",
    "measured_first_at_step",
    "run",
)


@dataclass(frozen=True)
class Settings:
    """Train briefly at learning rates from tiny to divergence; find the largest stable one.

    Every rate of the optimizer is multiplied by `scale`, from `low` upwards by `factor`, until two
    runs in a row are not stable; then the interval between the last stable and the first unstable
    scale is halved. A run is stable if it neither diverged nor ended above its initial loss.

    The picture has the loss after `steps` updates, lambda_1 and the distance to the edge against
    the rate, and beside the rate found the one that theory says: threshold/lambda at step 0, or,
    for an Adam, once its preconditioner has settled at the least rate. An optimizer without a known
    edge is told so, and has the rate found alone. Runs are ordinary run folders: what was made
    before is read.
    """

    optimizer: Annotated[str, Key("entry of conf/optimizer")] = "sgd"
    task: Annotated[str, Key("entry of conf/task")] = "digits"
    steps: Annotated[Count, Key("updates of each run")] = 100
    low: Annotated[Positive, Key("least scale: what the rates of the entry are multiplied by")] = (
        0.01
    )
    high: Annotated[Positive, Key("scale that none exceeds")] = 1e5
    factor: Annotated[
        Annotated[float, Field(gt=1, le=100)], Key("ratio of neighbouring scales")
    ] = 3.0
    halvings: Annotated[
        CountFromZero, Key("runs between the last stable and the first unstable scale")
    ] = 4
    seed: Annotated[CountFromZero, Key("seed of every run")] = 0
    results_dir: Annotated[FilePath, Key("folder of the runs, and of lr_range/")] = Path("results")
    run: Annotated[
        tuple[str, ...], Key("a setting of every run, as of the main job", below=True)
    ] = ()


COMMAND = Command(
    "optbench.lr_range",
    Settings,
    examples=(
        "optimizer=adam task=digits",
        "optimizer=momentum steps=300 run.model.widths=[32] run.batch_size=100",
    ),
)
SET_HERE = ("optimizer", "task", "steps", "seed", "results_dir", "optimizer.scale", "epochs")


def main() -> None:
    """Do what the command line says."""
    COMMAND.run(find)


def find(settings: Settings) -> int:
    """Make the runs, draw and print; return the exit code."""
    for word in settings.run:
        if word.partition("=")[0] in SET_HERE:
            raise UserError(f"run.{printable(word)} is set by the command itself: leave out run.")
    if settings.low >= settings.high:
        raise UserError(f"low must be below high, got {settings.low:g} and {settings.high:g}")
    words = [
        *(f"{key}={getattr(settings, key)}" for key in ("optimizer", "task", "steps", "seed")),
        f"results_dir={settings.results_dir}",
        *settings.run,
    ]
    folder = settings.results_dir / "lr_range" / start(*words).name
    trials, run = _trials(settings, words)
    by_theory = theory(trials, run)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TABLE, comma_separated(COLUMNS, map(_cells, trials)))
    about = f"{settings.optimizer} · {settings.task}, {run.choices['model']} · seed {settings.seed}"
    draw(trials, by_theory, settings.steps, about, folder / PICTURE)
    _show(trials, settings.steps)
    for line in findings(trials, by_theory):
        print(line)
    print(f"table: {folder / TABLE}")
    print(folder / PICTURE)
    return 0


def _trials(settings: Settings, words: Sequence[str]) -> tuple[list[Trial], Run]:
    """All trials in the order of their rates, and the run of the least one."""
    runs: list[Run] = []

    def try_scale(scale: float) -> Trial:
        shown.begin(f"rates times {scale:.3g}", line=False)
        found, run = trial(words, scale)
        runs.append(run)
        return found

    steps_up = 1 + math.floor(math.log(settings.high / settings.low, settings.factor) + 1e-9)
    trials = []
    with ManyRuns(steps_up + settings.halvings) as shown:
        for found in search(
            try_scale, settings.low, settings.high, settings.factor, settings.halvings
        ):
            trials.append(found)
            shown.advance()
    return sorted(trials, key=lambda t: t.scale), runs[0]


def findings(trials: Sequence[Trial], by_theory: Theory | NoTheory) -> list[str]:
    """Lines that say the largest stable rate as found, and by theory."""
    stable, unstable = bracket(trials)
    what = "learning rate" if trials[0].rate is not None else "scale of the learning rates"
    if stable is None:
        found = f"no {what} tried was stable: the least was {trials[0].at:.3g}; say a lower low="
    elif unstable is None:
        found = f"every {what} tried was stable, up to {stable.at:.3g}; say a higher high="
    else:
        found = f"largest stable {what} found: {stable.at:.4g} ({unstable.at:.4g} is not stable)"
    match by_theory:
        case NoTheory():
            return [found, f"by theory: none, {by_theory.reason}"]
        case Theory():
            rate = _at(by_theory.scale, trials)
            return [found, f"by theory: {rate:.4g}, from {by_theory.source}"]


def _at(scale: float, trials: Sequence[Trial]) -> float:
    """The rate at a scale; the scale where the optimizer has several rates."""
    return scale * trials[0].at / trials[0].scale


def _show(trials: Sequence[Trial], steps: int) -> None:
    table = Table()
    for heading in ("rate", f"loss, step {steps}", "λ₁", "distance", "ended"):
        table.add_column(heading, justify="left" if heading == "ended" else "right")
    for t in trials:
        cells = [f"{v:.4g}" if math.isfinite(v) else "–" for v in (t.loss, t.sharpness, t.distance)]
        ended = t.status if t.is_stable or t.status != "done" else "above its initial loss"
        table.add_row(f"{t.at:.4g}", *cells, ended)
    show_table(table)


def _cells(t: Trial) -> list[object]:
    """A line of the table, under `COLUMNS`."""
    rate = "" if t.rate is None else f"{t.rate:.6g}"
    numbers = [t.loss, t.sharpness, t.distance, t.first_distance]
    cells = [f"{v:.6g}" if math.isfinite(v) else "" for v in numbers]
    first = t.measured_at if t.measured_at >= 0 else ""
    return [rate, f"{t.scale:.6g}", t.status, str(t.is_stable).lower(), *cells, first, t.folder]


def draw(
    trials: Sequence[Trial], by_theory: Theory | NoTheory, steps: int, about: str, path: Path
) -> None:
    """Draw loss, λ₁ and distance against the rate.

    Args:
        trials: Trials at rising rates.
        by_theory: The largest stable rate by theory, a line.
        steps: Updates of each run.
        about: What was run.
        path: File to write.
    """
    quantities: tuple[tuple[str, str, Any], ...] = (
        (f"training loss at step {steps}", BLUE, lambda t: t.loss),
        ("sharpness λ₁", RED, lambda t: t.sharpness),
        ("distance to the edge", GREEN, lambda t: t.distance),
    )
    stable, _ = bracket(trials)
    marks = [] if stable is None else [(stable.at, f"largest stable: {stable.at:.3g}", BLACK, "-")]
    if isinstance(by_theory, Theory):
        rate = _at(by_theory.scale, trials)
        marks.append((rate, f"largest stable by theory: {rate:.3g}", ORANGE, "--"))
    title = f"Learning rate range: {about}"
    with picture_file(path, 3, 1, (8, 8.5), title, sharex=True) as (_, axes):
        for axis, (label, color, value) in zip(axes, quantities, strict=True):
            _quantity(axis, trials, label, color, value)
            for at, name, mark_color, style in marks:
                axis.axvline(at, color=mark_color, linestyle=style, linewidth=1.5, label=name)
        axes[0].legend(framealpha=0.85, edgecolor="none", fontsize=9)
        edge = axes[2].axhline(1, color=BLACK, linestyle=":", label="edge of stability")
        axes[2].legend(handles=[edge], framealpha=0.85, edgecolor="none", fontsize=9)
        plain_log(axes[2])
        one = trials[0].rate is not None
        axes[2].set_xlabel("learning rate" if one else "scale of the learning rates")


def _quantity(axis: Any, trials: Sequence[Trial], label: str, color: str, value: Any) -> None:
    rows = [(t, value(t)) for t in trials]
    drawn = [(t.at, v) for t, v in rows if math.isfinite(v)]
    if drawn:
        axis.plot(*zip(*drawn, strict=True), marker="o", markersize=4, color=color)
    unstable = [t.at for t in trials if not t.is_stable]
    if unstable:
        bottom = [0.04] * len(unstable)
        axis.plot(
            unstable,
            bottom,
            "x",
            color=BLACK,
            transform=axis.get_xaxis_transform(),
            label="not stable",
        )
    if any(v > 0 for _, v in drawn):
        plain_log(axis, "y")
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)
