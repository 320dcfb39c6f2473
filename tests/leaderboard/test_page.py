"""The page in a real browser, headless; without one these tests skip and say so."""

import base64
import gzip
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optbench.leaderboard import page as page_module
from optbench.leaderboard.board import Board, make_board
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.page import LARGEST_PAGE, board_page, report_page, unpacked
from optbench.leaderboard.run_report import main as report
from optbench.leaderboard.verify import UNVERIFIED
from optbench.leaderboard.words import words
from optbench.record.series import read_lines
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
    runs = [replace(run, local=True) for run in runs] + entrant(SUITE, "sent", 0.1)
    board = make_board(SUITE, admit(SUITE, runs, {"sent": UNVERIFIED}))
    return replace(board, words=words(board))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "leaderboard.html"
    path.write_text(board_page(_board()))
    return path


def _open(browser: Any, file: Path, **how: Any) -> Visit:
    visit = Visit(browser, file, **how)
    visit.page.wait_for_selector("#runs tbody tr")
    return visit


def test_it_loads_from_disk_without_errors_or_network_and_nothing_hostile_runs(
    browser: Any, file: Path
) -> None:
    visit = _open(browser, file)
    assert visit.page.locator("#curve-plot path.line").count() == 4
    assert visit.page.locator("#cd circle").count() == 4
    assert _names(visit) == ["adam", "lion", "sgd", HOSTILE]
    assert visit.page.locator("img").count() == 0
    assert "unfinished" in visit.page.locator("#refused + ul").inner_text()
    assert visit.trouble == [] and visit.requests == [file.as_uri()]


def test_a_command_in_a_sentence_is_copied_whole_and_alone(browser: Any, file: Path) -> None:
    visit = _open(browser, file)
    commands = visit.page.locator("#refused + ul pre").all_inner_texts()
    assert commands == ["python -m optbench.leaderboard verify=unverified"]
    assert "verify=unverified re-runs it" in visit.page.locator("#refused + ul").inner_text()


def _names(visit: Visit, table: str = "standings", column: int = 3) -> list[str]:
    return [text.removesuffix("#") for text in visit.column(table, column)]


def test_the_title_says_when_on_what_and_with_what(browser: Any, file: Path) -> None:
    visit = _open(browser, file)
    said = visit.page.locator("dl.origin").inner_text()
    for word in ("made", "UTC", "hardware", "versions", "torch", "commits"):
        assert word in said
    assert visit.page.title() == "optbench: Leaderboard: simulated, version 1"


def test_ranks_and_scores_stand_on_top_as_intervals(browser: Any, file: Path) -> None:
    visit = _open(browser, file)
    rows = visit.page.locator("#rank-intervals a")
    assert rows.count() == 4 and "rank 1, may be 1 to" in rows.first.get_attribute("aria-label")
    top = "document.querySelector('#rank-intervals').getBoundingClientRect().bottom"
    assert visit.page.evaluate(top) < 800  # seen without scrolling
    rows.nth(1).click()
    assert visit.page.locator("#standings tr.chosen").get_attribute("data-key") == "lion"


def test_sorting_and_filtering_work(browser: Any, file: Path) -> None:
    visit = _open(browser, file)
    header = visit.page.locator("#standings thead button", has_text="optimizer")
    header.click()
    assert _names(visit) == [HOSTILE, "adam", "lion", "sgd"]
    header.click()
    assert _names(visit) == ["sgd", "lion", "adam", HOSTILE]
    visit.page.locator("#standings thead button", has_text="score").click()
    scores = [float(text.split()[0]) for text in visit.column("standings", 4)]
    assert scores == sorted(scores)
    visit.page.get_by_label("filter runs").fill("lion")
    assert set(visit.column("runs", 2)) == {"lion"} and len(visit.column("runs", 1)) == 12
    visit.page.get_by_label("filter runs").fill("TASK1 lion seed3")
    assert len(visit.column("runs", 1)) == 1  # every word, in any column and order
    visit.page.get_by_label("filter runs").fill("task1 nobody")
    assert visit.column("runs", 1) == []


def test_every_column_of_numbers_says_what_it_is(browser: Any, file: Path) -> None:
    visit = _open(browser, file)
    for table in ("standings", "task-task0", "pairs"):
        titles = visit.page.eval_on_selector_all(
            f"#{table} thead button", "all => all.map(b => b.title)"
        )
        assert len(titles) > 5 and all(titles)


def test_axes_can_be_logarithmic_and_metrics_chosen(browser: Any, file: Path) -> None:
    visit = _open(browser, file)
    ticks = "[...document.querySelectorAll('#curve-plot .tick.end')].map(e => e.textContent).join()"
    titles = "[...document.querySelectorAll('#curve-plot .title')].map(e => e.textContent)"
    before = visit.page.evaluate(ticks)
    visit.page.locator("[id='check-log y']").click()
    assert visit.page.evaluate(ticks) != before
    visit.page.locator("#menu-metric").select_option("val/loss")
    assert visit.page.evaluate(titles) == ["step", "val/loss"]
    assert visit.trouble == []


def test_a_curve_is_where_its_numbers_are(browser: Any, file: Path) -> None:
    """Read off by the keyboard, as somebody does who sees no curve."""
    visit = _open(browser, file)
    visit.page.locator("[id='check-log y']").click()
    visit.page.locator("#curve-plot .frame svg").focus()
    for key in ["ArrowRight", *["ArrowRight"] * 10]:
        visit.page.keyboard.press(key)
    runs = [
        r
        for r in unpacked(file.read_text())["runs"]
        if r["group"] == "adam" and r["task"] == "task0"
    ]
    last = sorted(r["curve"]["test/loss"][-1] for r in runs)
    middle = (last[1] + last[2]) / 2
    said = visit.page.locator("#curve-plot .reading").inner_text()
    assert said == f"adam: test/loss {middle:.4g} at step 100"
    place = "e => [e.cx.baseVal.value, e.cy.baseVal.value]"
    x, y = visit.page.locator("#curve-plot circle.mark").evaluate(place)
    right, low = visit.page.evaluate(
        """() => { const g = [...document.querySelectorAll('#curve-plot .grid')];
            const t = [...document.querySelectorAll('#curve-plot .tick.end')];
            const y = (n) => { const i = t.findIndex(e => +e.textContent === n); return +t[i].getAttribute('y') - 4; };
            return [Math.max(...g.map(l => l.x1.baseVal.value)), y(0.2) + (y(0.4) - y(0.2)) * (MIDDLE - 0.2) / 0.2]; }""".replace(
            "MIDDLE", str(middle)
        )
    )
    assert x == pytest.approx(right, abs=0.2) and y == pytest.approx(low, abs=0.2)


def test_a_name_shows_and_hides_its_line(browser: Any, file: Path) -> None:
    visit = _open(browser, file)
    button = visit.page.locator("#curve-plot .legend button", has_text="lion")
    button.press("Enter")
    assert visit.page.locator("#curve-plot path.line").count() == 3
    assert button.get_attribute("aria-pressed") == "false"
    assert visit.page.evaluate("document.activeElement.textContent") == "lion"  # focus stays
    button.press("Enter")
    assert visit.page.locator("#curve-plot path.line").count() == 4


def test_error_bars_do_not_lie_upon_each_other(browser: Any, tmp_path: Path) -> None:
    """Three entrants with the same values: only their places along k can differ."""
    of = suite(points=8)
    runs = [r for name in ("a", "b", "c") for r in entrant(of, name, 0.2)]
    path = tmp_path / "page.html"
    path.write_text(board_page(make_board(of, admit(of, [replace(r, local=True) for r in runs]))))
    visit = _open(browser, path)
    bars = visit.page.evaluate(
        """[...document.querySelectorAll('#tuning-plot line.error')]
            .filter(l => l.x1.baseVal.value === l.x2.baseVal.value)
            .map(l => [l.x1.baseVal.value, l.style.stroke])"""
    )
    places = sorted({(round(x, 2), color) for x, color in bars})
    assert len(places) > 12 and len({color for _, color in places}) == 3
    assert min(b - a for (a, _), (b, _) in pairwise(places)) > 3


def test_each_run_has_its_page_with_the_command_that_makes_it_again(
    browser: Any, file: Path
) -> None:
    visit = _open(browser, file)
    visit.page.locator("#runs tbody a").first.click()
    visit.page.wait_for_selector("#run")
    command = visit.page.locator("#command").inner_text()
    assert command.startswith("python -m optbench optimizer=adam task=digits steps=100")
    assert "'board={suite:simulated," in command  # quoted for a shell
    assert '"lr": 0.2' in visit.page.locator("#run").inner_text()
    visit.page.locator("#run .command button").click()
    visit.page.locator("#run .command button", has_text="copied").wait_for()
    visit.page.evaluate(
        "document.body.append(Object.assign(document.createElement('textarea'), {id: 'pasted'}))"
    )
    visit.page.locator("#pasted").focus()
    visit.page.keyboard.press("Control+V")
    assert visit.page.locator("#pasted").input_value() == command
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_selector("#run", state="detached")
    assert visit.trouble == []


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("standings", HOSTILE),
        ("pairs", "adam sgd"),
        ("task-task1", "lion"),
        ("runs", "task2-sgd-final1-seed3"),
    ],
)
def test_every_row_has_a_link_that_leads_back_to_it(
    table: str, key: str, browser: Any, file: Path
) -> None:
    visit = _open(browser, file)
    row = visit.page.locator(f"#{table} tbody tr").filter(
        has=visit.page.locator(f"[aria-label='link to the row {key}']")
    )
    anchor = row.locator("a.anchor").get_attribute("href")
    again = _open(browser, file, anchor=anchor)
    chosen = again.page.locator(f"#{table} tr.chosen")
    assert chosen.get_attribute("data-key") == key
    top = chosen.evaluate("e => e.getBoundingClientRect().top")
    assert 0 < top < 800 and again.trouble == []


@pytest.mark.parametrize(
    "anchor",
    [
        "#row/nothing/adam",
        "#row/standings/nobody",
        "#run/none",
        "#row/%E0%A4%A/x",
        "#row/standings/%E0%A4%A",
        "#x",
    ],
)
def test_a_link_to_nothing_harms_nothing(anchor: str, browser: Any, file: Path) -> None:
    visit = _open(browser, file, anchor=anchor)
    assert visit.trouble == [] and visit.page.locator("tr.chosen, #run").count() == 0


@pytest.mark.parametrize("width", [360, 390, 1200])
def test_it_fits_the_window(browser: Any, file: Path, width: int) -> None:
    visit = _open(browser, file, width=width)
    visit.page.locator("#runs tbody a").first.click()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    smallest = (
        "Math.min(...[...document.querySelectorAll('td, p, li')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert visit.page.evaluate(smallest) >= 12


CONTRAST = """() => {
  const light = (text) => { const c = text.match(/[\\d.]+/g).map(Number).slice(0, 3).map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * c[0] + .7152 * c[1] + .0722 * c[2]; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (c) => { const l = light(c); return (Math.max(l, paper) + .05) / (Math.min(l, paper) + .05); };
  const of = (selector, key) => Math.min(...[...document.querySelectorAll(selector)].map(e => ratio(getComputedStyle(e)[key])));
  return {text: of('h1, p, td, li, a:not(.anchor), dd', 'color'), svg: of('svg text', 'fill'), lines: of('path.line, line.bar', 'stroke'), paper};
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark(browser: Any, file: Path, scheme: str) -> None:
    """WCAG 2.2: 4.5 for text, 3 for what is drawn."""
    visit = _open(browser, file, scheme=scheme)
    for now in (scheme, "dark" if scheme == "light" else "light"):
        found = visit.page.evaluate(CONTRAST)
        assert (found["paper"] < 0.1) == (now == "dark")
        assert found["text"] >= 4.5 and found["svg"] >= 4.5 and found["lines"] >= 3
        visit.page.locator("#theme").click()


def test_it_can_be_used_without_a_mouse(browser: Any, file: Path) -> None:
    visit = _open(browser, file)
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className") == "skip"
    visit.page.keyboard.press("/")
    assert visit.page.evaluate("document.activeElement.ariaLabel") == "filter standings"
    visit.page.keyboard.type("lion")
    assert _names(visit) == ["lion"]
    clickable = visit.page.evaluate(
        "[...document.querySelectorAll('button, a, input, select')].filter(e => e.tabIndex < 0).length"
    )
    assert clickable == 0
    names = "[...document.querySelectorAll('button, a, input, select, svg[role=img], [role=region]')].filter(e => !(e.ariaLabel || e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).length"
    assert visit.page.evaluate(names) == 0


def test_print_shows_tables_whole_in_black_on_white_and_no_controls(
    browser: Any, file: Path, tmp_path: Path
) -> None:
    visit = _open(browser, file, scheme="dark")
    visit.page.emulate_media(media="print")
    style = "getComputedStyle(document.body).%s"
    assert visit.page.evaluate(style % "color") == "rgb(0, 0, 0)"
    assert visit.page.evaluate(style % "backgroundColor") == "rgb(255, 255, 255)"
    for hidden in ("nav", ".controls", ".anchor", "#runs"):
        assert not visit.page.locator(hidden).first.is_visible()
    cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollHeight > e.clientHeight + 1 && getComputedStyle(e).overflow !== 'visible').length"
    assert visit.page.evaluate(cut) == 0
    pdf = tmp_path / "page.pdf"
    visit.page.pdf(path=str(pdf), prefer_css_page_size=True)
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.stat().st_size > 20_000


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
    visit = _open(browser, tmp_path / "page.html")
    assert visit.page.locator("#curve-plot path.line").count() == 2
    assert visit.page.title() == "optbench: 2 runs in 2 groups: digits, mlp"
    assert len(visit.column("runs", 1)) == 2 and visit.column("groups", 2) == ["1 done"] * 2
    assert "nothing: not a folder" in visit.page.locator("#passed-over + ul").inner_text()
    assert visit.page.locator(".panels path.line").count() == 9  # Adam has one distance: a dot
    assert visit.trouble == []


def test_one_reading_is_shared_by_all_four_panels(
    browser: Any, optbench: Command, tmp_path: Path, monkeypatch: Any
) -> None:
    every_ten = ("probes.generalization.every=10", "probes.sharpness.every=10")
    words = ("task=digits", "steps=20", *every_ten)
    folders = [optbench(*words, f"seed={seed}").folder for seed in (0, 1)]
    monkeypatch.setattr(sys, "argv", ["report", *map(str, folders), "out=page.html"])
    with pytest.raises(SystemExit):
        report()
    visit = _open(browser, tmp_path / "page.html")
    visit.page.locator(".panels svg").nth(2).focus()
    visit.page.keyboard.press("Home")
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator(".panels .guide[visibility=visible]").count() == 4
    said = visit.page.locator("#panel-values tbody td").all_text_contents()
    at_ten = [
        next(line for line in read_lines(folder / "metrics.jsonl") if line["step"] == 10)
        for folder in folders
    ]
    names = ("train/loss", "val/loss", "sharpness/lambda_max", "edge/distance", "gap/loss")
    means = [sum(line[name] for line in at_ten) / 2 for name in names]
    assert [float(cell.replace("−", "-")) for cell in said[1:]] == pytest.approx(means, rel=3e-3)
    for width in (360, 1200):
        visit.page.set_viewport_size({"width": width, "height": 800})
        fits = "document.documentElement.scrollWidth <= window.innerWidth"
        assert visit.page.evaluate(fits)
    assert visit.trouble == []


def test_no_name_can_end_the_script_that_holds_the_data() -> None:
    """Holds without a browser too."""
    text = board_page(_board())
    assert HOSTILE not in text and HOSTILE in str(unpacked(text))
    assert "http-equiv" in text and "default-src 'none'" in text
    assert report_page([]).count("<main") == 1


def test_a_page_of_very_many_curves_stays_small_and_says_what_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = _board()
    whole = board_page(board)
    assert len(whole) < 200_000 < LARGEST_PAGE and "left out" not in str(unpacked(whole)["origin"])
    monkeypatch.setattr(page_module, "CURVE_POINTS", (60, 3, 0))
    monkeypatch.setattr(page_module, "LARGEST_PAGE", len(whole) - 1)
    thin = unpacked(board_page(board))
    assert ["left out", "curves have at most 3 of their 5 points, to keep this page small"] in thin[
        "origin"
    ]
    curve = thin["runs"][0]["curve"]
    assert curve["step"] == [0, 50, 100] and len(curve["val/loss"]) == 3
    monkeypatch.setattr(page_module, "LARGEST_PAGE", 0)
    bare = unpacked(board_page(board))
    assert bare["runs"][0]["curve"] == {} and "curves are left out" in str(bare["origin"])


def test_a_number_that_is_not_finite_is_a_gap_and_the_page_stays_json() -> None:
    """JSON has no infinity: a browser would refuse the whole page."""
    curve: dict[str, list[float | None]] = {
        "step": [0, 50, 100],
        "val/loss": [0.5, float("inf"), float("nan")],
    }
    level = 0.1 * np.ones((3, 4))
    runs = [replace(run, local=True, curve=curve) for run in entrant(SUITE, "adam", level)]
    board = make_board(SUITE, admit(SUITE, runs))
    board = replace(board, words=words(board))
    page = board_page(board)
    start = page.index('id="data">') + len('id="data">')
    packed = base64.b64decode(page[start : page.index("</script>", start)])
    text = gzip.decompress(packed).decode()
    assert "[0.5,null,null]" in text and not {"NaN", "Infinity", "inf", "nan"} & {
        *re.split(r"[\[\],]", text)
    }
