"""`python -m optbench.leaderboard [RESULTS]`: the board of a suite, from run folders and committed entries.

Reads RESULTS/runs (what was run here) and RESULTS/entries (what was contributed), and writes
RESULTS/leaderboard.md, .csv and .html for one suite, RESULTS/leaderboard-SUITE.* where another is asked for.
"""

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optbench.arguments import Parser
from optbench.errors import UserError
from optbench.launch import cores
from optbench.leaderboard import tables
from optbench.leaderboard.board import Board, make_board
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.page import board_page
from optbench.leaderboard.runs import ENTRIES, Run, read_results
from optbench.leaderboard.verify import unverified, verify
from optbench.leaderboard.words import words
from optbench.record import folder as record
from optbench.suite import FINAL, Suite, known_suites, read_suite


def main() -> None:
    """Parse the command line, and write the board or do what else it says."""
    parser = Parser(
        prog="python -m optbench.leaderboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder (default: results)")
    known = ", ".join(known_suites())
    parser.add_argument("--suite", default="", help=f"{known} or a .yaml (default: the one that has most runs here)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: RESULTS)")
    parser.add_argument("--enter", metavar="NAMES", help="write these optimizers' runs (or `all`) to RESULTS/entries")
    parser.add_argument("--verify", action="store_true", help="re-run a sample of every contributed entry, and compare")
    parser.add_argument("--sample", type=int, default=1, help="with --verify: final runs an entry (1)")
    parser.add_argument("--jobs", type=int, default=cores(), help="with --verify: runs at a time (as many as cores)")
    parser.add_argument("--wandb", metavar="PROJECT", help="log the board as a W&B table too")
    given = parser.parse_args()
    try:
        sys.exit(_main(given))
    except UserError as error:
        print(f"optbench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _main(given: argparse.Namespace) -> int:
    began = time.monotonic()
    if not given.results.is_dir():
        raise UserError(f"there is no folder {given.results}: make runs first, python -m optbench.tune suite=smoke")
    runs, unreadable = read_results(given.results)
    for name, why in unreadable:
        print(f"passed over {name}: {why}", file=sys.stderr)
    suite = read_suite(given.suite or _usual_suite(runs, given.results))
    if given.verify:
        return _verify(suite, given)
    admitted = admit(suite, runs, unverified(given.results, suite))
    if given.enter:
        return _enter(suite, runs, [e.name for e in admitted.entrants], given)
    board = make_board(suite, admitted)
    board.words[:] = words(board)
    _write(board, given.out or given.results)
    _print(board)
    print(f"{len(runs)} runs read, {len(board.standings)} optimizers ranked, in {time.monotonic() - began:.1f} s")
    if given.wandb:
        from optbench.record.wandb import log_table

        print(log_table(given.wandb, suite.label, tables.STANDING_COLUMNS, tables.standings(board)))
    for line in board.admitted.alarms:
        print(f"ALARM: {line}", file=sys.stderr)
    return 3 if board.admitted.alarms else 0


def _usual_suite(runs: list[Run], results: Path) -> str:
    counts = {name: sum(run.suite == name for run in runs) for name in known_suites()}
    if not any(counts.values()):
        raise UserError(f"no run of a known suite under {results}: python -m optbench.tune suite=smoke makes some")
    return max(counts, key=counts.__getitem__)


def _write(board: Board, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    stem = "leaderboard" if board.suite.name == "small" else f"leaderboard-{board.suite.name}"
    contents = {".md": tables.markdown(board), ".csv": tables.comma_separated(board), ".html": board_page(board)}
    for ending, content in contents.items():
        record.write_whole(out / (stem + ending), content)
        print(out / (stem + ending))


def _print(board: Board) -> None:
    console = Console(file=sys.stdout, highlight=False, width=110)
    table = Table(title=f"{board.suite.name}, version {board.suite.version}", title_justify="left")
    for column in tables.STANDING_COLUMNS:
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for line in tables.standings(board):
        table.add_row(*[escape(cell) for cell in line])
    console.print(table)
    for sentence in board.words:
        console.print(f"- {sentence}", markup=False)
    for name, why in board.admitted.refused.items():
        console.print(f"not ranked: {name}: {'; '.join(why)}", markup=False)


def _enter(suite: Suite, runs: list[Run], ranked: list[str], given: argparse.Namespace) -> int:
    """Write one file an optimizer: what a pull request adds."""
    wanted = ranked if given.enter == "all" else [name.strip() for name in given.enter.split(",")]
    for name in wanted:
        if name not in ranked:
            raise UserError(f"{name} is not ranked on {suite.label}, so it cannot be entered: see why on the board")
        own = [run for run in runs if (run.suite, run.version, run.optimizer) == (suite.name, suite.version, name)]
        own.sort(key=lambda run: (run.phase == FINAL, run.task, run.point, run.seed))
        file = given.results / ENTRIES / suite.label / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        record.write_whole(file, "".join(run.line() + "\n" for run in own))
        print(file)
    results, named = (shlex.quote(str(word)) for word in (given.results, given.suite or suite.name))
    print(
        f"next: python -m optbench.leaderboard {results} --suite {named} --verify, then commit entries/ and the board"
    )
    return 0


def _verify(suite: Suite, given: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="optbench-verify-") as scratch:
        found = verify(suite, given.results, given.sample, given.jobs, Path(scratch))
    for name, checks in found.items():
        for check in checks:
            print(f"{name}: {check.name}: {check.verdict} ({check.then:g} then, {check.now:g} now)")
    wrong = [name for name, checks in found.items() if not checks or not all(check.agrees for check in checks)]
    print(f"{len(found) - len(wrong)} of {len(found)} entries agree" + (f"; not {', '.join(wrong)}" if wrong else ""))
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
