"""The edge atlas: its arithmetic, the rule for its learning rates, and forms of it on a few optimizers."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from optbench.studies.atlas_entries import (
    ATLAS,
    CHOICE_SEED,
    NOT_REACHED,
    OPEN,
    SEEDS,
    WITHIN,
    Entry,
)
from optbench.studies.command import Engine, Settings, do_atlas, do_choice, engine_of, main
from optbench.studies.edge_atlas import PAGE, SYMBOLS, Row, Series, markdown, verdict, write
from optbench.studies.lr_choice import Tried, choose
from tests.conftest import Call

ENTRY = Entry("x", ("optimizer=sgd",), (0.1,), 0.1)
DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/edge_atlas.md").read_text()


def _engine(results: Path) -> Engine:
    return engine_of(Settings("edge_atlas", jobs=2, results_dir=results))


def test_the_ratio_is_the_median_of_the_second_half_or_the_ratio_of_means() -> None:
    series = Series("x", [0, 10, 20, 30, 40], [9.0, 8.0, 1.0, 4.0, 0.5], [1.0, 1.0, 1.0, 2.0, 1.0])
    assert series.plateau(mean=False) == 1.0
    assert series.plateau(mean=True) == pytest.approx(5.5 / 4)
    assert series.plateau(False, 0.25, 0.5) == 4.5  # 8 and 1
    assert math.isnan(Series("x", [], [], []).plateau(mean=False))


@pytest.mark.parametrize(
    ("ratios", "reached", "statuses", "expected"),
    [
        ([1.04, 0.96], 1.0, ["done", "done"], "within"),
        ([1.04, 0.94], 1.0, ["done", "done"], "outside"),
        ([0.99], 0.0, ["done"], "edge not reached"),
        ([1.0], 1.0, ["diverged"], "diverged"),
        ([], 0.0, [], "missing"),
    ],
)
def test_the_verdict(
    ratios: list[float], reached: float, statuses: list[str], expected: str
) -> None:
    assert verdict(ENTRY, ratios, reached, statuses) == expected


def test_an_entry_without_an_established_edge_is_open_and_says_why() -> None:
    assert verdict(replace(ENTRY, tolerance=None), [1.0], 1.0, ["done"]) == "open"
    assert all(e.why for e in ATLAS if e.tolerance != 0.05 or e.expected != WITHIN)
    assert all((e.tolerance is None) == (e.expected in (OPEN, NOT_REACHED)) for e in ATLAS)


def test_names_are_unique_rates_ascend_and_commands_begin_with_the_optimizer() -> None:
    assert len({e.name for e in ATLAS}) == len(ATLAS) and not any("," in e.name for e in ATLAS)
    assert all(e.lr in e.lrs and list(e.lrs) == sorted(e.lrs) for e in ATLAS)
    assert all(e.command(e.lr, 1)[0].startswith("optimizer=") for e in ATLAS)
    assert CHOICE_SEED not in SEEDS


def test_the_rule_takes_the_smallest_rate_that_starts_below_arrives_and_falls() -> None:
    tried = [
        Tried("x", 0.1, 0.3, 0.8, 0.9, True),  # too late
        Tried("x", 0.2, 1.2, 1.0, 1.0, True),  # from above
        Tried("x", 0.3, 0.5, 1.0, 1.0, False),  # does not learn
        Tried("x", 0.4, 0.5, 1.3, 1.3, True),
        Tried("x", 0.5, 0.5, 1.0, 1.0, True),
    ]
    assert choose(tried) == 0.4  # how far above is not asked
    assert choose(tried[:3]) is None
    assert not Tried("x", 0.1, math.nan, math.nan, math.nan, True).admissible


def test_the_table_in_markdown(tmp_path: Path) -> None:
    rows = [
        Row(
            "x",
            1e-4,
            [1.25, math.nan, 0.75],
            1.0,
            0.12,
            1.0,
            "outside",
            WITHIN,
            "edge/norm_sharpness",
            "crowded",
        ),
        Row("y", 0.1, [], math.nan, None, 0.0, "missing", OPEN, "", ""),
    ]
    write(rows, tmp_path)
    assert (tmp_path / PAGE).read_text().splitlines() == [
        "| optimizer | lr | measured | median | lowest to highest | tolerance | verdict | why |",
        "|---|---|---|---|---|---|---|---|",
        "| x | 0.0001 | norm sharpness | 1.000 | 0.750 to 1.250 | ±12% | outside | crowded |",
        "| y | 0.1 |  | – | – | – | missing |  |",
    ]


def test_the_document_ends_in_the_table_that_the_study_writes_of_this_atlas() -> None:
    """Numbers and verdicts are the document's own, for want of its runs; the rest is the atlas's."""
    metrics = {symbol: metric for metric, symbol in SYMBOLS.items()}
    rows = []
    for entry, line in zip(ATLAS, DOCUMENT.partition("\n|")[2].splitlines()[2:], strict=True):
        _, _, symbol, median, spread, _, said, _ = line.strip("|").split("|")
        lowest, highest = map(float, spread.split(" to "))
        numbers = [lowest, float(median), highest], float(median), entry.tolerance, 1.0
        quantity = metrics[symbol.strip()]
        rows.append(
            Row(entry.name, entry.lr, *numbers, said.strip(), entry.expected, quantity, entry.why)
        )
    assert DOCUMENT.endswith("\n\n" + markdown(rows))


def test_short_form_of_a_few_optimizers_and_a_second_time_without_a_run(tmp_path: Path) -> None:
    chosen = [e for e in ATLAS if e.name in ("Adam", "gradient descent", "SGD batch 16")]
    assert do_atlas(chosen, [1], True, _engine(tmp_path), tmp_path, "atlas") == []
    rows = {
        row["optimizer"]: row
        for row in csv.DictReader((tmp_path / "studies/atlas/edge_atlas.csv").open())
    }
    assert rows["Adam"]["quantity"] == "edge/preconditioned_sharpness"
    assert rows["SGD batch 16"]["quantity"] == "batch/sharpness"
    for name in ("Adam", "gradient descent"):
        # 5 % in the long form
        assert abs(float(rows[name]["median"]) - 1) < 0.12 and float(rows[name]["reached"]) == 1
    assert (tmp_path / "studies/atlas/edge_atlas.png").stat().st_size > 10_000
    before = {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/*")}
    assert do_atlas(chosen, [1], True, _engine(tmp_path), tmp_path, "atlas") == []
    assert before == {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/*")}


def test_every_rate_that_was_tried_is_written_and_a_rate_that_diverges_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("optbench.studies.atlas_entries.STEPS", 60)
    assert (
        do_choice([replace(ENTRY, lrs=(0.1, 5e3), lr=0.1)], _engine(tmp_path), tmp_path, "rates")
        == []
    )
    rows = list(csv.DictReader((tmp_path / "studies/rates/edge_atlas_rates.csv").open()))
    assert [row["lr"] for row in rows] == ["0.1", "5000"]
    assert [row["falls"] for row in rows] == ["True", "False"]
    assert "takes none" in capsys.readouterr().out


def test_a_killed_atlas_goes_on_where_it_was(tmp_path: Path, called: Call) -> None:
    study = ["edge_atlas", "short=true", "jobs=1", f"results_dir={tmp_path}"]
    study += ["only=gradient descent,Nesterov"]
    command = [sys.executable, "-m", "optbench.study", *study]
    first = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    runs, deadline = tmp_path / "studies/edge_atlas_short/runs.jsonl", time.monotonic() + 300
    while not runs.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait(timeout=300) != 0
    before = {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/summary.json")}
    done = [f for f in before if '"done"' in f.read_text()]
    assert len(done) == 1
    second = called(main, tmp_path, *study)
    assert second.code == 0 and "Nesterov" in second.out
    assert done[0].stat().st_mtime_ns == before[done[0]]


@pytest.mark.slow
def test_long_form_every_row_comes_to_the_verdict_that_is_stated(tmp_path: Path) -> None:
    """Three seeds; up to 40 minutes on two cores. A row that changes sides fails it, either way."""
    present = [e for e in ATLAS if e.available]
    assert do_atlas(present, SEEDS, False, _engine(tmp_path), tmp_path, "atlas") == []
    rows = {
        row["optimizer"]: row
        for row in csv.DictReader((tmp_path / "studies/atlas/edge_atlas.csv").open())
    }
    assert {e.name: rows[e.name]["verdict"] for e in present} == {
        e.name: e.expected for e in present
    }


def test_an_unknown_entry_is_named_with_those_that_exist(tmp_path: Path, called: Call) -> None:
    done = called(main, tmp_path, "edge_atlas", "only=nope")
    assert done.code == 2 and "no entry called nope" in done.err and "Adam" in done.err


def test_results_that_cannot_be_written_name_the_key_of_the_study(
    tmp_path: Path, called: Call
) -> None:
    (tmp_path / "taken").write_text("")
    done = called(
        main,
        tmp_path,
        "edge_atlas",
        "short=true",
        "only=Adam",
        f"results_dir={tmp_path / 'taken'}",
    )
    assert done.code == 1
    assert "a file is in the way" in done.err and "say results_dir=DIR" in done.err
