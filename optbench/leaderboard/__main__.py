"""`python -m optbench.leaderboard`: the board of a suite, from run folders and committed entries.

It reads `runs/` (what was run here) and `entries/` (what was contributed) of the results folder.
It writes `leaderboard.md`, `.csv` and `.html` for the suite `small`, and `leaderboard-SUITE.*` for
another.
"""

import gc
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optbench.boundary import printable
from optbench.boundary.command_line import Command, FilePath, Key, Names
from optbench.boundary.counting import agreeing, counted
from optbench.boundary.kinds import Count
from optbench.errors import UserError, nearest
from optbench.launch.engines import LOCAL, EngineName, EngineSettings, make_launcher
from optbench.launch.launcher import Launcher, Order
from optbench.leaderboard import tables, untuned_tables
from optbench.leaderboard.board import Board, make_board
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.entries import ENTRIES, Entry, read_entries
from optbench.leaderboard.marks import own_marks
from optbench.leaderboard.page import board_page
from optbench.leaderboard.results_folder import read_folders, read_results
from optbench.leaderboard.run_line import Run
from optbench.leaderboard.tuned import read_more_points
from optbench.leaderboard.untuned import Comparison, compare_runs
from optbench.leaderboard.verify import unverified, verify
from optbench.leaderboard.words import words
from optbench.leaderboard.write_together import write_together
from optbench.protocol.suite import FINAL, Suite, known_suites, read_suite
from optbench.record.terminal import say, show_table

UNVERIFIED, ALL, NONE = "unverified", "all", "none"
MOST_PRINTED = 10  # problems, and runs left out, that a comparison prints


@dataclass(frozen=True)
class Settings:
    """Make the board of a suite, from run folders and committed entries; or compare any runs.

    It reads runs/ (what was run here) and entries/ (what was contributed) of the results folder. It
    writes leaderboard.md, .csv and .html for the suite small, leaderboard-SUITE.* for another.
    Where no run is of a suite, or with suite=none, it compares the runs of each problem and budget,
    paired by seed, and writes comparison.md, .csv and .html: nothing is tuned there.
    """

    results_dir: Annotated[
        FilePath, Key("folder that holds runs/ and entries/", was_positional=True)
    ] = Path("results")
    suite: Annotated[
        str | None,
        Key(
            f"{', '.join(known_suites())} or a path to a .yaml; none: compare all runs as they "
            "are; without it the one with most runs",
            placeholder="NAME",
        ),
    ] = None
    metric: Annotated[
        str | None,
        Key(
            "with suite=none: what is compared at the last step, less is better; without it "
            "test/loss, or train/loss where there is none",
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
        "suite=none metric=test/error",
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
    if settings.suite == NONE:
        return _compare(settings, began)
    runs, passed_over, of_no_suite = read_results(results)
    gc.freeze()  # what has been read stays to the end: no collection walks it again
    name = settings.suite or _usual_suite(runs, results)
    if name is None:
        return _compare(settings, began)
    _check_metric(settings, name)
    _tell(passed_over)
    suite = read_suite(name)
    if settings.verify is not None:
        return _verify(suite, settings)
    if not any(run.suite == suite.name for run in runs):
        raise UserError(_no_run_of(suite, settings, of_no_suite))
    admitted = admit(suite, runs, unverified(results, suite))
    others = _of_no_suite(of_no_suite)
    _tell(others)
    admitted.left_out = [*passed_over, *others]
    if settings.enter is not None:
        return _enter(suite, runs, [e.name for e in admitted.entrants], settings)
    board = make_board(suite, admitted)
    board = replace(board, words=words(board, read_more_points(results, suite)))
    _write(board, settings.out or results)
    _print(board)
    print(
        f"{counted(_of(suite, runs), 'run')} of {suite.label} read, "
        f"{counted(len(board.standings), 'optimizer')} ranked, in "
        f"{time.monotonic() - began:.1f} s"
    )
    if settings.wandb_project:
        from optbench.record.wandb import log_table

        columns, rows = tables.STANDING_COLUMNS, tables.standings(board)
        print(log_table(settings.wandb_project, suite.label, columns, rows))
    for line in board.admitted.alarms:
        print(printable(f"ALARM: {line}"), file=sys.stderr)
    return 1 if board.admitted.alarms else 0


def _of(suite: Suite, runs: list[Run]) -> int:
    """Number of runs of a suite in its present version: those of others are read too."""
    return sum(run.label == suite.label for run in runs)


def _no_run_of(suite: Suite, settings: Settings, of_no_suite: int) -> str:
    """Why there is no board, and the way out."""
    if of_no_suite:
        way_out = f"suite=none compares the {counted(of_no_suite, 'run')} of no suite"
    else:
        way_out = f"python -m optbench.tune suite={settings.suite} makes some"
    return printable(f"no run of {suite.label} under {settings.results_dir}: {way_out}")


def _of_no_suite(count: int) -> list[tuple[str, str]]:
    """Runs that a board leaves out, and what compares them."""
    they = agreeing(count, "it", "them")
    said = (f"{counted(count, 'run')} of no suite", f"suite=none compares {they}")
    return [said] if count else []


def _tell(passed_over: Iterable[tuple[str, str]]) -> None:
    for name, why in passed_over:
        print(printable(f"passed over {name}: {why}"), file=sys.stderr)


def _compare(settings: Settings, began: float) -> int:
    """Compare runs of no suite, and return the exit code."""
    for key in ("enter", "verify"):
        if getattr(settings, key) is not None:
            raise UserError(f"{key} is for the runs of a suite: say suite=NAME, too")
    runs, passed_over = read_folders(settings.results_dir, any_run=True)
    _tell(passed_over)
    comparison = replace(compare_runs(runs, settings.metric), passed_over=passed_over)
    if not comparison.groups:
        where = printable(str(settings.results_dir))
        raise UserError(
            f"no finished run under {where}: python -m optbench --multirun optimizer=sgd,adam "
            "seed=0,1,2 makes some"
        )
    out = settings.out or settings.results_dir
    _put(
        {
            out / "comparison.md": untuned_tables.markdown(comparison),
            out / "comparison.csv": untuned_tables.comma_separated(comparison),
            out / "comparison.html": untuned_tables.page(comparison),
        }
    )
    _print_comparison(comparison)
    print(f"{counted(len(runs), 'run')} read, in {time.monotonic() - began:.1f} s")
    if settings.wandb_project:
        from optbench.record.wandb import log_table

        for group in comparison.groups:
            head, rows = untuned_tables.columns(group), untuned_tables.rows(group)
            print(log_table(settings.wandb_project, group.title, head, rows))
    return 0


def _print_comparison(comparison: Comparison) -> None:
    console = Console(file=sys.stdout, highlight=False, width=console_width())
    console.print(printable(comparison.title), markup=False)
    for group in comparison.groups[:MOST_PRINTED]:
        head = ["rank", "may be", "optimizer", "seeds", group.metric]
        table = Table()
        for column in head:
            table.add_column(
                escape(printable(column)), justify="left" if column == "optimizer" else "right"
            )
        for line in untuned_tables.rows(group):
            table.add_row(*[escape(printable(cell)) for cell in line[: len(head)]])
        console.print(printable(group.title), style="italic", markup=False)
        show_table(table, width=110)
        for said in group.said:
            console.print(printable(f"- {said}"), markup=False)
    if (more := len(comparison.groups) - MOST_PRINTED) > 0:
        console.print(f"and {more} more problems: see comparison.md")
    for name, why in list(comparison.left_out.items())[:MOST_PRINTED]:
        console.print(printable(f"left out: {name}: {why}"), markup=False)
    if (more := len(comparison.left_out) - MOST_PRINTED) > 0:
        console.print(f"and {more} more left out: see comparison.md")


def console_width() -> int:
    """Columns of the terminal, at most 110; 110 where the output goes to a file."""
    return min(110, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 110


def _check(settings: Settings) -> None:
    """Hold the settings against each other, and against what there is."""
    _check_metric(settings, settings.suite or NONE)
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


def _check_metric(settings: Settings, suite: str) -> None:
    if settings.metric is not None and suite != NONE:
        raise UserError(
            f"metric is a setting of suite=none: suite={printable(suite)} says what it ranks by"
        )


def _usual_suite(runs: list[Run], results: Path) -> str | None:
    """The one with most runs, None if there are none.

    Those of files that nobody has verified do not choose it.
    """
    counts = {}
    for name in known_suites():
        of_suite = [run for run in runs if run.suite == name]
        doubtful = unverified(results, read_suite(name)) if of_suite else {}
        counts[name] = (
            sum(run.local or run.optimizer not in doubtful for run in of_suite),
            len(of_suite),
        )
    return max(counts, key=counts.__getitem__) if any(n for _, n in counts.values()) else None


def _write(board: Board, out: Path) -> None:
    stem = "leaderboard" if board.suite.name == "small" else f"leaderboard-{board.suite.name}"
    _put(
        {
            out / f"{stem}.md": tables.markdown(board),
            out / f"{stem}.csv": tables.comma_separated(board),
            out / f"{stem}.html": board_page(board),
        }
    )


def _put(contents: Mapping[Path, str]) -> None:
    for path in contents:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_together(contents)
    for path in contents:
        print(printable(str(path)))


def _print(board: Board) -> None:
    table = Table()
    for column in tables.STANDING_COLUMNS:
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for line in tables.standings(board):
        table.add_row(*[escape(printable(cell)) for cell in line])
    title = f"{board.suite.name}, version {board.suite.version}"
    show_table(table, title, width=110, all_in="the page")
    for sentence in board.words:
        say(printable(f"- {sentence}"))
    for name, why in board.admitted.refused.items():
        say(printable(f"not ranked: {name}: {'; '.join(why)}"))


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
    right = len(verified) - len(wrong)
    agreed = f"{right} of {counted(len(verified), 'entry')} {agreeing(right, 'agrees', 'agree')}"
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
            said = printable(name)
            raise UserError(
                f"{suite.label} has no entry {said}: enter={said} makes one of the runs here."
                f"{nearest(name, entries)}"
            )
    return [entries[name] for name in names]


if __name__ == "__main__":
    main()
