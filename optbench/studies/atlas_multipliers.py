"""`python -m optbench.studies.atlas_multipliers`: multipliers of optimizers outside the atlas.

They are at the learning rate of their YAML, which no rule chose, on one seed. Those that the edge
atlas has an entry for are in its own table; see `edge_atlas`.
"""

import csv
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict

from optbench.boundary import STRICT, Text, read_yaml, shaped
from optbench.boundary.command_line import Command, FilePath, Key, Names
from optbench.boundary.kinds import Count, Positive, Whole
from optbench.launch.engines import LOCAL, EngineName, EngineSettings
from optbench.paths import conf_folder
from optbench.record import folder as record
from optbench.studies.atlas_entries import read_atlas
from optbench.studies.command import Settings as StudySettings
from optbench.studies.command import engine_of, make_runs
from optbench.studies.edge_reading import Obeyed, Reading, obeyed, read_run

TABLE, PAGE = "edge_multipliers.csv", "edge_multipliers.md"


@dataclass(frozen=True)
class Plan:
    """The file conf/study/edge_multipliers.yaml.

    Attributes:
        steps: Updates of a run.
        seeds: Seeds of the runs.
        tolerance: Largest |distance − 1| that counts as at the edge.
        overrides: Overrides of every run, beside the atlas's common ones.
        fixed_size: Those whose steps have a fixed size: their edge is an amplitude.
        others: Optimizers without an entry in the atlas, at the learning rate of their YAML.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    steps: Count
    seeds: tuple[Whole, ...]
    tolerance: Positive
    overrides: tuple[Text, ...]
    fixed_size: tuple[Text, ...]
    others: tuple[Text, ...]

    def command(self, own: Sequence[str], seed: int) -> list[str]:
        """Overrides of one run: its own, then the plan's."""
        ours = [f"steps={self.steps}", f"seed={seed}"]
        keys = {override.split("=")[0] for override in ours}
        return [*(o for o in own if o.split("=")[0] not in keys), *self.overrides, *ours]

    def runs(self) -> Iterator[tuple[str, list[str]]]:
        """Name of every row and the overrides of its optimizer."""
        common = read_atlas().common
        for name in self.others:
            amplitude = ["++probes.multiplier.amplitude=true"] if name in self.fixed_size else []
            yield name, [f"optimizer={name}", *common, *amplitude]


def read_plan() -> Plan:
    """Read the file."""
    path = conf_folder() / "study" / "edge_multipliers.yaml"
    return shaped(Plan, read_yaml(path), path.name)


@dataclass(frozen=True)
class Row:
    """One optimizer over its seeds; attributes as of `Reading`, medians over the seeds."""

    optimizer: str
    readings: Sequence[Reading]

    def median(self, name: str) -> float:
        """Median over the seeds that have a number."""
        values = [getattr(r, name) for r in self.readings]
        known = [v for v in values if not math.isnan(v)]
        return statistics.median(known) if known else math.nan

    def obeyed(self, tolerance: float) -> Obeyed:
        """Which distance stands at 1; see `edge_reading.obeyed`."""
        return obeyed(
            self.median("formula"),
            self.median("multiplier"),
            self.median("amplitude"),
            any(r.status == "diverged" for r in self.readings),
            tolerance,
        )


NUMBERS = ("formula", "drift", "multiplier", "growth", "angle", "amplitude", "balance", "loss")
COLUMNS = ("optimizer", *NUMBERS, "obeyed")


def write(rows: Sequence[Row], folder: Path, tolerance: float) -> None:
    """Write the rows as CSV, all digits, and Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TABLE).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*COLUMNS, "seeds"])
        for row in rows:
            numbers = [f"{row.median(name):.6g}" for name in NUMBERS]
            writer.writerow([row.optimizer, *numbers, row.obeyed(tolerance), len(row.readings)])
    record.write_whole(folder / PAGE, "".join(markdown(rows, tolerance)))


def markdown(rows: Sequence[Row], tolerance: float) -> Iterator[str]:
    """Lines of the table."""
    yield f"| {' | '.join(COLUMNS)} |\n"
    yield "|---" * len(COLUMNS) + "|\n"
    for row in rows:
        values = [row.median(name) for name in NUMBERS]
        numbers = ["–" if math.isnan(v) else f"{v:.3f}" for v in values]
        yield f"| {' | '.join([row.optimizer, *numbers, row.obeyed(tolerance)])} |\n"


@dataclass(frozen=True)
class Settings:
    """Train optimizers outside the edge atlas with the multiplier probe, beside their formula."""

    only: Annotated[Names, Key("rows to keep; without it all", "NAMES")] = ()
    jobs: Annotated[
        Count | None,
        Key("runs at a time, a thread each; without it as many as cores", placeholder="N"),
    ] = None
    launcher: EngineName = LOCAL
    launcher_settings: EngineSettings = ()
    results_dir: Annotated[FilePath, Key("folder of the runs and the table")] = Path("results")


COMMAND = Command(
    "optbench.studies.atlas_multipliers", Settings, examples=("only=adan,lamb jobs=2",)
)


def do(settings: Settings) -> int:
    """Make the runs that are missing, write and print the table, and return the exit code."""
    plan = read_plan()
    chosen = {n: own for n, own in plan.runs() if not settings.only or n in settings.only}
    commands = {name: [plan.command(own, s) for s in plan.seeds] for name, own in chosen.items()}
    folder = settings.results_dir / "studies" / "edge_multipliers"
    every = [command for own in commands.values() for command in own]
    engine = engine_of(
        StudySettings(
            "edge_multipliers",
            jobs=settings.jobs,
            launcher=settings.launcher,
            launcher_settings=settings.launcher_settings,
            results_dir=settings.results_dir,
        )
    )
    runs = make_runs(every, engine, settings.results_dir, folder)
    rows = []
    for name, own in commands.items():
        folders = [path for command in own if (path := runs.folder(command)) is not None]
        if folders:
            rows.append(Row(name, [read_run(path) for path in folders]))
    write(rows, folder, plan.tolerance)
    print("".join(markdown(rows, plan.tolerance)), folder / PAGE, sep="")
    for line in runs.failures:
        print(line, file=sys.stderr)
    return 1 if runs.failures else 0


def main() -> None:
    """Do what the command line says."""
    COMMAND.run(do)


if __name__ == "__main__":
    main()
