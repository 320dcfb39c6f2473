"""One odd file takes down nobody's board.

`pytest tests/leaderboard/test_hostile.py -m slow` tries every case.
"""

import json
import random
import shutil
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from optbench.leaderboard import tables
from optbench.leaderboard.board import make_board
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.entries import ENTRIES, read_entries
from optbench.leaderboard.marks import Mark, own_marks
from optbench.leaderboard.page import board_page
from optbench.leaderboard.results_folder import read_results
from optbench.leaderboard.verify import unverified
from optbench.leaderboard.words import words
from optbench.protocol.suite import Suite, read_suite
from tests.leaderboard.fields import entrant, suite
from tests.leaderboard.hostile import Case, of_entries, of_folders

SHORT = 60  # of more than two thousand cases, other ones for every seed
SEED = 0


def _write_suite(folder: Path) -> Suite:
    task: dict[str, Any] = {
        "kind": "vision",
        "run": ["task=digits", "steps=100"],
        "metric": "test/error",
        "select": "val/loss",
    }
    task |= {"start": 1.0, "good": 0.0, "targets": [0.8, 0.5, 0.2], "floor": 0.0}
    content: dict[str, Any] = {
        "version": 1,
        "points": 2,
        "sobol_seed": 0,
        "tuning_seeds": [1000],
        "final_seeds": [0, 1, 2, 3],
    }
    content |= {
        "held_out": "task1",
        "common": [],
        "tasks": {"task0": task, "task1": dict(task, run=list(task["run"]))},
    }
    (folder / "simulated.yaml").write_text(yaml.safe_dump(content))
    of = read_suite(str(folder / "simulated.yaml"))
    assert of == suite(tasks=2)
    return of


def _honest(results: Path, of: Suite) -> None:
    for name, error in {"adam": 0.3, "sgd": 0.4}.items():
        file = results / ENTRIES / of.label / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(run.line() + "\n" for run in entrant(of, name, error)))


def _mark(results: Path) -> None:
    digests = [entry.digest for entry in read_entries(results) if entry.digest]
    own_marks().parent.mkdir(parents=True, exist_ok=True)
    own_marks().write_text(
        json.dumps({digest: asdict(Mark("tried", True, 8, {})) for digest in digests})
    )


def _render(of: Suite, results: Path) -> tuple[list[str], str]:
    runs, _, _ = read_results(results)
    board = make_board(of, admit(of, runs, unverified(results, of)))
    board = replace(board, words=words(board))
    page = board_page(board)
    data = page[page.index('id="data">') : page.rindex("<script>")]
    return [s.name for s in board.standings], tables.markdown(board) + tables.comma_separated(
        board
    ) + data


def _faults(case: Case, folder: Path, of: Suite, trusted: bool) -> str:
    """Say what is wrong with how one case was taken; empty if nothing."""
    _, make = case
    results = folder / "results"
    shutil.copytree(folder.parent / "honest", results)
    before = {run.name for run in read_results(results)[0]}
    if not trusted:
        _mark(results)
    make(results)
    if trusted:
        _mark(results)
    try:
        runs, passed_over, _ = read_results(results)
        said = " ".join(" ".join(reason) for reason in passed_over)
        if not said.isprintable():
            return f"a reason is not printable: {said!r}"
        if not before <= {run.name for run in runs}:
            return "others are gone"
        if {run.name for run in runs} == before:
            return ""  # then the board is that of the others
        ranked, shown = _render(of, results)
    except Exception as why:
        return f"{type(why).__name__}: {why}"
    if not {"adam", "sgd"} <= set(ranked):
        return f"ranked are {ranked}"
    odd = {c for c in shown if not c.isprintable()} - {"\n"}
    return f"shows {odd}" if odd else ""


def _try(cases: list[tuple[Case, bool]], tmp_path: Path) -> None:
    of = _write_suite(tmp_path)
    _honest(tmp_path / "honest", of)
    found = []
    for number, (case, trusted) in enumerate(cases):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of sums that are beyond 1e308
            if fault := _faults(case, tmp_path / str(number), of, trusted):
                found.append(f"{case[0]}{' (verified)' * trusted}: {fault}")
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
    print(f"FIGURE {len(found)} faults in {len(cases)} hostile results")
    assert not found, "\n".join(found)


def _cases() -> list[tuple[Case, bool]]:
    of = suite(tasks=2)
    folders, entries = list(of_folders(of)), list(of_entries(of))
    return [(case, False) for case in folders] + [
        (case, trusted) for case in entries for trusted in (False, True)
    ]


def test_a_sample_of_hostile_results_takes_nobody_down(tmp_path: Path) -> None:
    _try(random.Random(SEED).sample(_cases(), SHORT), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_hostile_result_takes_nobody_down(part: int, tmp_path: Path) -> None:
    _try(_cases()[part::4], tmp_path)
