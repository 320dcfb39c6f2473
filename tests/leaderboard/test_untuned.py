"""Runs of no suite: grouped by problem and budget, paired by seed, and said to be untuned."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from optbench.errors import UserError
from optbench.leaderboard import __main__ as board_main
from optbench.leaderboard import untuned_tables
from optbench.leaderboard.__main__ import main
from optbench.leaderboard.page import unpacked
from optbench.leaderboard.results_folder import read_folders
from optbench.leaderboard.run_line import Run
from optbench.leaderboard.untuned import Comparison, compare_runs
from optbench.protocol.suite import read_suite
from tests.conftest import Call, Command
from tests.leaderboard.fields import run, suite
from tests.leaderboard.hostile import write_folder
from tests.visit import Visit

SUITE = suite(seeds=8)
CONDITIONS = {"task": "digits", "model": "mlp", "steps": 100, "batch_size": "full"}


def _run(optimizer: str, seed: int, loss: float, **changes: Any) -> Run:
    made = run(SUITE, optimizer, "task0", "final", 0, seed, loss / 2)
    name = changes.pop("name", f"{optimizer}-{seed}-{len(changes)}")
    return replace(made, name=name, **({"conditions": CONDITIONS} | changes))


def _field(levels: dict[str, float], seeds: int = 3) -> list[Run]:
    return [
        _run(name, seed, level + 0.01 * seed)
        for name, level in levels.items()
        for seed in range(seeds)
    ]


def test_optimizers_are_ordered_by_their_median_and_paired_by_seed() -> None:
    [group] = compare_runs(_field({"sgd": 0.4, "adam": 0.2})).groups
    assert group.metric == "test/loss"
    assert [(line.name, line.rank) for line in group.lines] == [("adam", 1), ("sgd", 2)]
    assert group.lines[0].value.value == pytest.approx(0.21)
    [(names, compared)] = group.pairs.items()
    assert names == ("adam", "sgd") and list(compared.seeds) == [0, 1, 2]
    assert compared.pair.difference.value == pytest.approx(0.2)
    assert compared.p == pytest.approx(0.25) and group.lines[0].ranks == (1, 2)
    assert "least possible p is 0.25" in group.said[-1]


def test_enough_seeds_tell_them_apart() -> None:
    [group] = compare_runs(_field({"sgd": 0.4, "adam": 0.2}, seeds=8)).groups
    assert group.lines[0].ranks == (1, 1) and group.lines[1].ranks == (2, 2)
    assert "Of 1 pair, 1 is told apart" in group.said[-1]


def test_pairs_are_of_one_seed_not_of_one_place() -> None:
    """adam wins at each seed by the same; without pairing by seed the seeds' spread would hide it."""
    runs = [
        _run(name, seed, 10.0 * seed + level)
        for name, level in (("adam", 1.0), ("sgd", 1.1))
        for seed in (range(6) if name == "adam" else reversed(range(6)))
    ]
    [group] = compare_runs(runs).groups
    [compared] = group.pairs.values()
    pair = compared.pair
    assert pair.wins == 1.0 and pair.difference.low == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"problem": "another", "conditions": CONDITIONS | {"batch_size": 50}},
        {"problem": "another", "conditions": CONDITIONS | {"model": "cnn"}},
        {"problem": "another", "conditions": CONDITIONS | {"task.label_noise": 0.2}},
        {"problem": "another", "conditions": CONDITIONS | {"steps": 50}},
    ],
)
def test_another_problem_or_budget_is_another_group(changes: dict[str, Any]) -> None:
    runs = [*_field({"sgd": 0.4, "adam": 0.2}), _run("lion", 0, 0.1, **changes)]
    first, second = compare_runs(runs).groups
    assert [line.name for line in first.lines] == ["adam", "sgd"]
    assert [line.name for line in second.lines] == ["lion"] and not second.pairs
    assert first.title != second.title and "alone" in second.said[0]
    (value,) = set(changes["conditions"].values()) - set(CONDITIONS.values())
    assert str(value) in second.title


def test_data_that_depend_on_the_seed_are_paired_by_seed() -> None:
    runs = [replace(r, data_hash=f"data {r.seed}") for r in _field({"sgd": 0.4, "adam": 0.2})]
    [group] = compare_runs(runs).groups
    assert len(group.pairs) == 1 and [list(line.runs) for line in group.lines] == [[0, 1, 2]] * 2


def test_other_data_of_the_same_seed_are_never_merged() -> None:
    other = [
        replace(r, data_hash="other", name=f"z{r.name}") for r in _field({"adam": 0.1, "lion": 0.1})
    ]
    found = compare_runs([*_field({"sgd": 0.4, "adam": 0.2}), *other[:5]])
    [group] = found.groups
    assert [line.name for line in group.lines] == ["adam", "sgd"] and found.runs == 6
    assert set(found.left_out) == {run.name for run in other[:5]}
    assert found.left_out["zadam-0-0"] == "another data hash than the other runs of seed 0 have"


def _titles(*changes: dict[str, Any]) -> list[str]:
    runs = [
        _run("sgd", 0, 0.4, problem=f"{i}problem", conditions=CONDITIONS | own, name=str(i))
        for i, own in enumerate(changes)
    ]
    return sorted(group.title for group in compare_runs(runs).groups)


def test_a_title_names_what_is_set_and_differs_not_what_another_part_brings() -> None:
    cosine = {"schedule.T_max": 8, "schedule.eta_min": 0, "schedule._partial_": True}
    digits, mlp = "digits, mlp, steps 100, batch_size full, schedule", {"model._partial_": True}
    assert _titles(
        {"schedule": "constant", "stop.metric": None, "task.noise": None},
        {"schedule": "constant", "task.train_size": 100, "task.noise": 0.2, "stop.below": 0.1},
        {"schedule": "cosine", "stop.below": None} | cosine | mlp,
        {"schedule": "constant", "task": "blobs", "task.spread": 1},
    ) == [
        "blobs, mlp, steps 100, batch_size full, schedule constant",
        f"{digits} constant",
        f"{digits} constant, stop.below 0.1, task.noise 0.2, task.train_size 100",
        f"{digits} cosine",
    ]


def test_titles_that_would_be_alike_all_say_their_problem() -> None:
    base = "digits, mlp, steps 100, batch_size full, problem"
    targets = [{"model._target_": name} for name in "ab"]
    assert _titles(*targets) == [f"{base} 0probl", f"{base} 1probl"]


def test_a_title_wraps_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(board_main, "console_width", lambda: 80)
    task, model = "a_task_of_a_rather_long_name", "a_model_of_a_rather_long_name"
    conditions = CONDITIONS | {"task": task, "model": model}
    board_main._print_comparison(compare_runs([_run("sgd", 0, 0.4, conditions=conditions)]))
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(map(str.strip, lines[1:3])) == f"{task}, {model}, steps 100, batch_size full"


def test_settings_that_differ_are_in_the_name() -> None:
    runs = _field({"sgd": 0.4}) + [
        _run("adam", seed, 0.2 + lr, settings={"lr": lr, "betas": [0.9, 0.99]}, name=f"a{seed}{lr}")
        for seed in range(3)
        for lr in (0.01, 0.001)
    ]
    [group] = compare_runs(runs).groups
    assert [line.name for line in group.lines] == ["adam lr=0.001", "adam lr=0.01", "sgd"]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((0.1234567, 0.1234568), ["adam lr=0.1234567", "adam lr=0.1234568"]),
        ((0.5, 0.123456789), ["adam lr=0.123457", "adam lr=0.5"]),
        ((0.5, "0.5"), ["adam lr='0.5'", "adam lr=0.5"]),
        ((1, 1.0), ["adam lr=1", "adam lr=1.0"]),
        (("a", None), ["adam lr=None", "adam lr=a"]),
    ],
)
def test_settings_that_are_spelled_alike_in_short_are_two_lines(
    values: tuple[object, object], names: list[str]
) -> None:
    runs = [
        _run("adam", seed, 0.2, settings={"lr": value}, name=f"{value!r}{seed}")
        for value in values
        for seed in (0, 1)
    ]
    found = compare_runs(runs)
    assert [line.name for line in found.groups[0].lines] == names and not found.left_out


def test_names_that_would_be_alike_are_numbered() -> None:
    settings = [{"a": "1 b=2"}, {"a": "1", "b": 2}]
    runs = [_run("adam", 0, 0.2, settings=own, name=str(own)) for own in settings]
    [group] = compare_runs(runs).groups
    assert [line.name for line in group.lines] == ["adam a=1 b=2 (1)", "adam a=1 b=2 (2)"]


def test_names_that_differ_in_a_sign_that_no_file_has_are_two_lines() -> None:
    runs = [
        _run("mine_adam", seed, 0.2, given_name=name, name=f"{name}{seed}")
        for name in ("mine/adam", "mine_adam")
        for seed in (0, 1)
    ]
    [group] = compare_runs(runs).groups
    assert [line.name for line in group.lines] == ["mine/adam", "mine_adam"]


def _folder(results: Path, sources: dict[str, str], optimizer: str = "torch.optim.Adam") -> None:
    """A run folder whose provenance has these sources."""
    count = len(list((results / "runs").glob("*")))
    folder = results / "runs" / f"run{count}"
    settings = {"_target_": optimizer, "lr": 0.1}
    write_folder(folder, _run("adam", count, 0.2, settings=settings))
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sources": sources}))
    if "mine.task" in sources:
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("size: 1", "_target_: mine.task"))


def test_an_optimizer_of_other_code_is_another_line(tmp_path: Path) -> None:
    for digest in ("1a" * 32, "1a" * 32, "2b" * 32):
        _folder(tmp_path, {"mine.Adam": digest, "torch.optim.Adam": digest}, "mine.Adam")
    [group] = compare_runs(read_folders(tmp_path, any_run=True)[0]).groups
    assert {line.name: list(line.runs) for line in group.lines} == {
        "adam code=1a1a1a1a": [0, 1],
        "adam code=2b2b2b2b": [2],
    }


def test_a_task_of_other_code_is_another_problem(tmp_path: Path) -> None:
    for digest in ("1a" * 32, "1a" * 32, "2b" * 32):
        _folder(tmp_path, {"mine.task": digest})
    first, second = compare_runs(read_folders(tmp_path, any_run=True)[0]).groups
    assert [list(line.runs) for line in (*first.lines, *second.lines)] == [[0, 1], [2]]
    assert "code of mine.task 1a1a1a1a" in first.title
    assert "code of mine.task 2b2b2b2b" in second.title


@pytest.mark.parametrize("stop", ["train/loss", None])
def test_where_a_measurement_ends_a_run_what_is_measured_when_is_of_the_problem(
    stop: str | None, tmp_path: Path
) -> None:
    for n, every in enumerate((1, 20)):
        _folder(tmp_path, {})
        config = tmp_path / f"runs/run{n}/config.yaml"
        more = {
            "stop": {"metric": stop, "below": 0.25 if stop else None},
            "probes": {"generalization": {"every": every}},
        }
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | more))
    groups = compare_runs(read_folders(tmp_path, any_run=True)[0]).groups
    named = [f"every {every}" in group.title for group in groups for every in (1, 20)]
    assert sorted(named) == ([False, False, True, True] if stop else [False, False])


def test_another_version_of_what_comes_along_is_no_other_code(tmp_path: Path) -> None:
    for version in ("2.13.0", "2.14.0"):
        _folder(tmp_path, {"torch.optim.Adam": f"torch {version}"})
    [group] = compare_runs(read_folders(tmp_path, any_run=True)[0]).groups
    assert [line.name for line in group.lines] == ["adam"]


LEFT_OUT: dict[str, dict[str, Any]] = {
    "not finished (running)": {"status": "running"},
    "without test/error at the last step": {"last": {"test/loss": 0.1}},
    "another hash of the initial weights than the other runs of seed 0 have": {"init_hash": "odd"},
    "the same as sgd-0-0, but for its probes": {},
}


@pytest.mark.parametrize("why", LEFT_OUT)
def test_what_cannot_be_compared_is_left_out_and_named(why: str) -> None:
    odd = _run("sgd", 0, 0.1, **LEFT_OUT[why], name="z")
    found = compare_runs([*_field({"sgd": 0.4, "adam": 0.2}), odd], "test/error")
    assert found.left_out == {"z": why} and found.runs == 6
    assert why in untuned_tables.markdown(found).replace("\\", "")


def test_one_of_other_seeds_leaves_the_pairs_of_the_others_as_they_were() -> None:
    runs = [*_field({"sgd": 0.4, "adam": 0.2}, seeds=8), _run("lion", 9, 0.1)]
    found = compare_runs([*runs, *(_run("lars", seed, 0.3) for seed in (1, 2))])
    [group] = found.groups
    seeds = {names: list(compared.seeds) for names, compared in group.pairs.items()}
    assert seeds == {
        ("adam", "sgd"): list(range(8)),
        ("adam", "lars"): [1, 2],
        ("lars", "sgd"): [1, 2],
    }
    p = {names: compared.p for names, compared in group.pairs.items()}
    assert p["adam", "sgd"] == pytest.approx(3 * 2**-7) and p["adam", "lars"] == 1.0
    assert {line.name: line.ranks for line in group.lines}["lion"] == (1, 4)
    seeds_said, unknown, sure = group.said
    assert "9 (lion); 0, 1, 2, 3, 4, 5, 6, 7 (adam, sgd); 1, 2 (lars)" in seeds_said
    assert "3 pairs with fewer than two common seeds" in unknown and "Of 3 pairs, 1 is" in sure
    text = untuned_tables.markdown(found)
    assert "common seeds" in text and "| 1, 2 |" in text


def test_fewer_than_two_common_seeds_tell_nothing_apart() -> None:
    [lonely] = compare_runs([_run("sgd", 0, 0.4), _run("adam", 1, 0.2)]).groups
    assert not lonely.pairs and "fewer than two common seeds" in lonely.said[-1]
    assert [line.ranks for line in lonely.lines] == [(1, 2), (1, 2)]


def test_a_divergence_is_last_and_counted() -> None:
    runs = _field({"adam": 0.2}) + [
        _run("sgd", seed, math.inf if seed < 2 else 0.1, name=f"s{seed}") for seed in range(3)
    ]
    found = compare_runs(runs)
    [group] = found.groups
    assert [line.name for line in group.lines] == ["adam", "sgd"] and group.lines[1].diverged == 2
    text = untuned_tables.markdown(found)
    assert "diverged in 2 of 3 runs [0.1, –]" in text and "∞" not in text
    assert "without bound" in text


def test_where_all_diverged_nobody_is_ahead() -> None:
    [group] = compare_runs(_field({"adam": math.inf, "sgd": math.inf})).groups
    [row] = untuned_tables.pair_rows(group)
    assert row == ["adam", "sgd", "–", "–", "–", "–", "0, 1, 2"]
    assert [line.rank for line in group.lines] == [1, 1]


def test_a_copy_of_a_run_does_not_beat_the_original(tmp_path: Path) -> None:
    for name in ("a copy of mine", "mine"):
        write_folder(folder := tmp_path / "runs" / name, _run("adam", 0, 0.2))
        path = folder / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "mine"}))
    found = compare_runs(read_folders(tmp_path, any_run=True)[0])
    assert found.left_out == {"a copy of mine": "the same as mine, but for its probes"}


def test_a_metric_of_an_earlier_step_is_not_compared(tmp_path: Path) -> None:
    ends = {"mine/old": 50, "mine/of_the_last_update": 99, "mine/new": 100}
    write_folder(tmp_path / "runs/one", _run("adam", 0, 0.2, last=dict.fromkeys(ends, 1.0)))
    lines = [{"step": step, key: 1.0} for key, step in ends.items()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "runs/one/metrics.jsonl").write_text(text)
    [run] = read_folders(tmp_path, any_run=True)[0]
    assert set(run.last) == {"mine/of_the_last_update", "mine/new"}


def test_a_metric_that_nobody_measured_is_told() -> None:
    runs = [*_field({"sgd": 0.4}), _run("adam", 0, math.inf)]
    with pytest.raises(UserError, match=r"no run measured metric=test/eror at its last") as why:
        compare_runs(runs, "test/eror")
    assert "Did you mean test/error" in str(why.value)


def test_a_problem_on_which_nobody_measured_the_metric_is_left_out() -> None:
    other = {"problem": "another", "conditions": CONDITIONS | {"steps": 50}}
    last = {"train/loss": 9.0}
    found = compare_runs(
        [
            *_field({"sgd": 0.4, "adam": 0.2}),
            replace(_run("sgd", 0, math.inf, **other, name="y"), last=last),
            replace(_run("sgd", 1, 0.4, **other, name="z"), last=last),
        ],
        "test/loss",
    )
    assert len(found.groups) == 1
    assert found.left_out == dict.fromkeys("yz", "without test/loss at the last step")


def test_the_csv_has_every_run() -> None:
    found = compare_runs(_field({"sgd": 0.4, "=adam": 0.2}))
    rows = list(csv.DictReader(io.StringIO(untuned_tables.comma_separated(found))))
    assert len(rows) == 6 and rows[0]["optimizer"] == "'=adam"
    assert float(rows[0]["test/loss"]) == pytest.approx(0.2)


def _hostile() -> Comparison:
    name = "</script><img src=x onerror=alert(1)>|[x](y)`\x1b"
    conditions = CONDITIONS | {"task": name, name: name}
    runs = [replace(r, conditions=conditions) for r in _field({name: 0.4, "adam": 0.2})]
    return compare_runs(runs)


def test_the_page_shows_each_problem_and_nothing_hostile_runs(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(untuned_tables.page(_hostile()))
    visit = Visit(browser, path, width=390)
    visit.page.wait_for_selector("#runs tbody tr")
    assert visit.page.title() == "optbench: Comparison of 6 runs: nothing was tuned"
    assert len(visit.column("group-0", 3)) == 2 and len(visit.column("group-0-pairs", 1)) == 1
    assert visit.page.locator("#group-0-values a").count() == 2
    command = visit.page.locator(".command pre").first.inner_text()
    assert command == "python -m optbench.tune suite=smoke"
    assert visit.page.locator("#curve-plot path.line").count() == 2
    assert visit.page.locator("img").count() == 0 and visit.trouble == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    text = untuned_tables.markdown(_hostile())
    assert "<img" not in text and text.replace("\n", "").isprintable()


def test_a_sweep_and_then_the_board(optbench: Command, called: Call, tmp_path: Path) -> None:
    """The two commands of the documentation, one after the other."""
    for name in ("sgd", "adam"):
        for seed in range(2):
            optbench("task=digits", "steps=4", "probes=none", f"optimizer={name}", f"seed={seed}")
    optbench("task=digits", "steps=4", "probes=none", "batch_size=50", "mirrors=[]")
    outcome = called(main, tmp_path)
    assert outcome.code == 0 and "Comparison of 5 runs: nothing was tuned" in outcome.out
    assert "batch_size 50" in outcome.out and "adam" in outcome.out
    text = (tmp_path / "results" / "comparison.md").read_text()
    assert text.startswith("# Comparison of 5 runs: nothing was tuned")
    data = unpacked((tmp_path / "results" / "comparison.html").read_text())
    assert {run["group"] for run in data["runs"]} == {"adam", "sgd"}
    again = called(main, tmp_path, "suite=none", "metric=train/loss", "out=elsewhere")
    assert again.code == 0 and "train/loss" in (tmp_path / "elsewhere/comparison.md").read_text()


def test_folders_that_cannot_be_read_are_named_with_what_is_left_out(
    called: Call, tmp_path: Path
) -> None:
    for seed in range(2):
        write_folder(tmp_path / "results/runs" / str(seed), _run("adam", seed, 0.2))
    (tmp_path / "results/runs/0/summary.json").rename(tmp_path / "away")
    outcome = called(main, tmp_path, "suite=none")
    assert outcome.code == 0 and "passed over 0: no summary.json" in outcome.err
    text = (tmp_path / "results/comparison.md").read_text()
    assert "## Left out" in text and "- 0: no summary.json" in text
    sections = unpacked((tmp_path / "results/comparison.html").read_text())["sections"]
    [lines] = [s["parts"][0]["lines"] for s in sections if s["id"] == "left-out"]
    assert lines == ["0: no summary.json"]


@pytest.mark.parametrize("of_a_suite", [True, False])
def test_a_board_says_which_runs_are_of_no_suite(
    of_a_suite: bool, called: Call, tmp_path: Path
) -> None:
    smoke = read_suite("smoke")
    one = run(smoke, "adam", next(iter(smoke.tasks)), "final", 0, 0, 0.2)
    for name in ("plain", *["ranked"] * of_a_suite):
        folder = tmp_path / "results/runs" / name
        write_folder(folder, one)
        if name == "plain":
            config = yaml.safe_load((folder / "config.yaml").read_text()) | {"board": None}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
    outcome = called(main, tmp_path, "suite=smoke")
    if not of_a_suite:
        assert outcome.code == 2 and outcome.err.count("\n") == 1
        assert "no run of smoke-v" in outcome.err
        assert "under results: suite=none compares the 1 run of no suite" in outcome.err
        return
    assert outcome.code == 0 and "1 run of no suite: suite=none compares it" in outcome.err
    usual = called(main, tmp_path, "metric=test/error")
    assert usual.code == 2 and "suite=smoke says what it ranks by" in usual.err
    text = (tmp_path / "results/leaderboard-smoke.md").read_text()
    assert "- 1 run of no suite: suite=none compares it" in text
    page = unpacked((tmp_path / "results/leaderboard-smoke.html").read_text())
    assert "left-out" in [section["id"] for section in page["sections"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("suite=smoke",), "no run of smoke-v"),
        (("suite=smoke", "verify=adam"), "has no entry adam: enter=adam makes one"),
        (("suite=none", "enter=all"), "enter is for the runs of a suite"),
        (("suite=smoke", "metric=test/loss"), "metric is a setting of suite=none"),
        ((), "no finished run under"),
    ],
)
def test_what_makes_no_sense_takes_one_line(
    words: tuple[str, ...], said: str, called: Call, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    outcome = called(main, tmp_path, *words)
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1
