"""`python -m optbench.report RUN ...`: one page on chosen run folders, and their comparison.

It works from disk, without a network.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from optbench.boundary import ShapeError, UnreadableError, printable
from optbench.boundary.command_line import Command, FilePath, Key
from optbench.errors import UserError
from optbench.leaderboard.page import report_page
from optbench.leaderboard.side_by_side import Comparison, Member, compare, read_member
from optbench.leaderboard.write_together import write_together
from optbench.record.panels import draw_panels
from optbench.record.picture import PICTURE, is_drawn


@dataclass(frozen=True)
class Settings:
    """Write one page on chosen run folders; it works from disk, without a network.

    Two runs or more are compared: those that differ in nothing but the seed are a group, drawn as
    its median in a band from the least to the greatest. A table says what differs, and four panels
    show loss, sharpness, distance to the edge and generalization gap; a PNG beside the page shows
    the panels, too. A run that cannot be read is passed over, and told.
    """

    runs: Annotated[
        tuple[Path, ...],
        Key("run folders, such as results/runs/*", placeholder="RUN", positional=True),
    ]
    out: Annotated[FilePath, Key("file to write; the PNG of a comparison has its name")] = Path(
        "report.html"
    )


COMMAND = Command(
    "optbench.report",
    Settings,
    examples=("results/runs/*", "results/runs/digits-* out=page.html"),
    elsewhere="out=FILE",
)


def main() -> None:
    """Write the page that the command line asks for."""
    COMMAND.run(report)


def report(settings: Settings) -> int:
    """Write the page, and return the exit code."""
    out = settings.out
    if out.is_dir():
        raise UserError(f"out must be a file to write, got the folder {out}")
    if out.suffix == ".png":
        raise UserError(f"out names the page, got {printable(str(out))}: say out=FILE.html")
    comparison = read_runs(settings.runs)
    for line in comparison.passed_over:
        print(printable(f"passed over {line}"), file=sys.stderr)
    if not comparison.members:
        raise UserError("none of these is a run folder: name some of results/runs/")
    for file in write_report(comparison, out):
        print(printable(str(file)))
    return 0


def read_runs(folders: Sequence[Path]) -> Comparison:
    """Read run folders, each once, and compare them; what cannot be read is passed over."""
    members: list[Member] = []
    passed_over: list[str] = []
    for folder in dict.fromkeys(folders):
        try:
            members.append(read_member(folder))
        except (UnreadableError, ShapeError) as why:
            passed_over.append(f"{folder}: {why}")
    return compare(members, passed_over)


def write_report(comparison: Comparison, out: Path) -> list[Path]:
    """Write the page, and of two runs or more the PNG; return the files, the page last."""
    out.parent.mkdir(parents=True, exist_ok=True)
    files = [out]
    if len(comparison.members) > 1:
        png = out.with_suffix(".png")
        names = [group.name for group in comparison.groups]
        draw_panels(comparison.panels(), names, comparison.title, png)
        files = [png, out]
    write_together({out: report_page([m.run for m in comparison.members], comparison)})
    return files


def report_sweep(folders: Sequence[Path], place: Path) -> str:
    """Write the report of a sweep's runs into its folder; return its path as a line.

    Empty where there is nothing to compare, or no run has a picture: `picture=false`.
    """
    if not any(is_drawn(folder / PICTURE) for folder in folders):
        return ""
    comparison = read_runs(folders)
    if len(comparison.members) < 2:
        return ""
    return f"report: {write_report(comparison, place / 'report.html')[-1]}"
