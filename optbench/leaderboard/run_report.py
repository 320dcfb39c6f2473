"""`python -m optbench.report RUN…`: one page on chosen run folders, side by side; works from disk, no network."""

import sys
from pathlib import Path

from optbench.boundary import ShapeError, UnreadableError, printable
from optbench.boundary.command_line import Parser
from optbench.errors import UserError, exit_with
from optbench.leaderboard.page import report_page
from optbench.leaderboard.run_folders import read_run
from optbench.leaderboard.write_together import write_together


def main() -> None:
    """Parse the command line and write the page."""
    exit_with(_main, "--out FILE")


def _main() -> int:
    parser = Parser(prog="python -m optbench.report", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders, such as results/runs/*"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)"
    )
    given = parser.parse_args()
    if given.out.is_dir():
        raise UserError(f"--out must be a file to write, got the folder {given.out}")
    runs = []
    for folder in given.runs:
        try:
            run = read_run(folder, any_run=True)
        except (UnreadableError, ShapeError) as why:
            print(printable(f"passed over {folder}: {why}"), file=sys.stderr)
        else:
            assert run is not None  # any run is one
            runs.append(run)
    if not runs:
        raise UserError("none of these is a run folder: name some of results/runs/")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_together({given.out: report_page(runs)})
    print(printable(str(given.out)))
    return 0
