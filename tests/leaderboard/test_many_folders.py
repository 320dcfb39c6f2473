"""What keeps a board over many folders fast, counted: what is opened, loaded and put together."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optbench.leaderboard import folder_index
from optbench.leaderboard import page as page_module
from optbench.leaderboard.board import make_board
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.page import board_page, unpacked
from optbench.leaderboard.results_folder import read_results
from optbench.leaderboard.run_folders import CURVES
from tests.leaderboard.fields import entrant, suite
from tests.leaderboard.hostile import write_folder

_counting: list[Counter[str]] = []


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _counting and isinstance(arguments[0], str):
        _counting[-1][arguments[0]] += 1


@pytest.fixture
def opened() -> Iterator[Counter[str]]:
    """How often each file is opened, by whatever in this process."""
    if not hasattr(_count, "added"):
        sys.addaudithook(_count)  # it cannot be taken away again
        _count.added = True  # type: ignore[attr-defined]
    _counting.append(Counter())
    yield _counting[-1]
    _counting.pop()


def test_nothing_is_opened_in_a_folder_that_has_not_changed(
    tmp_path: Path, opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "TICK_SECONDS", -1.0)
    runs = entrant(suite(), "a", 0.2)
    for run in runs:
        write_folder(tmp_path / "runs" / run.name, run)
    opened.clear()
    read_results(tmp_path)
    series = {name: count for name, count in opened.items() if name.endswith("metrics.jsonl")}
    finals = [run for run in runs if run.phase == "final"]
    assert len(series) == len(finals)
    assert set(series.values()) <= {1, 2}  # to be read, and to be held against its digest
    opened.clear()
    again, _, _ = read_results(tmp_path)
    assert len(again) == len(runs)
    assert not [name for name in opened if name.startswith(str(tmp_path / "runs"))]


def test_a_page_that_is_too_large_is_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    of, rng = suite(seeds=8), np.random.default_rng(0)
    runs = [
        replace(
            run, curve={"step": list(range(60))} | {key: rng.random(60).tolist() for key in CURVES}
        )
        for name in "abcd"
        for run in entrant(of, name, 0.2)
    ]
    board = make_board(of, admit(of, runs))
    whole = len(board_page(board))
    written = []
    text_of_a_run = page_module._run_text

    def counted(head: str, of_run: dict[str, list[float]], points: int) -> str:
        written.append(points)
        return text_of_a_run(head, of_run, points)

    monkeypatch.setattr(page_module, "_run_text", counted)
    monkeypatch.setattr(page_module, "CURVE_POINTS", (60, 30, 4, 0))
    monkeypatch.setattr(page_module, "SAMPLE", 8)
    monkeypatch.setattr(page_module, "LARGEST_PAGE", int(0.7 * whole))
    shown = unpacked(board_page(board))["runs"]
    sampled = Counter(written)
    points = {len(run["curve"]["step"]) for run in shown}
    assert len(points) == 1 and (kept := points.pop()) < 60
    assert sampled[kept] == len(shown) + 8  # the page, and the sample
    assert all(count == 8 for points, count in sampled.items() if points != kept)


def test_a_board_loads_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys, optbench.leaderboard.__main__\n"
        "print([m for m in ('torch', 'scipy.stats', 'omegaconf', 'hydra') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
