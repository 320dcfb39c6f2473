"""The page of all verdicts: made of them alone, in Markdown and in a real browser."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from optbench.studies import overview
from optbench.studies.command import main
from optbench.studies.declaration import known_studies, read_study
from optbench.studies.overview import HTML, README, Bar, collect, read_outline, render, write
from tests.conftest import Call
from tests.visit import Visit

RESULTS = Path(__file__).resolve().parents[2] / "results" / "studies"


def test_the_committed_pages_are_those_of_the_committed_verdicts() -> None:
    found = collect(RESULTS)
    assert (RESULTS / README).read_text() == render(found, README)
    assert (RESULTS / HTML).read_text() == render(found, HTML)


def test_every_sentence_is_of_a_declared_hypothesis_and_every_direction_has_a_question() -> None:
    outline = read_outline()
    for answer in outline.answers:
        names = [h.name for h in read_study(answer.study).study.declaration.hypotheses]
        assert answer.hypothesis in names
        assert len({answer.supported, answer.refuted, answer.undecided}) == 3
    for name in known_studies():
        for part in read_study(name).study.declaration.direction.split(","):
            assert part.strip() in outline.questions, name


@pytest.mark.parametrize("verdict", ["supported", "refuted", "undecided"])
def test_the_first_paragraph_follows_the_verdict(tmp_path: Path, verdict: str) -> None:
    content = json.loads((RESULTS / "one_slope" / "verdict.json").read_text())
    content["hypotheses"][0]["verdict"] = verdict
    (tmp_path / "one_slope").mkdir()
    (tmp_path / "one_slope" / "verdict.json").write_text(json.dumps(content))
    found = collect(tmp_path)
    said = next(a for a in read_outline().answers if a.study == "one_slope")
    assert getattr(said, verdict).strip() in [sentence.strip() for sentence in found.answers]
    assert len(found.answers) == sum(a.study == "one_slope" for a in read_outline().answers)
    assert "which_property" in found.missing
    assert f"{overview.SIGNS[verdict]} **{verdict}**" in render(found, README)


def test_an_interval_is_drawn_to_scale() -> None:
    bar = Bar.of(0.5, 0.0, 1.0, 1.0)  # from −1 to 1 over 94 of 100
    assert (bar.inner, bar.zero, bar.low, bar.high) == ((3.0, 97.0), 50.0, 50.0, 97.0)
    assert bar.value == pytest.approx(73.5)


def test_text_of_a_verdict_is_text_on_the_page(tmp_path: Path) -> None:
    content = json.loads((RESULTS / "one_slope" / "verdict.json").read_text())
    content["title"] = "<script>alert(1)</script>"
    (tmp_path / "one_slope").mkdir()
    (tmp_path / "one_slope" / "verdict.json").write_text(json.dumps(content))
    assert "<script>" not in render(collect(tmp_path), HTML)


@pytest.mark.parametrize("width", [1200, 390])
def test_it_is_read_in_a_browser_at_desktop_and_phone_width(
    browser: Any, tmp_path: Path, width: int
) -> None:
    for name in ("one_slope", "which_property"):
        shutil.copytree(RESULTS / name, tmp_path / name)
    _, page = write(tmp_path)
    visit = Visit(browser, page, width)
    assert visit.page.locator("#verdicts tbody tr").count() == 6
    assert visit.page.locator("#one_slope .claim").count() == 2
    widths = visit.page.evaluate(
        "[...document.images].map(image => image.complete && image.naturalWidth)"
    )
    assert len(widths) == 3 and all(widths)
    # room is left for each, so that a link to what is below them leads there
    room = visit.page.evaluate(
        """[...document.images].map(i => [i.getAttribute("width"), i.naturalWidth, i.naturalHeight,
            getComputedStyle(i).aspectRatio])"""
    )
    assert all(int(said) == w and ratio == f"auto {w} / {h}" for said, w, h, ratio in room)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    visit.page.locator("#verdicts a", has_text="which_property").first.click()
    assert visit.page.url.endswith("#which_property")
    assert visit.trouble == []


def test_the_command_says_where_it_wrote(called: Call, tmp_path: Path) -> None:
    done = called(main, tmp_path, "overview", "results_dir=here")
    assert done.code == 0
    assert done.out.split() == ["here/studies/README.md", "here/studies/index.html"]
    assert "No study of it has been run here." in (tmp_path / "here/studies/README.md").read_text()
