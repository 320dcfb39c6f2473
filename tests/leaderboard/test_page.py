"""The page in a real browser, headless; without one these tests skip and say so."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optbench.leaderboard.board import Board, make_board
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.page import board_page, report_page
from optbench.leaderboard.run_report import main as report
from optbench.leaderboard.words import words
from tests.conftest import Command
from tests.leaderboard.fields import entrant, suite
from tests.visit import Visit

SUITE = suite()
HOSTILE = "</script><img src=x onerror=alert(1)>"


def _board(hostile: str = HOSTILE) -> Board:
    rng = np.random.default_rng(0)
    levels = {"adam": 0.1, "sgd": 0.3, "lion": 0.2, hostile: 0.5}
    runs = [
        r
        for name, level in levels.items()
        for r in entrant(SUITE, name, level + 0.02 * rng.random((3, 4)))
    ]
    runs += entrant(SUITE, "unfinished", 0.1)[:3]
    board = make_board(SUITE, admit(SUITE, [replace(run, local=True) for run in runs]))
    return replace(board, words=words(board))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "leaderboard.html"
    path.write_text(board_page(_board()))
    return path


def test_it_loads_from_disk_without_errors_or_network_and_nothing_hostile_runs(
    browser: Any, file: Path
) -> None:
    visit = Visit(browser, file)
    visit.page.wait_for_selector("#curve-plot .scatterlayer")
    assert visit.page.locator("#cd .scatterlayer").count() == 1
    assert visit.column("standings", 3) == ["adam", "lion", "sgd", HOSTILE]
    assert visit.page.locator("img").count() == 0
    assert "unfinished" in visit.page.locator("#refused + ul").inner_text()
    assert visit.trouble == [] and visit.requests == [file.as_uri()]


def test_sorting_and_filtering_work(browser: Any, file: Path) -> None:
    visit = Visit(browser, file)
    header = visit.page.locator("#standings thead button", has_text="optimizer")
    header.click()
    assert visit.column("standings", 3) == [HOSTILE, "adam", "lion", "sgd"]
    header.click()
    assert visit.column("standings", 3) == ["sgd", "lion", "adam", HOSTILE]
    visit.page.locator("#standings thead button", has_text="score").click()
    scores = [float(text.split()[0]) for text in visit.column("standings", 4)]
    assert scores == sorted(scores)
    visit.page.get_by_label("filter runs").fill("lion")
    assert set(visit.column("runs", 2)) == {"lion"} and len(visit.column("runs", 1)) == 12


def test_axes_can_be_logarithmic_and_metrics_chosen(browser: Any, file: Path) -> None:
    visit = Visit(browser, file)
    kind = "document.getElementById('curve-plot').layout.yaxis.type"
    before = visit.page.evaluate(kind)
    visit.page.locator("[id='check-log y']").click()
    assert {before, visit.page.evaluate(kind)} == {"log", "linear"}
    visit.page.locator("#menu-metric").select_option("val/loss")
    assert (
        visit.page.evaluate("document.getElementById('curve-plot').layout.yaxis.title.text")
        == "val/loss"
    )
    assert visit.trouble == []


def test_each_run_has_its_page_with_the_command_that_makes_it_again(
    browser: Any, file: Path
) -> None:
    visit = Visit(browser, file)
    visit.page.locator("#runs tbody a").first.click()
    visit.page.wait_for_selector("#run")
    command = visit.page.locator("#command").inner_text()
    assert command.startswith("python -m optbench optimizer=adam task=digits steps=100")
    assert "'board={suite:simulated," in command  # quoted for a shell
    assert '"lr": 0.2' in visit.page.locator("#run").inner_text()
    assert visit.trouble == []


@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_the_window(browser: Any, file: Path, width: int) -> None:
    visit = Visit(browser, file, width)
    visit.page.locator("#runs tbody a").first.click()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    smallest = (
        "Math.min(...[...document.querySelectorAll('td, p, li')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert visit.page.evaluate(smallest) >= 12


def test_a_report_on_chosen_runs(
    browser: Any, optbench: Command, tmp_path: Path, monkeypatch: Any
) -> None:
    folders = [
        str(optbench("task=digits", "steps=20", f"optimizer={name}").folder)
        for name in ("sgd", "adam")
    ]
    monkeypatch.setattr(
        sys, "argv", ["report", *folders, str(tmp_path / "nothing"), "out=page.html"]
    )
    with pytest.raises(SystemExit) as stop:
        report()
    assert stop.value.code == 0
    visit = Visit(browser, tmp_path / "page.html")
    visit.page.wait_for_selector("#curve-plot .scatterlayer")
    assert visit.page.title() == "optbench: 2 runs" and len(visit.column("runs", 1)) == 2
    assert visit.trouble == []


def test_no_name_can_end_the_script_that_holds_the_data() -> None:
    """Holds without a browser too."""
    text = board_page(_board())
    data = text[text.index('id="data">') :]
    assert HOSTILE not in text and data.index("</script>") == data.index("</script>\n<script>")
    assert "http-equiv" in text and "default-src 'none'" in text
    assert report_page([]).count("<main") == 1
