"""`python -m optbench.study NAME`: make the missing runs of a study, and say what they show."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rich.table import Table

from optbench.boundary.command_line import Command, FilePath, Key, Names
from optbench.boundary.kinds import Count
from optbench.errors import UserError, nearest, printable
from optbench.launch.engines import LOCAL, EngineName, EngineSettings, RunSeconds, make_launcher
from optbench.launch.index import INDEX
from optbench.launch.launcher import RUN_SECONDS, Launcher, Order
from optbench.launch.runs import Runs
from optbench.processes import cores
from optbench.record.terminal import say, show_table
from optbench.studies import lr_choice as choice
from optbench.studies import overview, phase
from optbench.studies.atlas_entries import Atlas, Entry, read_atlas
from optbench.studies.conduct import TABLE, conduct, write_table
from optbench.studies.declaration import known_studies, read_study
from optbench.studies.frame import Size
from optbench.studies.verdict_page import PAGE


@dataclass(frozen=True)
class Settings:
    """Make the runs of a study, those that are missing, and say what they show.

    phase: distance to the edge, error, gap and divergence over any two settings.
    all: every study that a YAML declares, one after the other, and the overview.
    overview: all verdicts on one page, RESULTS/studies/README.md and index.html.
    list: every study that a YAML declares, yours too, with its question and its cost.

    A study is declared in conf/study/NAME.yaml before it runs: hypotheses, expected signs, smallest
    effects, statistics and rules. Its verdict is computed by them, and written with its table and
    its figures to RESULTS/studies/NAME.
    """

    study: Annotated[str, Key("the study", placeholder="NAME", positional=True)]
    size: Annotated[
        Size, Key("smoke (minutes), small (under an hour on two cores), full (a GPU)")
    ] = "small"
    choose: Annotated[
        bool,
        Key("edge_atlas: try every entry's learning rates instead, and say which the rule takes"),
    ] = False
    only: Annotated[
        Names, Key("edge_atlas choose=true: entries to try; without it all", "NAMES")
    ] = ()
    seeds: Annotated[Count | None, Key("phase: number of seeds; without it 2", placeholder="N")] = (
        None
    )
    x: Annotated[str, Key("phase: key of the horizontal axis", placeholder="KEY")] = "optimizer.lr"
    y: Annotated[str, Key("phase: key of the vertical axis", placeholder="KEY")] = "batch_size"
    xs: Annotated[Names, Key("phase: values of x", "VALUES")] = ()
    ys: Annotated[Names, Key("phase: values of y", "VALUES")] = ()
    run: Annotated[tuple[str, ...], Key("phase: a setting of every run", below=True)] = ()
    jobs: Annotated[
        Count | None,
        Key(
            "runs at a time, a thread each, and processes that measure here; without it as many as "
            "cores, and runs as a cluster has room for",
            placeholder="N",
        ),
    ] = None
    launcher: EngineName = LOCAL
    launcher_settings: EngineSettings = ()
    run_seconds: RunSeconds = RUN_SECONDS
    results_dir: Annotated[FilePath, Key("folder of the runs and the tables")] = Path("results")
    config_dir: Annotated[
        FilePath | None, Key("folder of your YAMLs: DIR/study/mine.yaml", placeholder="DIR")
    ] = None


COMMAND = Command(
    "optbench.study",
    Settings,
    examples=(
        "which_property size=smoke",
        "one_slope jobs=2",
        "one_slope launcher=slurm launcher.minutes=30",
        "edge_atlas size=smoke jobs=2 results_dir=elsewhere",
        "phase x=optimizer.lr y=batch_size run.task=digits run.steps=500",
    ),
)

Engine = Callable[[Path], Launcher]
"""Folder of a study → what makes its runs."""

OWN_KEYS = {
    "edge_atlas": ("choose", "only"),
    "phase": ("seeds", "x", "y", "xs", "ys", "run"),
}
"""Keys that one study alone has."""


def main() -> None:
    """Do the study that the command line names; exit code 1 if a run failed."""
    COMMAND.run(study)


def study(settings: Settings) -> int:
    """Do the study, and return the exit code."""
    _refuse_keys_of_others(settings)
    if settings.only and not settings.choose:
        raise UserError("only= goes with choose=true: a study is of all its entries")
    if settings.choose:
        failures = _choose(settings)
    elif settings.study == "list":
        failures = _list(settings.config_dir)
    elif settings.study == "phase":
        failures = do_phase(settings)
    elif settings.study == "overview":
        failures = _overview(settings)
    elif settings.study == "all":
        failures = _all(settings)
    else:
        failures = _declared(settings)
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures else 0


def _refuse_keys_of_others(settings: Settings) -> None:
    own = OWN_KEYS.get(settings.study, ())
    for name, keys in OWN_KEYS.items():
        for key in keys:
            if (
                key not in own
                and getattr(settings, key) != Settings.__dataclass_fields__[key].default
            ):
                raise UserError(f"{key}= is of the study {name}, not of {settings.study}")


def _choose(settings: Settings) -> list[str]:
    atlas = read_atlas()
    entries = _entries(atlas, settings.only)
    return do_choice(atlas, entries, engine_of(settings), settings.results_dir, "edge_atlas_rates")


def _list(config_dir: Path | None) -> list[str]:
    for name in known_studies(config_dir):
        declaration = read_study(name, config_dir).study.declaration
        cost = declaration.cost.get("small", "")
        say(f"{name} ({declaration.direction}): {declaration.title}")
        say(f"    {' '.join(declaration.question.split())}")
        if cost:
            say(f"    size=small: {cost}")
    return []


def _overview(settings: Settings) -> list[str]:
    for path in overview.write(settings.results_dir / "studies", settings.config_dir):
        print(path)
    return []


def _all(settings: Settings) -> list[str]:
    """Do every declared study; one that cannot be done does not stop the others."""
    failures, names = [], known_studies(settings.config_dir)
    for i, name in enumerate(names, 1):
        print(f"study {i} of {len(names)}: {name}")
        try:
            failures += _declared(replace(settings, study=name))
        except UserError as why:
            failures.append(f"{name}: {why}")
    return failures + _overview(settings)


def _declared(settings: Settings) -> list[str]:
    """Do a study that a YAML declares."""
    declared = read_study(settings.study, settings.config_dir)
    folder = settings.results_dir / "studies"
    outcome = conduct(
        declared,
        settings.size,
        engine_of(settings)(folder),
        settings.results_dir,
        settings.jobs or cores(),
        config_dir=settings.config_dir,
    )
    table = Table("hypothesis", "verdict", "estimate", "interval", "n")
    for finding in outcome.findings:
        ends = f"{finding.estimate.low:.3g} to {finding.estimate.high:.3g}"
        value = f"{finding.estimate.value:.3g}"
        table.add_row(finding.hypothesis, finding.verdict, value, ends, str(finding.n))
    show_table(table, declared.name, width=100)
    print(outcome.folder / PAGE)
    return list(outcome.failures)


def do_phase(settings: Settings) -> list[str]:
    """Make the runs of a phase diagram, draw it and write its table."""
    x = phase.Axis.of(settings.x, settings.xs, "x")
    y = phase.Axis.of(settings.y, settings.ys, "y")
    cells = phase.plan(x, y, settings.run, settings.seeds or 2)
    words = " ".join(settings.run)
    digest = hashlib.sha256(f"{words} {x} {y}".encode()).hexdigest()[:8]
    folder = settings.results_dir / "studies" / f"phase-{digest}"
    commands = [list(cell.command) for cell in cells]
    runs = make_runs(commands, engine_of(settings), settings.results_dir, folder)
    rows = [
        phase.read(cell, path)
        for cell in cells
        if (path := runs.folder(list(cell.command))) is not None
    ]
    write_table(folder / TABLE, rows)
    seeds = settings.seeds or 2
    over = f"medians over {seeds} seeds" if seeds > 1 else "one seed"
    title = f"{words or 'the default run'}: {over}"
    name = phase.draw(rows, x, y, title, folder / "phase")
    for line in phase.told(rows, x, y):
        say(line)
    for path in (folder / f"{name}.png", folder / TABLE):
        print(path)
    return runs.failures


def _entries(atlas: Atlas, only: Sequence[str]) -> list[Entry]:
    """Return the entries of the atlas that are asked for and can be run with what is installed."""
    known = [entry.name for entry in atlas.entries]
    for name in only:
        if name not in known:
            raise UserError(
                f"there is no entry called {printable(name)}.{nearest(name, known)} Known: "
                f"{', '.join(known)}"
            )
    wanted = [entry for entry in atlas.entries if not only or entry.name in only]
    for entry in wanted:
        if not entry.available:
            print(
                f"left out: {entry.name} needs {entry.needs}: pip install {entry.needs}",
                file=sys.stderr,
            )
    return [entry for entry in wanted if entry.available]


def do_choice(
    atlas: Atlas,
    entries: Sequence[Entry],
    engine: Engine,
    results: Path,
    name: str,
) -> list[str]:
    """Try every learning rate of every entry on the seed for that; write what the rule takes."""
    commands = {
        (e.name, lr): atlas.command(e, lr, atlas.choice_seed, atlas.choice_steps)
        for e in entries
        for lr in e.lrs
    }
    folder = results / "studies" / name
    runs = make_runs(list(commands.values()), engine, results, folder)
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


def make_runs(commands: Sequence[list[str]], engine: Engine, results: Path, folder: Path) -> Runs:
    """Run the main job with each list of overrides that has no finished run yet.

    Raises:
        UserError: If the data of a finished run have changed since.
    """
    with Runs(engine(folder), results, folder / INDEX, len(commands)) as runs:
        runs.make(folder.name, commands)
    return runs


def engine_of(settings: Settings) -> Engine:
    """Return what makes the launcher that the settings name, with one thread a run."""

    def engine(folder: Path) -> Launcher:
        order = Order(
            results=settings.results_dir,
            state=folder,
            where=["device=cpu"],
            jobs=settings.jobs,
            threads=1,
            seconds=settings.run_seconds,
        )
        return make_launcher(
            settings.launcher, settings.launcher_settings, order, settings.config_dir
        )

    return engine
