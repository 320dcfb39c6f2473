"""`python -m optbench.studies.atlas_multipliers`: multiplier beside formula, of every optimizer.

Where they disagree, the table says which of the two the run obeyed: which distance, the formula's
or the multiplier's, stands at 1 in the second half of the run.
"""

import csv
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict

from optbench import metrics
from optbench.boundary import STRICT, Text, read_yaml, shaped
from optbench.boundary.command_line import Command, FilePath, Key, Names
from optbench.boundary.kinds import Count, Positive, Whole
from optbench.launch.engines import LOCAL, EngineName, EngineSettings
from optbench.paths import conf_folder
from optbench.record import folder as record
from optbench.studies import plateau
from optbench.studies.atlas_entries import ATLAS, COMMON
from optbench.studies.command import Settings as StudySettings
from optbench.studies.command import engine_of, make_runs

TABLE, PAGE = "edge_multipliers.csv", "edge_multipliers.md"
FULL_BATCH_ONLY = "batch_size="

Obeyed = Literal[
    "both",
    "formula",
    "multiplier",
    "neither",
    "inside",
    "amplitude",
    "open",
    "no derivative",
    "diverged",
]


@dataclass(frozen=True)
class Plan:
    """The file conf/study/edge_multipliers.yaml.

    Attributes:
        steps: Updates of a run.
        seeds: Seeds of the runs.
        tolerance: Largest |distance − 1| that counts as at the edge.
        overrides: Overrides of every run, beside the atlas's common ones.
        fixed_size: Names of the rows whose steps have a fixed size: their edge is an amplitude.
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
        """Name of every row and the overrides of its optimizer, those of mini-batches left out."""
        for entry in ATLAS:
            own = entry.command(entry.lr, self.seeds[0])
            if entry.available and not any(o.startswith(FULL_BATCH_ONLY) for o in own):
                yield entry.name, own + self._amplitude(entry.name)
        for name in self.others:
            yield name, [f"optimizer={name}", *COMMON, *self._amplitude(name)]

    def _amplitude(self, name: str) -> list[str]:
        return ["++probes.multiplier.amplitude=true"] if name in self.fixed_size else []


def read_plan() -> Plan:
    """Read the file."""
    path = conf_folder() / "study" / "edge_multipliers.yaml"
    return shaped(Plan, read_yaml(path), path.name)


@dataclass(frozen=True)
class Reading:
    """What one run showed in the second half of its steps; NaN where it measured nothing.

    Attributes:
        formula: Distance to the edge by the optimizer's formula; a median, or a ratio of means
            where the series swings beyond both sides of 1.
        drift: Relative change of it from the third to the fourth quarter of the run; a plateau
            has at most 2.5 %.
        multiplier: Distance by the multiplier, a median: the learning rate over that at |μ| = 1.
        growth: Growth per step of the mode, along 40 steps, a median.
        angle: |arg μ|/π, a median.
        amplitude: Predicted over measured amplitude of the alternation, a median.
        balance: ½⟨dᵀHd⟩ over −⟨g·d⟩ along the updates.
        loss: Training loss at the end.
        status: How the run ended.
        measured: How many multipliers there are.
    """

    formula: float
    drift: float
    multiplier: float
    growth: float
    angle: float
    amplitude: float
    balance: float
    loss: float
    status: str
    measured: int


def read_run(folder: Path) -> Reading:
    """Read the run of one seed."""
    records = record.read_lines(folder / record.METRICS)
    status = str((record.read_json(folder / record.SUMMARY) or {}).get("status"))
    last = records[-1]["step"] if records else 0
    late = [r for r in records if r["step"] >= last / 2]
    slopes = [r for r in late if metrics.UPDATE_SLOPE in r]
    formula, drift = _formula(records)
    return Reading(
        formula=formula,
        drift=drift,
        multiplier=_median(late, metrics.MULTIPLIER_DISTANCE),
        growth=_median(late, metrics.MULTIPLIER_GROWTH),
        angle=_median(late, metrics.MULTIPLIER_ANGLE),
        amplitude=_median(
            [
                {"": r[metrics.ALTERNATION_PREDICTED] / r[metrics.ALTERNATION]}
                for r in late
                if r.get(metrics.ALTERNATION)
            ],
            "",
        ),
        balance=plateau.balance(
            [r[metrics.UPDATE_SLOPE] for r in slopes], [r[metrics.PREDICTED_CHANGE] for r in slopes]
        )
        if slopes
        else math.nan,
        loss=next(
            (r[metrics.TRAIN_LOSS] for r in records[::-1] if metrics.TRAIN_LOSS in r), math.nan
        ),
        status=status,
        measured=sum(metrics.MULTIPLIER in r for r in late),
    )


def _formula(records: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Where measured/threshold stands, and its drift.

    Of means if a tenth of the ratios are beyond either side of 1 by a fifth, else a median.
    """
    on = metrics.threshold_is_on(records)
    rows = [r for r in records if on in r and r.get(metrics.EDGE_THRESHOLD, 0.0) != 0]
    steps, measured, threshold = (
        [r[key] for r in rows] for key in ("step", on, metrics.EDGE_THRESHOLD)
    )
    whole = plateau.plateau(steps, measured, threshold)
    late = [
        m / t if t > 0 else math.inf
        for s, m, t in zip(steps, measured, threshold, strict=True)
        if s >= steps[-1] / 2
    ]
    if not late:
        return math.nan, math.nan
    far = [sum(x > 1.2 for x in late), sum(x < 0.8 for x in late)]
    swings = min(far) >= 0.1 * len(late)
    return whole.value if swings else statistics.median(late), whole.change


def _median(records: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [r[name] for r in records if name in r]
    return statistics.median(values) if values else math.nan


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
        """Which distance stands at 1: the formula's, the multiplier's, both, or neither.

        "inside" where all that there are lie below 1 − tolerance: the run is not at an edge. For
        steps of fixed size it is the amplitude that is met or not ("open").
        """
        if any(r.status == "diverged" for r in self.readings):
            return "diverged"
        if not math.isnan(amplitude := self.median("amplitude")):
            return "amplitude" if abs(amplitude - 1) <= tolerance else "open"
        formula, by_multiplier = self.median("formula"), self.median("multiplier")
        if math.isnan(by_multiplier):
            return "no derivative"
        known = [x for x in (formula, by_multiplier) if not math.isnan(x)]
        if all(x < 1 - tolerance for x in known):
            return "inside"
        at = abs(formula - 1) <= tolerance, abs(by_multiplier - 1) <= tolerance
        verdicts: dict[tuple[bool, bool], Obeyed] = {
            (True, True): "both",
            (True, False): "formula",
            (False, True): "multiplier",
            (False, False): "neither",
        }
        return verdicts[at]


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
    """Train every optimizer with the multiplier probe, and hold it against the formula."""

    only: Annotated[Names, Key("rows to keep; without it all", "NAMES")] = ()
    jobs: Annotated[
        Count | None,
        Key("runs at a time, a thread each; without it as many as cores", placeholder="N"),
    ] = None
    launcher: EngineName = LOCAL
    launcher_settings: EngineSettings = ()
    results_dir: Annotated[FilePath, Key("folder of the runs and the table")] = Path("results")


COMMAND = Command(
    "optbench.studies.atlas_multipliers", Settings, examples=("only=Adam,adan jobs=2",)
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
