"""Studies: declared once, judged by the declared rules, and not fooled by planted worlds."""

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml

from optbench.errors import UserError
from optbench.intervals import Interval
from optbench.launch.launcher import Finished
from optbench.record.commits import committed, git
from optbench.statistics import verdict
from optbench.studies import conduct as conducting
from optbench.studies import verdict_page
from optbench.studies.conduct import conduct, plant, read_table, take_errata, write_table
from optbench.studies.declaration import (
    HISTORY,
    Declared,
    known_studies,
    read_study,
    remember,
    told,
)
from optbench.studies.frame import (
    REFUTED,
    SUPPORTED,
    Cell,
    Declaration,
    Finding,
    Size,
    Table,
    columns,
)
from optbench.studies.one_slope import OneSlope, heterogeneity
from optbench.studies.planted_runs import planted_runs


class Coin:
    """A study of a number that is +1 in one world and 0 in the other."""

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "heads": {"positive": SUPPORTED},
        "tails": {"positive": REFUTED},
    }

    def __init__(self, declaration: Declaration, level: float = 1.0) -> None:
        self.declaration, self.level = declaration, level

    def plan(self, size: Size) -> list[Cell]:
        count = self.declaration.sizes[size]["runs"]
        return [Cell({"seed": i}, ("task=digits", f"seed={i}")) for i in range(count)]

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        return [dict(cell.factors) | {"value": self.level}]

    def judge(self, table: Table) -> list[Finding]:
        values = table.get("value", np.array([math.nan]))
        estimate = Interval(*[float(np.mean(values))] * 3)
        (h,) = self.declaration.hypotheses
        said = verdict(estimate, h.sesoi, h.sign)
        return [Finding(h.name, estimate, said, len(values))]

    def planted(self, world: str, seed: int) -> Table:
        return {"value": np.array([1.0 if world == "heads" else 0.0])}

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        yield from ()


def _declare(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "_target_": "tests.studies.test_frame.Coin",
        "title": "Is it positive?",
        "direction": "8c",
        "question": "Is it?",
        "protocol": "A coin.",
        "controls": "None.",
        "not_shown": "Much.",
        "sizes": {"smoke": {"runs": 2}, "small": {"runs": 3}},
        "hypotheses": [
            {"name": "positive", "claim": "It is.", "statistic": "mean", "sign": 1, "sesoi": 0.5}
        ],
    }
    (folder / "study").mkdir(exist_ok=True)
    (folder / "study" / "coin.yaml").write_text(yaml.safe_dump(content | changes))
    return folder


class NoLauncher:
    """Makes nothing."""

    def launch(self, commands: Any, say: Any) -> Generator[Finished, None, None]:
        for command in commands:
            yield Finished(tuple(command), None, "not made")


def test_the_studies_that_come_with_it_are_known_and_can_be_planned() -> None:
    assert {"which_property", "one_slope"} <= set(known_studies())
    for name in known_studies():
        study = read_study(name).study
        for size in ("smoke", "small", "full"):
            # a run may be a cell of two comparisons, under other factors
            cells = [(cell.command, str(dict(cell.factors))) for cell in study.plan(size)]
            assert len(set(cells)) == len(cells) > 0
        rules = {h.name for h in study.declaration.hypotheses}
        assert all(set(right) <= rules for right in study.worlds.values())
        seeds = {cell.factors.get("seed") for cell in study.plan("small")}
        if seeds == {None}:  # a cell is a task, with seeds of its own: tasks are what is drawn
            assert name == "forecast" and len(study.plan("small")) == 7
            continue
        # claims about generalization take ten seeds, those about dynamics five
        assert len(seeds) >= (10 if "8c" in study.declaration.direction else 5)


def test_a_study_of_ones_own_is_one_file_and_one_yaml(tmp_path: Path) -> None:
    declared = read_study("coin", _declare(tmp_path))
    assert [len(declared.study.plan(size)) for size in ("smoke", "small")] == [2, 3]
    with pytest.raises(UserError, match=r"there is no study called coim. Did you mean coin"):
        read_study("coim", tmp_path)
    with pytest.raises(UserError, match=r"does not declare a study: .*sesio"):
        read_study("coin", _declare(tmp_path, sesio=1))


def test_a_changed_declaration_is_another_and_says_what_had_been_seen(tmp_path: Path) -> None:
    results = tmp_path / "results"
    first = read_study("coin", _declare(tmp_path))
    assert "before any of its runs" in _told(results, first, 0)
    assert "before any of its runs" in _told(results, first, 7), "it was seen before them"
    hypotheses = [
        {"name": "positive", "claim": "It is.", "statistic": "mean", "sign": 1, "sesoi": 0.1}
    ]
    second = read_study("coin", _declare(tmp_path, hypotheses=hypotheses))
    assert second.digest != first.digest
    said = _told(results, second, 7)
    assert "after 7 of its runs were seen" in said and "declaration 2 of this study" in said
    assert len((results / HISTORY).read_text().splitlines()) == 2


def test_an_erratum_is_said_on_the_page_and_leaves_declaration_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conducting, "_pool", lambda jobs: _Here())
    before = read_study("coin", _declare(tmp_path))
    outcome = conduct(before, "small", NoLauncher(), tmp_path, 1, draws=2)
    verdict, page = ((outcome.folder / name).read_text() for name in ("verdict.json", "verdict.md"))
    take_errata(outcome.folder, before)
    assert (outcome.folder / "verdict.json").read_text() == verdict
    after = read_study("coin", _declare(tmp_path, errata=["It was no coin."]))
    assert after.digest == before.digest
    take_errata(outcome.folder, after)
    said = json.loads((outcome.folder / "verdict.json").read_text())
    assert said == json.loads(verdict) | {"errata": ["It was no coin."]}
    told = (outcome.folder / "verdict.md").read_text()
    assert told == verdict_page.render(said) and "- It was no coin." in told
    take_errata(outcome.folder, before)
    assert (outcome.folder / "verdict.md").read_text() == page, "and taken back"
    changed = read_study("coin", _declare(tmp_path, title="Was it?", errata=["It was no coin."]))
    take_errata(outcome.folder, changed)
    assert (outcome.folder / "verdict.md").read_text() == page, "a verdict of another declaration"


def test_errata_of_a_shared_file_are_not_those_of_the_study_that_shares_it(tmp_path: Path) -> None:
    _declare(tmp_path, errata=["It was no coin."])
    own = "shared: coin\n_target_: tests.studies.test_frame.Coin\ntitle: Is this?\n"
    (tmp_path / "study" / "other.yaml").write_text(own)
    declaration = read_study("other", tmp_path).study.declaration
    assert (declaration.title, declaration.question) == ("Is this?", "Is it?")
    assert list(declaration.errata) == []


def _told(results: Path, declared: Declared, runs_seen: int) -> str:
    return told(remember(results, declared, runs_seen), declared.digest, None)


def test_a_declaration_that_was_committed_before_the_runs_of_another_study_is_told_so() -> None:
    history = [
        {
            "digest": "a" * 64,
            "first_seen": "2026-01-03T00:00:00+00:00",
            "committed": "2026-01-01T00:00:00+00:00",
            "runs_seen": 5,
        }
    ]
    early, late = (f"2026-01-0{day}T00:00:00+01:00" for day in (1, 2))
    assert "before the first of them began" in told(history, "a" * 64, late)
    assert "after 5 of its runs were seen" in told(history, "a" * 64, early)


def test_when_files_were_committed_is_known_to_git(tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    file.write_text("a: 1")
    assert committed([file]) is None, "no repository"
    git(tmp_path, "init", "-q")
    assert committed([file]) is None, "not committed"
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    git(tmp_path, "add", "new.yaml")
    git(tmp_path, *who, "commit", "-q", "-m", "a", "--date", "2026-01-01T00:00:00Z")
    when = committed([file])
    assert when is not None and datetime.fromisoformat(when) <= datetime.now(UTC)
    file.write_text("a: 2")
    assert committed([file]) is None, "changed since"


def test_a_study_is_done_whole_where_every_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conducting, "_pool", lambda jobs: _Here())
    declared = read_study("coin", _declare(tmp_path))
    outcome = conduct(declared, "smoke", NoLauncher(), tmp_path, 1, draws=2)
    assert len(outcome.failures) == 2 and outcome.findings[0].verdict == "undecided"
    page = (outcome.folder / "verdict.md").read_text()
    assert "**undecided**" in page and "| heads | 2 | 0 | 0 |" in page
    content = json.loads((outcome.folder / "verdict.json").read_text())
    assert content["hypotheses"][0]["value"] is None
    assert verdict_page.render(content) == page, "the page is made from the JSON alone"


class _Here:
    """A pool that works in this process."""

    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> "_Result":
        return _Result(function(*arguments))


class _Result:
    def __init__(self, value: Any) -> None:
        self.value = value

    def result(self) -> Any:
        return self.value


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [{"task": "a", "lr": "x1", "error": 0.25}, {"task": "b", "lr": "x3", "loss": 1e-7}]
    write_table(tmp_path / "table.csv", rows)
    read, table = read_table(tmp_path / "table.csv"), columns(rows)
    assert list(read) == list(table)
    for name in table:
        assert np.array_equal(read[name], table[name], equal_nan=table[name].dtype.kind == "f")


@pytest.mark.parametrize("name", ["one_slope"])
def test_no_planted_world_fools_a_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each world, the verdict that is right there is given in at least 8 of 10 draws."""
    monkeypatch.setattr(conducting, "_pool", lambda jobs: _Here())
    study = read_study(name).study
    confusion = plant(study, 10, 1)
    for world, right in study.worlds.items():
        for hypothesis, verdict_there in right.items():
            counts = confusion[hypothesis][world]
            assert counts.get(verdict_there, 0) >= 8, (world, hypothesis, counts)


@pytest.mark.slow
def test_no_planted_world_fools_the_rules_of_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above; a rule says "supported" by chance in at most 2 of 10 draws where it is wrong."""
    monkeypatch.setattr(conducting, "_pool", lambda jobs: _Here())
    study = read_study("which_property").study
    confusion = plant(study, 10, 1)
    for world, right in study.worlds.items():
        for hypothesis, verdict_there in right.items():
            wrong = {SUPPORTED: REFUTED, REFUTED: SUPPORTED}[verdict_there]
            counts = confusion[hypothesis][world]
            assert counts.get(wrong, 0) <= 2, (world, hypothesis, counts)


def test_agreement_of_slopes_is_told_by_the_noncentrality() -> None:
    """Slopes that agree to within their errors have I² = 0 in the interval, others do not."""
    cause, confounded = planted_runs("cause", 1), planted_runs("confounded", 1)
    agreeing, _ = heterogeneity(cause, "sharpness", 0.95)
    apart, told = heterogeneity(confounded, "sharpness", 0.95)
    assert agreeing.low == 0 and agreeing.high < 0.65 and apart.low > 0.85
    assert "settings surely move sharpness" in told and "lr of adam on task 0" in told


def test_nothing_is_said_of_an_empty_table() -> None:
    for name in ("which_property", "one_slope"):
        findings = read_study(name).study.judge({})
        assert {finding.verdict for finding in findings} == {"undecided"}
    assert isinstance(read_study("one_slope").study, OneSlope)
