"""`python -m optbench.report RUN ...`: one page on chosen run folders.

It works from disk, without a network.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from optbench.boundary import ShapeError, UnreadableError, printable
from optbench.boundary.command_line import Command, FilePath, Key
from optbench.errors import UserError
from optbench.leaderboard.page import report_page
from optbench.leaderboard.run_folders import read_run
from optbench.leaderboard.write_together import write_together


@dataclass(frozen=True)
class Settings:
    """Write one page on chosen run folders, side by side; it works from disk, without a network."""

    runs: Annotated[
        tuple[Path, ...],
        Key("run folders, such as results/runs/*", placeholder="RUN", positional=True),
    ]
    out: Annotated[FilePath, Key("file to write")] = Path("report.html")


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
    runs = []
    for folder in settings.runs:
        try:
            run = read_run(folder, any_run=True)
        except (UnreadableError, ShapeError) as why:
            print(printable(f"passed over {folder}: {why}"), file=sys.stderr)
        else:
            assert run is not None  # any run is one
            runs.append(run)
    if not runs:
        raise UserError("none of these is a run folder: name some of results/runs/")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_together({out: report_page(runs)})
    print(printable(str(out)))
    return 0
