"""`python -m optbench.report RUN…`: one page on chosen run folders, side by side; works from disk, no network."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optbench.boundary import ShapeError, UnreadableError, printable
from optbench.errors import UserError, file_trouble
from optbench.leaderboard.folders import read_run
from optbench.leaderboard.page import report_page
from optbench.leaderboard.write import write_together


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(prog="python -m optbench.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, such as results/runs/*")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)")
    given = parser.parse_args()
    try:
        _write_report(given.runs, given.out)
    except UserError as error:
        sys.exit(f"optbench: {error}")
    except OSError as error:
        sys.exit(f"optbench: {file_trouble(error, '--out FILE') or printable(str(error))}")


def _write_report(folders: Sequence[Path], out: Path) -> None:
    runs = []
    for folder in folders:
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


if __name__ == "__main__":
    main()
