"""`python -m optbench.leaderboard [RESULTS]`: the board of a suite, from run folders and committed entries.

Reads RESULTS/runs (what was run here) and RESULTS/entries (what was contributed), and writes
RESULTS/leaderboard.md, .csv and .html for one suite, RESULTS/leaderboard-SUITE.* where another is
asked for.
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

from optbench.boundary import printable
from optbench.boundary.command_line import Parser
from optbench.errors import UserError, exit_with, nearest
from optbench.launch.local import cores
from optbench.leaderboard import tables
from optbench.leaderboard.board import Board, make_board
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.entries import ENTRIES, Entry, read_entries
from optbench.leaderboard.marks import own_marks
from optbench.leaderboard.page import board_page
from optbench.leaderboard.results_folder import read_results
from optbench.leaderboard.run_line import Run
from optbench.leaderboard.verify import unverified, verify
from optbench.leaderboard.words import words
from optbench.leaderboard.write_together import write_together
from optbench.protocol.suite import FINAL, Suite, known_suites, read_suite


def main() -> None:
    """Parse the command line, and write the board or do what else it says."""
    parser = Parser(
        prog="python -m optbench.leaderboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results", nargs="?", type=Path, default=Path("results"), help="folder (default: results)"
    )
    known = ", ".join(known_suites())
    parser.add_argument(
        "--suite", default="", help=f"{known} or a .yaml (default: the one that has most runs here)"
    )
    parser.add_argument("--out", type=Path, help="folder to write to (default: RESULTS)")
    parser.add_argument(
        "--enter",
        metavar="NAMES",
        help="write these optimizers' runs (or `all`) to RESULTS/entries",
    )
    parser.add_argument(
        "--verify",
        metavar="NAMES",
        nargs="?",
        const="",
        help="re-run these entries (none named: all unverified ones)",
    )
    parser.add_argument(
        "--sample",
        type=_positive,
        metavar="N",
        help="with --verify: N finals an entry, drawn (all)",
    )
    parser.add_argument(
        "--marks", type=Path, help="with --verify: file for the marks (default: one of your own)"
    )
    parser.add_argument(
        "--jobs", type=int, default=cores(), help="with --verify: runs at a time (as many as cores)"
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="log the board as a W&B table too")
    given = parser.parse_args()
    exit_with(lambda: _main(given), "--out DIR")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {printable(text)}")
    return int(text)


def _main(given: argparse.Namespace) -> int:
    began = time.monotonic()
    if not given.results.is_dir():
        where = printable(str(given.results))
        raise UserError(
            f"there is no folder {where}: make runs first, python -m optbench.tune suite=smoke"
        )
    runs, passed_over = read_results(given.results)
    for name, why in passed_over:
        print(printable(f"passed over {name}: {why}"), file=sys.stderr)
    suite = read_suite(given.suite or _usual_suite(runs, given.results))
    if given.verify is not None:
        return _verify(suite, given)
    admitted = admit(suite, runs, unverified(given.results, suite))
    if given.enter:
        return _enter(suite, runs, [e.name for e in admitted.entrants], given)
    board = make_board(suite, admitted)
    board.words[:] = words(board)
    _write(board, given.out or given.results)
    _print(board)
    print(
        f"{len(runs)} runs read, {len(board.standings)} optimizers ranked, in "
        f"{time.monotonic() - began:.1f} s"
    )
    if given.wandb:
        from optbench.record.wandb import log_table

        print(log_table(given.wandb, suite.label, tables.STANDING_COLUMNS, tables.standings(board)))
    for line in board.admitted.alarms:
        print(printable(f"ALARM: {line}"), file=sys.stderr)
    return 3 if board.admitted.alarms else 0


def _usual_suite(runs: list[Run], results: Path) -> str:
    """The one with most runs; those of files that nobody has verified do not choose it."""
    counts = {}
    for name in known_suites():
        doubtful = unverified(results, read_suite(name))
        own = [run for run in runs if run.suite == name]
        counts[name] = (sum(run.local or run.optimizer not in doubtful for run in own), len(own))
    if not any(total for _, total in counts.values()):
        where = printable(str(results))
        raise UserError(
            f"no run of a known suite under {where}: python -m optbench.tune suite=smoke makes some"
        )
    return max(counts, key=counts.__getitem__)


def _write(board: Board, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    stem = "leaderboard" if board.suite.name == "small" else f"leaderboard-{board.suite.name}"
    contents = {
        out / f"{stem}.md": tables.markdown(board),
        out / f"{stem}.csv": tables.comma_separated(board),
        out / f"{stem}.html": board_page(board),
    }
    write_together(contents)
    for path in contents:
        print(printable(str(path)))


def _print(board: Board) -> None:
    console = Console(file=sys.stdout, highlight=False, width=110)
    table = Table(title=f"{board.suite.name}, version {board.suite.version}", title_justify="left")
    for column in tables.STANDING_COLUMNS:
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for line in tables.standings(board):
        table.add_row(*[escape(printable(cell)) for cell in line])
    console.print(table)
    for sentence in board.words:
        console.print(printable(f"- {sentence}"), markup=False)
    for name, why in board.admitted.refused.items():
        console.print(printable(f"not ranked: {name}: {'; '.join(why)}"), markup=False)


def _enter(suite: Suite, runs: list[Run], ranked: list[str], given: argparse.Namespace) -> int:
    """Write one file an optimizer: what a pull request adds."""
    wanted = ranked if given.enter == "all" else [name.strip() for name in given.enter.split(",")]
    for name in wanted:
        if name not in ranked:
            said = printable(name)
            raise UserError(
                f"{said} is not ranked on {suite.label}, so it cannot be entered: see why on the "
                "board"
            )
        own = [
            run
            for run in runs
            if (run.suite, run.version, run.optimizer) == (suite.name, suite.version, name)
        ]
        own.sort(key=lambda run: (run.phase == FINAL, run.task, run.point, run.seed))
        file = given.results / ENTRIES / suite.label / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_together({file: "".join(run.line() + "\n" for run in own)})
        print(printable(str(file)))
    results, named = (shlex.quote(str(word)) for word in (given.results, given.suite or suite.name))
    print(
        f"next: python -m optbench.leaderboard {results} --suite {named} --verify, then commit "
        "entries/"
    )
    return 0


def _verify(suite: Suite, given: argparse.Namespace) -> int:
    entries = _chosen(suite, given)
    with tempfile.TemporaryDirectory(prefix="optbench-verify-") as scratch:
        found = verify(
            suite, entries, given.sample, given.jobs, Path(scratch), given.marks or own_marks()
        )
    for name, checks in found.items():
        for check in checks:
            print(
                printable(
                    f"{name}: {check.name}: {check.verdict} ({check.then:g} then, {check.now:g} "
                    "now)"
                )
            )
    wrong = [
        name
        for name, checks in found.items()
        if not checks or not all(check.agrees for check in checks)
    ]
    told = printable(", ".join(wrong))
    print(
        f"{len(found) - len(wrong)} of {len(found)} entries agree"
        + (f"; not {told}" if wrong else "")
    )
    return 1 if wrong else 0


def _chosen(suite: Suite, given: argparse.Namespace) -> list[Entry]:
    """The entries that are named, or all that no mark speaks for."""
    entries = {entry.optimizer: entry for entry in read_entries(given.results, suite.label)}
    if given.verify == "all":
        return list(entries.values())
    names = [name.strip() for name in given.verify.split(",") if name.strip()] or list(
        unverified(given.results, suite)
    )
    for name in names:
        if name not in entries:
            raise UserError(
                f"{suite.label} has no entry {printable(name)}.{nearest(name, entries)}"
            )
    return [entries[name] for name in names]


if __name__ == "__main__":
    main()
