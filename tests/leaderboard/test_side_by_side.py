"""Runs side by side: which are one group, what is drawn of it, and what of a run that failed."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from optbench.__main__ import _report
from optbench.launch.multirun import main as multirun
from optbench.leaderboard.page import report_page, unpacked
from optbench.leaderboard.run_report import main as report
from optbench.leaderboard.run_report import read_runs, report_sweep
from optbench.leaderboard.side_by_side import Group, Member, compare, line_of, thinned
from optbench.record.panels import MOST_GROUPS, Line, Panel, draw_panels
from tests.conftest import Call, Command
from tests.leaderboard.fields import run, suite

RUN = run(suite(), "a", "task0", "final", 1, 0, 0.1)


def _member(status: str = "done", last: float = 1.0, **settings: str) -> Member:
    own = replace(RUN, status=status, step=7, steps=9, last={"train/loss": last})
    known = {"optimizer": "sgd", "task": "digits"}
    return Member(own, known | {k.replace("__", "."): v for k, v in settings.items()}, {})


def _with_series(*points: tuple[float, float]) -> Member:
    steps, values = zip(*points, strict=True)
    return replace(_member(), series={"m": (steps, values)})


def test_a_group_is_runs_that_agree_in_every_setting() -> None:
    found = compare([_member(optimizer__lr=lr) for lr in ("0.1", "0.2", "0.1")])
    assert [group.name for group in found.groups] == ["lr=0.1 (2 runs)", "lr=0.2 (1 run)"]
    assert found.differing == ["optimizer.lr"] and found.title == "3 runs in 2 groups: sgd, digits"


def test_a_name_says_no_more_than_tells_the_groups_apart() -> None:
    members = [
        _member(optimizer="adam", optimizer__lr="0.001", optimizer__betas="[0.9, 0.99]"),
        _member(optimizer="sgd", optimizer__lr="0.1"),
        _member(optimizer="sgd", optimizer__lr="0.2"),
    ]
    found = compare(members)
    names = [group.name.partition(" (")[0] for group in found.groups]
    assert names == ["adam lr=0.001", "sgd lr=0.1", "sgd lr=0.2"]
    assert found.differing == ["optimizer", "optimizer.lr", "optimizer.betas"]
    heads, rows = found.table()
    assert [row[heads.index("optimizer.betas")] for row in rows] == ["[0.9, 0.99]", "–", "–"]


def test_keys_with_one_last_word_are_named_whole() -> None:
    depths = [("1", "1"), ("2", "1"), ("1", "2")]
    members = [_member(model__depth=model, task__depth=task) for model, task in depths]
    found = compare(members)
    assert found.groups[1].name == "model.depth=2 task.depth=1 (1 run)"


def test_seeds_alone_are_one_group() -> None:
    found = compare([_member(), _member()])
    assert found.title == "2 runs: sgd, digits" and "nothing but the seed" in found.differences()


def test_a_line_is_the_median_and_the_ends_of_the_members_own_lines() -> None:
    members = [
        _with_series((0, 0.0), (10, 10.0)),
        _with_series((0, 2.0), (5, 2.0), (10, 2.0)),
        _with_series((0, 9.0), (5, 9.0)),
    ]
    line = line_of(Group("g", {}, members), 3, "m")
    assert line == Line("g", 3, [0, 5, 10], [2, 5, 6], [0, 2, 2], [9, 9, 10])
    assert line_of(Group("g", {}, members[:1]), 0, "m") == Line("g", 0, [0, 10], [0, 10])
    assert line_of(Group("g", {}, members), 0, "nothing") is None


def test_a_thinned_line_keeps_both_branches_and_both_ends() -> None:
    steps = list(range(5001))
    values = [1 + 0.5 * (-1.0) ** s for s in steps]
    line = thinned(Line("g", 0, steps, values, [v - 1 for v in values], [v + 1 for v in values]))
    assert len(line.steps) <= 400 and line.steps[0] == 0 and line.steps[-1] == 5000
    assert set(line.middle) == {0.5, 1.5} and list(line.steps) == sorted(line.steps)
    assert list(line.high) == [v + 1 for v in line.middle]
    short = Line("g", 0, [0, 1], [1, 2])
    assert thinned(short) is short


def test_finals_are_of_finished_runs_and_the_others_are_counted() -> None:
    members = [_member(last=x) for x in (3.0, 1.0, 2.0)] + [_member("diverged", 1e9)]
    group = compare(members).groups[0]
    assert group.final("train/loss") == "2 [1, 3]" and group.final("nothing") == "–"
    assert group.ends() == "3 done, 1 diverged (step 7 of 9)"
    assert group.name == "sgd (4 runs, 1 diverged)"


def test_a_diverged_group_does_not_flatten_the_gaps_of_the_others() -> None:
    series = {"gap/loss": ((0.0, 1.0), (0.0, 0.2))}
    burst = {"gap/loss": ((0.0, 1.0), (0.0, 1e9))}
    members = [replace(_member(), series=series)]
    members += [replace(_member("diverged", optimizer__lr="9"), series=burst)]
    gap = compare(members).panels()[3]
    assert gap.view == pytest.approx((-0.01, 0.21))
    assert compare(members[:1]).panels()[3].view is None


def test_what_only_some_groups_have_is_told() -> None:
    one = replace(_member(), series={"edge/distance": ((0.0, 1.0), (0.5, 1.0))})
    distance = compare([one, _member(optimizer="lion")]).panels()[2]
    assert distance.note == "not measured for lion (1 run)" and distance.is_log
    assert compare([_member(), _member()]).panels()[2].note == ""


@pytest.mark.parametrize("count", [1, 3, MOST_GROUPS + 4])
def test_any_number_of_groups_can_be_drawn(count: int, tmp_path: Path) -> None:
    names = [f"group {i}" for i in range(count)]
    lines = [Line(n, i, [0, 1, 2], [1, 2, i + 1.0]) for i, n in enumerate(names)]
    band = [replace(line, low=[0.5, 1, 1], high=[2, 3, 30.0]) for line in lines]
    panels = [Panel("a", "a", lines), Panel("b", "b", band, log=True, level=1.0)]
    panels += [Panel("c", "c", []), Panel("d", "d", lines[:1], view=(0, 1), note="nothing")]
    draw_panels(panels, names, "title", tmp_path / "report.png")
    pixels = plt.imread(tmp_path / "report.png")
    assert pixels.shape[1] > 1000 and float(np.std(pixels)) > 0.01
    first = (tmp_path / "report.png").read_bytes()
    draw_panels(panels, names, "title", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == first


def test_an_axis_is_logarithmic_for_two_decades_of_positive_values() -> None:
    for last, expected in ((99.0, False), (101.0, True), (-1.0, False), (math.nan, False)):
        panel = Panel("a", "a", [Line("g", 0, [0, 1], [1.0, last])])
        assert panel.is_log is expected


TINY = ("task=quadratic", "steps=40", "probes.generalization.every=10")


def test_damaged_diverged_and_unfinished_runs_are_told(
    optbench: Command, tmp_path: Path, called: Call
) -> None:
    done = optbench(*TINY).folder
    diverged = optbench(*TINY, "optimizer.lr=1e9").folder
    names = ("damaged", "unfinished", "cut")
    copies = [shutil.copytree(done, done.parent / name) for name in names]
    damaged, unfinished, cut = copies
    text = (damaged / "metrics.jsonl").read_bytes()
    (damaged / "metrics.jsonl").write_bytes(text.replace(b"0", b"1", 1))
    summary = json.loads((unfinished / "summary.json").read_text()) | {"status": "running"}
    (unfinished / "summary.json").write_text(json.dumps(summary | {"step": 12}))
    (cut / "config.yaml").unlink()
    outcome = called(report, tmp_path, *map(str, (done, diverged, *copies)), "out=page.html")
    assert outcome.code == 0
    assert f"passed over {damaged}: metrics.jsonl is not as the run left it" in outcome.err
    assert f"passed over {cut}: no config.yaml" in outcome.err
    assert outcome.out.split() == ["page.png", "page.html"]
    [table] = [
        part
        for section in unpacked((tmp_path / "page.html").read_text())["sections"]
        for part in section["parts"]
        if part.get("id") == "groups"
    ]
    ended = [row[table["head"].index("ended")][0] for row in table["rows"]]
    assert ended[0] == "1 done, 1 running (step 12 of 40)"
    assert ended[1].startswith("1 diverged (step ")


def test_one_run_has_a_page_without_comparison_and_no_png(
    optbench: Command, tmp_path: Path, called: Call
) -> None:
    folder = optbench(*TINY).folder
    outcome = called(report, tmp_path, str(folder), str(folder), "out=deep/page.html")
    assert outcome.out.split() == ["deep/page.html"]
    content = unpacked((tmp_path / "deep/page.html").read_text())
    assert content["title"] == "1 run"
    assert [s["id"] for s in content["sections"]] == ["about", "curves", "runs-title"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_a_page_cannot_take_the_name_of_its_png(
    optbench: Command, tmp_path: Path, called: Call
) -> None:
    outcome = called(report, tmp_path, "nothing", "out=page.png")
    assert outcome.code == 2 and "say out=FILE.html" in outcome.err


def test_a_sweep_writes_its_report_and_ends_with_its_path(
    optbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: Call
) -> None:
    def main() -> None:
        multirun(report_sweep)

    words = ("--multirun", *TINY, "wandb.mode=disabled", "optimizer.lr=0.1,0.2,-1")
    outcome = called(main, tmp_path, *words)
    assert outcome.code == 2  # of the third
    [page] = tmp_path.glob("results/sweeps/*/report.html")
    assert outcome.out.splitlines()[-1] == f"report: {page.relative_to(tmp_path)}"
    assert page.with_suffix(".png").is_file()
    assert unpacked(page.read_text())["title"].startswith("2 runs in 2 groups")


@pytest.mark.parametrize("words", [("picture=false", "seed=0,1"), ("seed=0",)])
def test_a_sweep_without_pictures_or_with_one_run_writes_none(
    words: tuple[str, ...], tmp_path: Path, called: Call
) -> None:
    def main() -> None:
        multirun(report_sweep)

    outcome = called(main, tmp_path, "--multirun", *TINY, "wandb.mode=disabled", *words)
    assert outcome.code == 0 and "report" not in outcome.out
    assert list(tmp_path.rglob("report.html")) == []


def test_the_main_job_reports_its_sweeps(tmp_path: Path) -> None:
    assert _report([tmp_path / "a", tmp_path / "b"], tmp_path) == ""


def test_a_run_that_is_named_twice_is_read_once(optbench: Command) -> None:
    folder = optbench(*TINY).folder
    comparison = read_runs([folder, folder])
    assert len(comparison.members) == 1
    assert "Comparison" not in report_page([comparison.members[0].run], comparison)
