"""`python -m optbench.study NAME`: make the missing runs of a study, and say what they show."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from rich.table import Table

from optbench.boundary.command_line import Command, FilePath, Key, Names, Seconds
from optbench.boundary.kinds import Count
from optbench.errors import UserError, nearest, printable
from optbench.launch.index import INDEX
from optbench.launch.launcher import RUN_SECONDS
from optbench.launch.local import LocalLauncher, cores
from optbench.launch.runs import Runs
from optbench.studies import atlas_picture as picture
from optbench.studies import edge_atlas
from optbench.studies import lr_choice as choice
from optbench.studies.atlas_entries import ATLAS, CHOICE_SEED, SEEDS, Entry


@dataclass(frozen=True)
class Settings:
    """Make the runs of a study, those that are missing, and say what they show.

    edge_atlas: measured/threshold of every optimizer whose edge of stability is known.
    """

    study: Annotated[
        Literal["edge_atlas"],
        Key("the study", placeholder="NAME", positional=True),
    ]
    short: Annotated[bool, Key("one seed, half the steps: minutes on two cores")] = False
    choose: Annotated[bool, Key("try every learning rate, and say which the rule takes")] = False
    seeds: Annotated[
        Count | None,
        Key(f"number of seeds; without it {len(SEEDS)}, in the short form 1", placeholder="N"),
    ] = None
    only: Annotated[Names, Key("entries of the table to keep; without it all", "NAMES")] = ()
    jobs: Annotated[Count, Key("runs at a time, a thread each; as many as cores")] = field(
        default_factory=cores
    )
    run_seconds: Annotated[
        Seconds, Key("a run that takes longer is stopped and has failed; the others go on")
    ] = RUN_SECONDS
    results_dir: Annotated[FilePath, Key("folder of the runs and the tables")] = Path("results")


COMMAND = Command(
    "optbench.study",
    Settings,
    examples=(
        "edge_atlas",
        "edge_atlas short=true jobs=2 results_dir=elsewhere",
        "edge_atlas only=Adam,Nesterov choose=true",
    ),
)


def main() -> None:
    """Do the study that the command line names; exit code 1 if a run failed."""
    COMMAND.run(study)


def study(settings: Settings) -> int:
    """Do the study, and return the exit code."""
    entries = _entries(settings.only)
    jobs, results, run_seconds = settings.jobs, settings.results_dir, settings.run_seconds
    if settings.choose:
        failures = do_choice(entries, jobs, results, "edge_atlas_rates", run_seconds)
    else:
        seeds = range(1, 1 + (settings.seeds or (1 if settings.short else len(SEEDS))))
        name = "edge_atlas_short" if settings.short else "edge_atlas"
        failures = do_atlas(entries, seeds, settings.short, jobs, results, name, run_seconds)
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures else 0


def _entries(only: Sequence[str]) -> list[Entry]:
    """Return the entries of the atlas that are asked for and can be run with what is installed."""
    known = [entry.name for entry in ATLAS]
    for name in only:
        if name not in known:
            raise UserError(
                f"there is no entry called {printable(name)}.{nearest(name, known)} Known: "
                f"{', '.join(known)}"
            )
    wanted = [entry for entry in ATLAS if not only or entry.name in only]
    for entry in wanted:
        if not entry.available:
            print(
                f"left out: {entry.name} needs {entry.needs}: pip install {entry.needs}",
                file=sys.stderr,
            )
    return [entry for entry in wanted if entry.available]


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
    every = [command for of_entry in commands.values() for command in of_entry]
    runs = make_runs(every, jobs, results, folder, run_seconds)
    rows = []
    for entry in entries:
        folders = map(runs.folder, commands[entry.name])
        rows.append(edge_atlas.read_row(entry, [path for path in folders if path is not None]))
    edge_atlas.write(rows, folder)
    picture.draw(rows, folder / edge_atlas.PICTURE)
    _print(rows, folder)
    return runs.failures


def do_choice(
    entries: Sequence[Entry], jobs: int, results: Path, name: str, run_seconds: float = RUN_SECONDS
) -> list[str]:
    """Try every learning rate of every entry on the seed for that; write what the rule takes."""
    commands = {(e.name, lr): e.command(lr, CHOICE_SEED) for e in entries for lr in e.lrs}
    folder = results / "studies" / name
    runs = make_runs(list(commands.values()), jobs, results, folder, run_seconds)
    tried = {
        e.name: [
            choice.read_tried(e, lr, path)
            for lr in e.lrs
            if (path := runs.folder(commands[e.name, lr])) is not None
        ]
        for e in entries
    }
    choice.write([t for own in tried.values() for t in own], folder / choice.TABLE)
    for entry in entries:
        rates = "  ".join(
            f"{t.lr:g}: {t.arrival:.3f}{'' if t.admissible else ' (no)'}" for t in tried[entry.name]
        )
        chosen = choice.choose(tried[entry.name])
        taken = "none" if chosen is None else f"{chosen:g}"
        print(
            f"{entry.name:32} takes {taken:8} "
            f"{'' if chosen == entry.lr else f'(atlas: {entry.lr:g}) '}of {rates}"
        )
    print(folder / choice.TABLE)
    return runs.failures


def make_runs(
    commands: Sequence[list[str]],
    jobs: int,
    results: Path,
    folder: Path,
    run_seconds: float = RUN_SECONDS,
) -> Runs:
    """Run the main job with each list of overrides that has no finished run yet.

    Raises:
        UserError: If the data of a finished run have changed since.
    """
    launcher = LocalLauncher(
        jobs,
        threads=1,
        results=results,
        where=["device=cpu"],
        claims=folder / "claims",
        seconds=run_seconds,
    )
    with Runs(launcher, results, folder / INDEX, len(commands)) as runs:
        runs.make(folder.name, commands)
    return runs


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
