"""`python -m docs.tool_pictures`, in a checkout: what the commands draw, for the gallery.

`DRAWINGS` is what the gallery shows and what `renew=true` makes again:

1. Run every command, in their order, in one temporary folder.
2. Copy each picture to `docs/images/NAME.png`, and what it shows to `docs/images/NAME.csv`.
3. Write the digest of the table into the picture.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from docs.picture_source import FOLDER, SOURCE, digest, is_current
from optbench import metrics
from optbench.boundary.comma_separated import comma_separated
from optbench.boundary.command_line import Command, Key
from optbench.leaderboard.run_report import read_runs
from optbench.leaderboard.side_by_side import thinned
from optbench.record.folder import METRICS, read_lines

ROOT = Path(__file__).resolve().parent.parent
COLOURS = 256  # of a committed picture: a third of the bytes of one in true colour
POINTS = 150  # of a line of several runs in a table

LOSSES = (metrics.TRAIN_LOSS, metrics.VAL_LOSS, metrics.TEST_LOSS)
EDGE = (metrics.SHARPNESS, metrics.EDGE_THRESHOLD)
DYNAMICS = (
    *LOSSES,
    *EDGE,
    metrics.PRECONDITIONED_SHARPNESS,
    metrics.EDGE_DISTANCE,
    metrics.GAP_LOSS,
    metrics.GAP_ERROR,
)
UPDATES = (
    metrics.PREDICTED_CHANGE,
    metrics.LOSS_CHANGE,
    *EDGE,
    metrics.CRITICAL_SHARPNESS,
    metrics.NOISE_SCALE,
    metrics.NOISE_SCALE + metrics.LOW,
    metrics.NOISE_SCALE + metrics.HIGH,
    metrics.GRADIENT_SHARPNESS,
    metrics.UPDATE_SHARPNESS,
)

Tables = Mapping[str, str]
"""Text of each table, by what its name has after the picture's."""


def metrics_of_run(*names: str) -> Callable[[Path], Tables]:
    """A table of these metrics of a run, a line for each step that has one of them.

    The loss of every batch, which a picture has too, would make it ten times as long.
    """

    def tables(picture: Path) -> Tables:
        records = read_lines(picture.parent / METRICS)
        rows = (
            [record["step"], *(_number(record.get(name)) for name in names)]
            for record in records
            if any(name in record for name in names)
        )
        return {"": comma_separated(("step", *names), rows)}

    return tables


def lines_of_groups(runs: str) -> Callable[[Path], Tables]:
    """A table of the lines of a report on the runs that a pattern names."""

    def tables(picture: Path) -> Tables:
        folders = [folder for word in runs.split() for folder in sorted(picture.parent.glob(word))]
        heads = ("panel", "group", "step", "median", "least", "greatest")
        rows: list[Sequence[object]] = []
        for panel in read_runs(folders).panels():
            for line in (thinned(line, POINTS) for line in panel.lines):
                name = panel.second if line.is_second else panel.name
                numbers = zip(line.steps, line.middle, line.low, line.high, strict=True)
                rows += [(name, line.group, *map(_number, row)) for row in numbers]
        return {"": comma_separated(heads, rows)}

    return tables


def written_beside(**files: str) -> Callable[[Path], Tables]:
    """Tables that the command itself wrote into the folder of its picture."""

    def tables(picture: Path) -> Tables:
        return {
            "" if end == "table" else f"-{end}": (picture.parent / file).read_text()
            for end, file in files.items()
        }

    return tables


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


@dataclass(frozen=True)
class Drawing:
    """A picture that a command draws.

    Attributes:
        name: Its file in docs/images, without the ending.
        title: Heading in the gallery.
        about: What there is to see.
        commands: What makes it; a word with a star stands for the files that it matches.
        picture: Where the last of them puts it, a pattern.
        tables: From the picture, what it shows.
    """

    name: str
    title: str
    about: str
    commands: tuple[str, ...]
    picture: str
    tables: Callable[[Path], Tables]


SEVERAL = "results/runs/digits-mlp-sgd-* results/runs/digits-mlp-adam-*"
DRAWINGS = (
    Drawing(
        "one_run",
        "One run",
        "Adam's edge is on the preconditioned sharpness: it rises to 38/η, and at each spike of the "
        "loss it falls back.",
        ("python -m optbench optimizer=adam task=digits",),
        "results/runs/digits-mlp-adam-seed0-*/dynamics.png",
        metrics_of_run(*DYNAMICS),
    ),
    Drawing(
        "several_runs",
        "Several runs",
        "Runs that differ in nothing but the seed are one line, with a band from the least to the "
        "greatest. SGD and Adam are both at their own edge.",
        (
            "python -m optbench --multirun task=digits optimizer=sgd,adam seed=0,1,2",
            f"python -m optbench.report {SEVERAL}",
        ),
        "report.png",
        lines_of_groups(SEVERAL),
    ),
    Drawing(
        "landscape",
        "The loss about the weights",
        "Along the two sharpest eigenvectors of the Hessian the loss is the parabola of its "
        "eigenvalue; the cross is where training ended, beside the bottom of the valley.",
        ("python -m optbench.landscape results/runs/digits-mlp-sgd-seed1-*",),
        "results/runs/digits-mlp-sgd-seed1-*/landscape-eigenvectors.png",
        written_beside(
            table="landscape-eigenvectors.csv", plane="landscape-eigenvectors-plane.csv"
        ),
    ),
    Drawing(
        "lr_range",
        "Which learning rates are stable",
        "Short runs at rates from tiny to divergence. Theory's rate is of the sharpness at step 0; "
        "here it rises within the run, and the largest stable rate lies below.",
        ("python -m optbench.lr_range optimizer=momentum task=digits",),
        "results/lr_range/digits-mlp-momentum-*/lr_range.png",
        written_beside(table="lr_range.csv"),
    ),
    Drawing(
        "updates",
        "The updates of one run",
        "A quadratic foretells what an update does to the loss. At the edge gradient and update lie "
        "along the sharpest direction, and the gradient noise scale is low.",
        ("python -m optbench task=digits probes=dynamics",),
        "results/runs/digits-mlp-sgd-seed0-*/updates.png",
        metrics_of_run(*UPDATES),
    ),
    Drawing(
        "phase",
        "A phase diagram",
        "How a run ends, over any two settings: smaller batches stay further below the edge.",
        (
            "python -m optbench.study phase x=optimizer.lr y=batch_size seeds=1 "
            "run.task=digits run.steps=500",
        ),
        "results/studies/phase-*/phase.png",
        written_beside(table="table.csv"),
    ),
)


@dataclass(frozen=True)
class Settings:
    """Hold the pictures of what the commands draw to their tables, or make them again."""

    renew: Annotated[bool, Key("run the commands, and copy what they draw: 4 minutes")] = False


COMMAND = Command("docs.tool_pictures", Settings, examples=("renew=true",))


def main() -> None:
    """Check the pictures, and make them again first if asked to."""
    COMMAND.run(build)


def build(settings: Settings) -> int:
    """Return the exit code: 1 if a picture is not of its table."""
    if settings.renew:
        with tempfile.TemporaryDirectory() as folder:
            for drawing in DRAWINGS:
                make(drawing, Path(folder), FOLDER)
    pictures = [FOLDER / f"{drawing.name}.png" for drawing in DRAWINGS]
    current = {picture: is_current(picture) for picture in pictures}
    for picture, is_of_its_table in current.items():
        print(picture if is_of_its_table else f"{picture} is not of its table: say renew=true")
    return int(not all(current.values()))


def make(drawing: Drawing, folder: Path, images: Path) -> None:
    """Run the commands of a drawing in a folder; keep its picture and its tables.

    Raises:
        CalledProcessError: If a command fails.
    """
    environment = os.environ | {"WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    for command in drawing.commands:
        print(command, flush=True)
        words = list(_expanded(command, folder))
        subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    [picture] = folder.glob(drawing.picture)
    tables = []
    for end, text in drawing.tables(picture).items():
        tables.append(images / f"{drawing.name}{end}.csv")
        tables[-1].write_text(text)
    keep(picture, tables, images / f"{drawing.name}.png")


def _expanded(command: str, folder: Path) -> Iterator[str]:
    """The words of a command as a shell in the folder would pass them, with this Python."""
    program, *words = shlex.split(command)
    yield sys.executable if program == "python" else program
    for word in words:
        found = sorted(folder.glob(word)) if "*" in word else []
        yield from (str(path.relative_to(folder)) for path in found) if found else (word,)


def keep(picture: Path, tables: Sequence[Path], place: Path) -> None:
    """Copy a picture in fewer bytes, with the digest of its tables."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text(SOURCE, digest(*tables))
    with Image.open(picture) as image:
        # of Pillow's methods the one that keeps each colour nearest: no hue of a scale is lost
        octree, plain = Image.Quantize.FASTOCTREE, Image.Dither.NONE
        few = image.convert("RGB").quantize(COLOURS, octree, dither=plain)
        few.save(place, optimize=True, pnginfo=about)


if __name__ == "__main__":
    main()
