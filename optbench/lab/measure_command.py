"""`python -m optbench.measure RUN…`: measures of finished runs, at the steps that they kept."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from optbench import lab
from optbench.boundary.command_line import Command, FilePath, Key, Names
from optbench.errors import UserError
from optbench.lab.measures import Measure, Reading, known
from optbench.record.durable import write_whole
from optbench.record.terminal import ManyRuns, show_table

RESULT = "measures.json"


@dataclass(frozen=True)
class Settings:
    """Measure finished runs: a table here, and measures.json in each run folder.

    Every measure with its equation and source: python -m optbench.measure list=true
    """

    runs: Annotated[
        tuple[FilePath, ...], Key("a run folder", placeholder="RUN", positional=True)
    ] = ()
    measures: Annotated[
        Names, Key("names; all: those that take a second together; everything: the dear ones too")
    ] = ("all",)
    steps: Annotated[
        Names, Key("steps of kept checkpoints; last: the end; kept: every one that there is")
    ] = ("last",)
    wandb_project: Annotated[
        str | None,
        Key("log the table to this W&B project, too", placeholder="PROJECT", name="wandb.project"),
    ] = None
    list: Annotated[bool, Key("say what every measure is, and measure nothing")] = False


COMMAND = Command(
    "optbench.measure",
    Settings,
    examples=(
        "results/runs/digits-mlp-adam-seed0-1a2b3c4d",
        "results/runs/* measures=sharpness,input_jacobian_test steps=kept",
    ),
)


def main() -> None:
    """Do what the command line says."""
    COMMAND.run(measure)


def measure(settings: Settings) -> int:
    """Measure the runs, and return the exit code."""
    if settings.list:
        _list()
        return 0
    if not settings.runs:
        raise UserError("name a run folder or more, such as results/runs/*")
    names = _names(settings.measures)
    lab.measures.chosen(names)  # a wrong name costs no time
    runs = [lab.open(path) for path in settings.runs]
    points = [(run, step) for run in runs for step in _steps(run, settings.steps)]
    rows: list[tuple[str, int, dict[str, Reading]]] = []
    with ManyRuns(len(points), unit="checkpoints") as shown:
        for run, step in points:
            shown.begin(f"{run.name} step {step}", line=False)
            rows.append((run.name, step, lab.measure(run.at(step=step), names)))
            shown.advance()
    for run in runs:
        _write(run.folder / RESULT, [row for row in rows if row[0] == run.name])
    _show(rows)
    if settings.wandb_project:
        print(_log(settings.wandb_project, rows))
    return 0


def _names(measures: Sequence[str]) -> str | list[str]:
    return measures[0] if measures in (("all",), ("everything",)) else list(measures)


def _steps(run: lab.Run, wanted: Sequence[str]) -> Iterator[int]:
    kept = run.kept
    if not kept:
        raise UserError(f"{run.name} has no checkpoint to measure: it is {run.status}")
    for word in wanted:
        if word == "last":
            yield kept[-1]
        elif word == "kept":
            yield from kept
        elif word.isdecimal():
            yield int(word)
        else:
            raise UserError(f"steps must be numbers, last or kept, got {word}")


def _write(path: Path, rows: Sequence[tuple[str, int, dict[str, Reading]]]) -> None:
    content = {str(step): {n: _plain(r) for n, r in readings.items()} for _, step, readings in rows}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _plain(reading: Reading) -> dict[str, Any]:
    of = reading.measure
    told = {"unit": of.unit, "equation": of.equation, "seconds": round(reading.seconds, 4)}
    if reading.reason is not None:
        return {"value": None, "reason": reading.reason, **told}
    return {"value": reading.value, **told}


def _show(rows: Sequence[tuple[str, int, dict[str, Reading]]]) -> None:
    """Print a column for each run and step, and under it why a measure is absent."""
    columns = 3  # side by side on a terminal of 80 columns
    for start in range(0, len(rows), columns):
        part = rows[start : start + columns]
        table = Table("measure")
        for name, step, _ in part:
            table.add_column(f"{name.rpartition('-')[2]} step {step}", justify="right")
        for measure_name in part[0][2]:
            cells = [readings[measure_name] for _, _, readings in part]
            table.add_row(
                measure_name,
                *("–" if c.reason is not None else f"{c.value:.4g}" for c in cells),
            )
        show_table(table)
    reasons = {
        f"{name}: {r.reason}"
        for _, _, readings in rows
        for name, r in readings.items()
        if r.reason is not None
    }
    notes = {f"{n}: {r.note}" for _, _, readings in rows for n, r in readings.items() if r.note}
    for line in sorted(reasons | notes):
        print(line)


def _log(project: str, rows: Sequence[tuple[str, int, dict[str, Reading]]]) -> str:
    from optbench.record.wandb import log_table

    names = list(rows[0][2])
    content = [
        [run, step, *(None if r.reason is not None else r.value for r in readings.values())]
        for run, step, readings in rows
    ]
    return log_table(project, f"{len(rows)}-points", ["run", "step", *names], content, "measures")


def _list() -> None:
    for of in known().values():
        print("\n".join(_told(of)))


def _told(of: Measure) -> Iterator[str]:
    yield f"{of.name}{' (dear)' if of.dear else ''}"
    yield f"    {of.meaning}: {of.equation}"
    yield f"    cost: {of.cost}"
    yield f"    unit: {of.unit}; invariant under rescaling: {of.invariant}; {of.source}"
