"""`python -m optbench.study NAME`: make the runs of a study, those that are missing, and say what they show."""

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.table import Table

from optbench.boundary.command_line import Parser
from optbench.cli.finished import PresentData
from optbench.errors import exit_with
from optbench.launch.local import RUN_SECONDS, cores, launch
from optbench.record import folder as record
from optbench.record.terminal import ManyRuns
from optbench.studies import atlas_picture as picture
from optbench.studies import edge_atlas
from optbench.studies import lr_choice as choice
from optbench.studies.atlas_entries import ATLAS, CHOICE_SEED, SEEDS, Entry

# the folder of every command that has been given: finished ones are not given again
RUNS = "runs.json"


def main() -> None:
    """Do the study that the command line names; exit code 1 if a run failed, 2 if something cannot be as asked."""
    exit_with(_main, "--results-dir DIR")


def _main() -> int:
    parser = Parser(prog="python -m optbench.study", description=__doc__)
    parser.add_argument(
        "study", choices=["edge_atlas"], help="edge_atlas: measured/threshold of every optimizer"
    )
    parser.add_argument(
        "--short", action="store_true", help="one seed, half the steps: minutes on two cores"
    )
    parser.add_argument(
        "--choose",
        action="store_true",
        help="try every learning rate, and say which the rule takes",
    )
    parser.add_argument(
        "--seeds", type=int, default=None, help=f"number of seeds ({len(SEEDS)}; short form 1)"
    )
    parser.add_argument(
        "--only", default="", help="names of the table to keep, separated by commas"
    )
    parser.add_argument("--jobs", type=int, default=cores(), help="runs at a time, a thread each")
    parser.add_argument(
        "--run-seconds", type=float, default=RUN_SECONDS, help="a run that takes longer is stopped"
    )
    parser.add_argument(
        "--results-dir", type=Path, default=Path("results"), help="where runs and tables go"
    )
    given = parser.parse_args()
    wanted = [name.strip() for name in given.only.split(",") if name.strip()]
    if unknown := set(wanted) - {e.name for e in ATLAS}:
        parser.error(
            f"no entry called {', '.join(sorted(unknown))}. Known: "
            f"{', '.join(e.name for e in ATLAS)}"
        )
    entries = [e for e in ATLAS if not wanted or e.name in wanted]
    count = given.seeds if given.seeds is not None else 1 if given.short else len(SEEDS)
    if not given.run_seconds > 0:
        parser.error(f"--run-seconds must be positive, got {given.run_seconds:g}")
    if count < 1 or given.jobs < 1:
        parser.error(f"--seeds and --jobs must be positive, got {count} and {given.jobs}")
    for entry in entries:
        if not entry.available:
            print(
                f"left out: {entry.name} needs {entry.needs}: pip install {entry.needs}",
                file=sys.stderr,
            )
    entries = [e for e in entries if e.available]
    if given.choose:
        failures = do_choice(
            entries, given.jobs, given.results_dir, "edge_atlas_rates", given.run_seconds
        )
    else:
        name = "edge_atlas_short" if given.short else "edge_atlas"
        seeds = range(1, count + 1)
        failures = do_atlas(
            entries, seeds, given.short, given.jobs, given.results_dir, name, given.run_seconds
        )
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures else 0


def do_atlas(
    entries: Sequence[Entry],
    seeds: Iterable[int],
    short: bool,
    jobs: int,
    results: Path,
    name: str,
    run_seconds: float = RUN_SECONDS,
) -> list[str]:
    """Make the runs, write and print the table, and return what went wrong, a line each."""
    commands = {e.name: [e.command(e.lr, seed, short) for seed in seeds] for e in entries}
    folder = results / "studies" / name
    folders, failures = make_runs(
        [c for own in commands.values() for c in own], jobs, results, folder, run_seconds
    )
    rows = []
    for entry in entries:
        own = (folders.get(" ".join(command)) for command in commands[entry.name])
        rows.append(edge_atlas.read_row(entry, [path for path in own if path is not None]))
    edge_atlas.write(rows, folder)
    picture.draw(rows, folder / edge_atlas.PICTURE)
    _print(rows, folder)
    return failures


def do_choice(
    entries: Sequence[Entry], jobs: int, results: Path, name: str, run_seconds: float = RUN_SECONDS
) -> list[str]:
    """Try every learning rate of every entry on the seed for that, write and print what the rule takes."""
    commands = {(e.name, lr): e.command(lr, CHOICE_SEED) for e in entries for lr in e.lrs}
    folder = results / "studies" / name
    folders, failures = make_runs(list(commands.values()), jobs, results, folder, run_seconds)
    known = {key: folders[" ".join(c)] for key, c in commands.items() if " ".join(c) in folders}
    tried = {
        e.name: [
            choice.read_tried(e, lr, known[e.name, lr]) for lr in e.lrs if (e.name, lr) in known
        ]
        for e in entries
    }
    choice.write([t for own in tried.values() for t in own], folder / choice.TABLE)
    for entry in entries:
        rates = "  ".join(
            f"{t.lr:g}: {t.arrival:.3f}{'' if t.admissible else ' (no)'}" for t in tried[entry.name]
        )
        found = choice.choose(tried[entry.name])
        taken = "none" if found is None else f"{found:g}"
        print(
            f"{entry.name:32} takes {taken:8} "
            f"{'' if found == entry.lr else f'(atlas: {entry.lr:g}) '}of {rates}"
        )
    print(folder / choice.TABLE)
    return failures


def make_runs(
    commands: Sequence[list[str]],
    jobs: int,
    results: Path,
    folder: Path,
    run_seconds: float = RUN_SECONDS,
) -> tuple[dict[str, Path], list[str]]:
    """Run the main job with each list of overrides that has no finished run yet.

    Returns:
        The run folder of every command that has one, by the command in one line; and the failures.

    Raises:
        UserError: If the data of a finished run have changed since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {
        command: Path(path) for command, path in (record.read_json(folder / RUNS) or {}).items()
    }
    present, missing = PresentData(), []
    for command in commands:
        path = known.get(" ".join(command))
        if path is not None and record.read_finished(path):
            present.check_command(path, command)
        else:
            missing.append(command)
    failures: list[str] = []
    with ManyRuns(len(commands), done=len(commands) - len(missing)) as shown:
        shown.begin(folder.name)
        runs = launch(
            missing,
            jobs,
            threads=1,
            results=results,
            where=["device=cpu"],
            claims=folder / "claims",
            seconds=run_seconds,
            say=shown.say,
        )
        with closing(runs):
            for done in runs:
                line = " ".join(done.overrides)
                if done.folder is None:
                    failures.append(f"failed: python -m optbench {line}: {done.why}")
                else:
                    known[line] = done.folder
                    content = json.dumps({k: str(p) for k, p in known.items()}, indent=2)
                    record.write_whole(folder / RUNS, content + "\n")
                shown.advance()
    return known, failures


def _print(rows: Sequence[edge_atlas.Row], folder: Path) -> None:
    table = Table(title="measured / threshold, second half of the run", title_justify="left")
    for column in edge_atlas.COLUMNS[:-1]:  # a terminal has no room for why
        table.add_column(
            column, justify="left" if column in ("optimizer", "measured", "verdict") else "right"
        )
    for row in rows:
        table.add_row(*edge_atlas.cells(row)[:-1])
    Console(file=sys.stdout, width=110).print(table)
    for name in (edge_atlas.PICTURE, edge_atlas.PAGE, edge_atlas.TABLE):
        print(folder / name)
