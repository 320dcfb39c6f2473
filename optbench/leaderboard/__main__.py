"""`python -m optbench.leaderboard`: the board of a suite, from run folders and committed entries.

It reads `runs/` (what was run here) and `entries/` (what was contributed) of the results folder.
It writes `leaderboard.md`, `.csv` and `.html` for the suite `small`, and `leaderboard-SUITE.*` for
another.
"""

import shlex
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optbench.boundary import printable
from optbench.boundary.command_line import Command, FilePath, Key, Names
from optbench.boundary.kinds import Count
from optbench.errors import UserError, nearest
from optbench.launch.engines import LOCAL, EngineName, EngineSettings, make_launcher
from optbench.launch.launcher import Launcher, Order
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

UNVERIFIED, ALL = "unverified", "all"


@dataclass(frozen=True)
class Settings:
    """Make the board of a suite, from run folders and committed entries.

    It reads runs/ (what was run here) and entries/ (what was contributed) of the results folder. It
    writes leaderboard.md, .csv and .html for the suite small, leaderboard-SUITE.* for another.
    """

    results_dir: Annotated[
        FilePath, Key("folder that holds runs/ and entries/", was_positional=True)
    ] = Path("results")
    suite: Annotated[
        str | None,
        Key(
            f"{', '.join(known_suites())} or a path to a .yaml; without it the one with most runs",
            placeholder="NAME",
        ),
    ] = None
    out: Annotated[
        FilePath | None, Key("folder to write to; without it results_dir", placeholder="DIR")
    ] = None
    enter: Annotated[
        Names | None,
        Key("write the runs of these optimizers to entries/; all: of all ranked", "NAMES"),
    ] = None
    verify: Annotated[
        Names | None,
        Key(
            "run the finals of these entries again, and mark those that agree; unverified: of all "
            "entries without a mark; all: of all",
            placeholder="NAMES",
            alone=UNVERIFIED,
        ),
    ] = None
    sample: Annotated[
        Count | None,
        Key("with verify: so many finals an entry, drawn; without it all", placeholder="N"),
    ] = None
    marks: Annotated[
        FilePath | None,
        Key("with verify: file of the marks; without it one in your state folder", "FILE"),
    ] = None
    jobs: Annotated[
        Count | None,
        Key("with verify: runs at a time; without it as many as cores", placeholder="N"),
    ] = None
    launcher: EngineName = LOCAL
    launcher_settings: EngineSettings = ()
    config_dir: Annotated[
        FilePath | None, Key("folder of your YAMLs: DIR/launcher/mine.yaml", placeholder="DIR")
    ] = None
    wandb_project: Annotated[
        str | None,
        Key(
            "log the board as a table of this W&B project, too",
            placeholder="PROJECT",
            name="wandb.project",
            option="--wandb",
        ),
    ] = None


COMMAND = Command(
    "optbench.leaderboard",
    Settings,
    examples=(
        "",
        "suite=smoke results_dir=elsewhere out=board",
        "suite=small enter=mine",
        "suite=small verify=unverified",
        "suite=small verify=mine sample=2 jobs=2",
        "suite=small verify=unverified launcher=ray",
    ),
    elsewhere="out=DIR",
)


def main() -> None:
    """Write the board, or do what else the command line says."""
    COMMAND.run(leaderboard)


def leaderboard(settings: Settings) -> int:
    """Write the board, or enter or verify, and return the exit code.

    It is 1 for an alarm, or for an entry that does not agree.
    """
    began = time.monotonic()
    _check(settings)
    results = settings.results_dir
    runs, passed_over = read_results(results)
    for name, why in passed_over:
        print(printable(f"passed over {name}: {why}"), file=sys.stderr)
    suite = read_suite(settings.suite or _usual_suite(runs, results))
    if settings.verify is not None:
        return _verify(suite, settings)
    admitted = admit(suite, runs, unverified(results, suite))
    if settings.enter is not None:
        return _enter(suite, runs, [e.name for e in admitted.entrants], settings)
    board = make_board(suite, admitted)
    board = replace(board, words=words(board))
    _write(board, settings.out or results)
    _print(board)
    print(
        f"{len(runs)} runs read, {len(board.standings)} optimizers ranked, in "
        f"{time.monotonic() - began:.1f} s"
    )
    if settings.wandb_project:
        from optbench.record.wandb import log_table

        columns, rows = tables.STANDING_COLUMNS, tables.standings(board)
        print(log_table(settings.wandb_project, suite.label, columns, rows))
    for line in board.admitted.alarms:
        print(printable(f"ALARM: {line}"), file=sys.stderr)
    return 1 if board.admitted.alarms else 0


def _check(settings: Settings) -> None:
    """Hold the settings against each other, and against what there is."""
    if settings.enter is not None and settings.verify is not None:
        raise UserError("enter and verify are two commands: give one of them")
    for key in ("sample", "marks", "launcher"):
        if getattr(settings, key) not in (None, LOCAL) and settings.verify is None:
            raise UserError(f"{key} is a setting of verify: say verify=NAMES, too")
    if not settings.results_dir.is_dir():
        where = printable(str(settings.results_dir))
        raise UserError(
            f"there is no folder {where}: make runs first, python -m optbench.tune suite=smoke"
        )


def _usual_suite(runs: list[Run], results: Path) -> str:
    """The one with most runs; those of files that nobody has verified do not choose it."""
    counts = {}
    for name in known_suites():
        doubtful = unverified(results, read_suite(name))
        of_suite = [run for run in runs if run.suite == name]
        counts[name] = (
            sum(run.local or run.optimizer not in doubtful for run in of_suite),
            len(of_suite),
        )
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


def _enter(suite: Suite, runs: list[Run], ranked: list[str], settings: Settings) -> int:
    """Write one file an optimizer: what a pull request adds."""
    wanted = settings.enter or ()
    for name in ranked if wanted == (ALL,) else wanted:
        if name not in ranked:
            said = printable(name)
            raise UserError(
                f"{said} is not ranked on {suite.label}, so it cannot be entered: see why on the "
                "board"
            )
        entered = [
            run
            for run in runs
            if (run.suite, run.version, run.optimizer) == (suite.name, suite.version, name)
        ]
        entered.sort(key=lambda run: (run.phase == FINAL, run.task, run.point, run.seed))
        file = settings.results_dir / ENTRIES / suite.label / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_together({file: "".join(run.line() + "\n" for run in entered)})
        print(printable(str(file)))
    suite_name = shlex.quote(settings.suite or suite.name)
    results = shlex.quote(str(settings.results_dir))
    print(
        f"next: python -m optbench.leaderboard suite={suite_name} results_dir={results} "
        f"verify={UNVERIFIED}, then commit entries/"
    )
    return 0


def _verify(suite: Suite, settings: Settings) -> int:
    entries = _chosen(suite, settings)
    marks = settings.marks or own_marks()
    # a cluster sees the results folder more likely than this machine's temporary files
    where = None if settings.launcher == LOCAL else settings.results_dir
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=where) as scratch:
        launcher = _launcher(settings, Path(scratch))
        verified = verify(suite, entries, settings.sample, launcher, Path(scratch), marks)
    for name, checks in verified.items():
        for check in checks:
            numbers = f"{check.then:g} then, {check.now:g} now"
            print(printable(f"{name}: {check.name}: {check.verdict} ({numbers})"))
    wrong = [
        name
        for name, checks in verified.items()
        if not checks or not all(check.agrees for check in checks)
    ]
    agreed = f"{len(verified) - len(wrong)} of {len(verified)} entries agree"
    print(agreed + (f"; not {printable(', '.join(wrong))}" if wrong else ""))
    return 1 if wrong else 0


def _launcher(settings: Settings, scratch: Path) -> Launcher:
    order = Order(results=scratch, state=scratch, jobs=settings.jobs)
    return make_launcher(settings.launcher, settings.launcher_settings, order, settings.config_dir)


def _chosen(suite: Suite, settings: Settings) -> list[Entry]:
    """Return the entries that are to be run again."""
    entries = {entry.optimizer: entry for entry in read_entries(settings.results_dir, suite.label)}
    names = settings.verify or ()
    if names == (ALL,):
        names = tuple(entries)
    elif names == (UNVERIFIED,):
        names = tuple(unverified(settings.results_dir, suite))
    for name in names:
        if name not in entries:
            raise UserError(
                f"{suite.label} has no entry {printable(name)}.{nearest(name, entries)}"
            )
    return [entries[name] for name in names]


if __name__ == "__main__":
    main()
