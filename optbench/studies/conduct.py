"""What `python -m optbench.study NAME` does: run what is missing, measure, judge, draw, write."""

import csv
import io
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.launch.index import INDEX
from optbench.launch.launcher import Launcher
from optbench.launch.runs import Runs
from optbench.record.durable import write_whole
from optbench.record.folder import read_json
from optbench.record.terminal import ManyRuns
from optbench.studies import verdict_page
from optbench.studies.declaration import Declared, began, remember, told
from optbench.studies.frame import Cell, Finding, Size, Study, Table, columns

TABLE, VERDICT = "table.csv", "verdict.json"


@dataclass(frozen=True)
class Outcome:
    """What a study came to.

    Attributes:
        folder: Where it is written.
        findings: What the declared rules computed.
        failures: A line for each run that failed.
    """

    folder: Path
    findings: Sequence[Finding]
    failures: Sequence[str]


def conduct(
    declared: Declared,
    size: Size,
    launcher: Launcher,
    results: Path,
    jobs: int,
    draws: int = 10,
    config_dir: Path | None = None,
) -> Outcome:
    """Do a study whole, as far as it is not done yet.

    1. Remember the declaration, and how many runs had been seen by then.
    2. Make the runs that are missing.
    3. Read a row from each; a run that failed or diverged costs one row.
    4. Apply the declared rules, to the rows and to planted worlds.
    5. Draw the figures; write table.csv, verdict.json and verdict.md.

    Args:
        declared: The study.
        size: Which of its sizes.
        launcher: Engine that makes the runs, under `results`.
        results: Results folder.
        jobs: Processes that measure.
        draws: Planted tables of each world.
        config_dir: The user's YAMLs.
    """
    study = declared.study
    folder = results / "studies" / (declared.name if size == "small" else f"{declared.name}-{size}")
    folder.mkdir(parents=True, exist_ok=True)
    cells = list(study.plan(size))
    index = results / "studies" / INDEX  # of all studies: some share their runs
    with Runs(launcher, results, index, len({c.command for c in cells}), config_dir) as runs:
        # a run may be a cell of several comparisons
        commands = [list(c) for c in dict.fromkeys(tuple(cell.command) for cell in cells)]
        seen = sum(runs.folder(command) is not None for command in commands)
        history = remember(folder, declared, seen)
        runs.make(declared.name, commands)
    found = [(c, p) for c in cells if (p := runs.folder(list(c.command))) is not None]
    said = told(history, declared.digest, began(path for _, path in found))
    rows = read_rows(study, found, jobs)
    table = columns(rows)
    write_table(folder / TABLE, rows)
    findings = list(study.judge(table))
    confusion = _planted_before(folder, declared.digest) or plant(study, draws, jobs)
    figures = list(study.draw(table, findings, folder))
    command = f"python -m optbench.study {declared.name} size={size}"
    verdict = verdict_page.content(
        declared.name, study.declaration, findings, confusion, figures, said, command, len(rows)
    )
    verdict["digest"] = declared.digest
    _write(folder, verdict)
    return Outcome(folder, findings, runs.failures)


def take_errata(folder: Path, declared: Declared) -> None:
    """Say the errata of a declaration on the verdict that was given by it; nothing else changes.

    Args:
        folder: Folder of the study's results.
        declared: The study as it is declared now; a verdict of another declaration stays.
    """
    verdict = read_json(folder / VERDICT)
    errata = list(declared.study.declaration.errata)
    if verdict is None or verdict["digest"] != declared.digest:
        return
    if verdict.get("errata", []) != errata:
        verdict["errata"] = errata
        _write(folder, verdict)


def _write(folder: Path, verdict: Mapping[str, Any]) -> None:
    write_whole(folder / VERDICT, json.dumps(verdict, indent=2) + "\n")
    write_whole(folder / verdict_page.PAGE, verdict_page.render(verdict))


def read_rows(
    study: Study, found: Sequence[tuple[Cell, Path]], jobs: int
) -> list[Mapping[str, Any]]:
    """Read every run, in as many processes of one thread each; rows are in the plan's order."""
    rows: list[Mapping[str, Any]] = []
    with ManyRuns(len(found)) as shown, _pool(jobs) as pool:
        shown.begin("measuring")
        futures = [pool.submit(study.read, cell, path) for cell, path in found]
        for future in futures:
            rows += future.result()
            shown.advance()
    return rows


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; a value that is missing is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def read_table(path: Path) -> Table:
    """Return a table that `write_table` wrote; every cell of a column of numbers is a float."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return columns([{name: _value(name, cell) for name, cell in row.items()} for row in rows])


TEXT = ("task", "optimizer", "lr", "batch")
"""Columns that are names, although some look like numbers."""


def _value(name: str, cell: str) -> Any:
    if name in TEXT:
        return cell
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def plant(study: Study, draws: int, jobs: int) -> dict[str, dict[str, dict[str, int]]]:
    """Return {hypothesis: {world: {verdict: count}}} of the rules on planted tables."""
    names = [hypothesis.name for hypothesis in study.declaration.hypotheses]
    counts: dict[str, dict[str, dict[str, int]]] = {name: {} for name in names}
    tasks = [(world, seed) for world in study.worlds for seed in range(draws)]
    with ManyRuns(len(tasks), unit="tables") as shown, _pool(jobs) as pool:
        shown.begin("judging planted worlds")
        futures = [pool.submit(_judge_planted, study, world, seed) for world, seed in tasks]
        for (world, _), future in zip(tasks, futures, strict=True):
            for name, verdict in future.result().items():
                of_world = counts[name].setdefault(world, {})
                of_world[verdict] = of_world.get(verdict, 0) + 1
            shown.advance()
    return counts


def _judge_planted(study: Study, world: str, seed: int) -> dict[str, str]:
    return {f.hypothesis: f.verdict for f in study.judge(study.planted(world, seed))}


def _planted_before(folder: Path, digest: str) -> dict[str, dict[str, dict[str, int]]] | None:
    """The counts of an earlier call with the same declaration: they cost minutes."""
    before = read_json(folder / VERDICT)
    if before is None or before.get("digest") != digest:
        return None
    return {h["name"]: h["planted"] for h in before["hypotheses"]}


def _pool(jobs: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    return ProcessPoolExecutor(jobs, context, initializer=_one_thread)
