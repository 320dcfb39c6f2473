"""Corrupt and hostile folders and files harm nothing; each is named with its reason."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optbench.boundary import UnreadableError
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.entries import ENTRIES
from optbench.leaderboard.results_folder import read_results
from optbench.leaderboard.run_folders import read_run
from optbench.leaderboard.run_line import read_line
from optbench.leaderboard.verify import compare
from optbench.protocol.suite import FINAL
from tests.conftest import Command
from tests.leaderboard.fields import entrant, run, suite
from tests.processes import Forked

SUITE = suite()
BOARD = "board={suite:simulated,version:1,digest:abc,task:task0,phase:final,point:0}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run folder of a suite, to be copied."""
    results = tmp_path_factory.mktemp("made")
    run = ("task=digits", "steps=20", "model.widths=[4]", "picture=false", BOARD)
    process = Forked(results, *run)
    assert process.end() == 0, process.err
    (folder,) = (results / "runs").iterdir()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A real run folder of a suite."""
    return shutil.copytree(made, tmp_path / "results" / "runs" / made.name)


def test_a_run_folder_is_read_with_curves_costs_and_command(folder: Path) -> None:
    found = read_run(folder)
    assert found is not None and (found.suite, found.task, found.phase, found.seed) == (
        "simulated",
        "task0",
        "final",
        0,
    )
    assert found.curve["step"][0] == 0 and found.curve["step"][-1] == 20
    assert {
        "test/loss",
        "sharpness/lambda_max",
        "cost/gradients",
        "time/train_seconds",
    } <= found.curve.keys()
    assert found.peak_gib > 0 and found.optimizer_gib == 0 and found.gradients == 20
    assert "task=digits" in found.command and not any(
        "results_dir" in word for word in found.command
    )
    assert read_line(found.line()) == found


def test_the_state_of_an_optimizer_is_counted(optbench: Command) -> None:
    arguments = ("task=digits", "steps=2", "model.widths=[]", "probes=none", "picture=false", BOARD)
    sizes = {}
    for name in ("sgd", "momentum", "adam", "muon"):
        found = read_run(Path(optbench(*arguments, f"optimizer={name}").folder))
        assert found is not None
        sizes[name] = found.optimizer_gib * 2**30
    parameters = 64 * 10 + 10
    assert sizes["sgd"] == 0 and sizes["momentum"] == pytest.approx(4 * parameters, rel=1e-5)
    # and a step counter for each of two tensors
    assert sizes["adam"] == pytest.approx(8 * parameters + 8, rel=1e-5)
    assert sizes["muon"] == pytest.approx(4 * 640 + 8 * 10 + 4, rel=1e-5)


def test_a_run_of_no_suite_is_counted(optbench: Command, tmp_path: Path) -> None:
    own = Path(optbench("task=quadratic", "steps=3", "picture=false").folder)
    assert read_results(tmp_path / "results") == ([], [], 1)
    found = read_run(own, any_run=True)
    assert found is not None and found.curve["step"]


def _json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no summary.json": lambda f: (f / "summary.json").unlink(),
    "summary.json: damaged JSON": lambda f: (f / "summary.json").write_text('{"schema": 1, "stat'),
    "schema 99": lambda f: _json(f / "summary.json", schema=99),
    "status must be a valid string, got 3, in summary.json": lambda f: _json(
        f / "summary.json", status=3
    ),
    "status must be String should have at most 255": lambda f: _json(
        f / "summary.json", status="x" * 100_000
    ),
    "is not JSON": lambda f: (f / "summary.json").write_text(
        '{"schema": 1, "last": {"test/loss": NaN}}'
    ),
    "provenance.json is no mapping": lambda f: (f / "provenance.json").write_text("[1, 2]"),
    "last.test/loss must be a valid number, got '0.1'": lambda f: _json(
        f / "summary.json", last={"test/loss": "0.1"}
    ),
    "damaged JSON (": lambda f: (f / "metrics.jsonl").write_text("{}\n[3]\nnonsense\n"),
    "a line without its step": lambda f: (f / "metrics.jsonl").write_text("{}\n"),
    "curve.test/loss.0 must be a valid number": lambda f: (f / "metrics.jsonl").write_text(
        '{"step": 0, "test/loss": [1]}\n'
    ),
    "no metrics.jsonl": lambda f: (f / "metrics.jsonl").unlink(),
    "larger than": lambda f: (f / "summary.json").write_text(" " * (2**20 + 1)),
    "has aliases": lambda f: (f / "config.yaml").write_text("a: &a [x, x]\nb: [*a, *a]\n"),
    "config.yaml: damaged YAML": lambda f: (f / "config.yaml").write_text("a: [1,\n  b: {"),
    "config.yaml is no mapping": lambda f: (f / "config.yaml").write_text("- 1\n"),
    "no config.yaml": lambda f: (f / "config.yaml").unlink(),
    "provenance.json: not UTF-8": lambda f: (f / "provenance.json").write_bytes(b"\xff\xfe\x00{"),
    "deep": lambda f: (f / "summary.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("why", DAMAGE)
def test_a_damaged_folder_is_named_and_the_others_are_read(why: str, folder: Path) -> None:
    good = folder.with_name("good")
    shutil.copytree(folder, good)
    DAMAGE[why](folder)
    runs, unreadable, _ = read_results(folder.parent.parent)
    assert [found.name for found in runs] == ["good"]
    assert [name for name, _ in unreadable] == [folder.name]
    assert why == "deep" or why in unreadable[0][1]


def test_a_link_out_of_the_results_is_not_followed(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    (folder.parent / "link").symlink_to(elsewhere)
    (folder / "summary.json").unlink()
    (folder / "summary.json").symlink_to(elsewhere / "summary.json")
    runs, unreadable, _ = read_results(folder.parent.parent)
    assert not runs and len(unreadable) == 2 and all("link" in why for _, why in unreadable)


def _entries(results: Path, name: str, lines: list[str]) -> None:
    file = results / ENTRIES / SUITE.label / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in lines))


def test_committed_lines_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    lines = [own.line() for own in entrant(SUITE, "a", 0.2)]
    lost = [
        {k: v for k, v in json.loads(lines[0]).items() if k != "seed"},
        json.loads(lines[0]) | {"schema": 7},
    ]
    bad = [
        "",
        "{",
        "null",
        '{"schema": 1}',
        *[json.dumps(line) for line in lost],
        lines[0][:-40],
        "[" * 100_000,
    ]
    long_curve = json.loads(lines[-1])
    long_curve["curve"]["step"] = list(range(1000))
    _entries(tmp_path, "a", [*lines, *bad, json.dumps(long_curve)])
    runs, unreadable, _ = read_results(tmp_path)
    assert len(runs) == len(lines) and len(unreadable) == len(bad) + 1
    assert "line 22: schema 7" in " ".join(why for _, why in unreadable)


HOSTILE = (
    "optimizer._target_=os.system",
    "optimizer.lr=${oc.env:HOME}",
    "hydra.run.dir=/tmp/elsewhere",
    "--config-dir=/tmp/elsewhere",
    "optimizer.foo._target_=os.system",
    "task=../../elsewhere",
)


@pytest.mark.parametrize("word", HOSTILE)
def test_a_command_from_elsewhere_is_never_given_unless_it_is_the_protocols(word: str) -> None:
    own = entrant(SUITE, "a", 0.2)
    evil = [replace(r, command=[*r.command[:-2], word, *r.command[-2:]]) for r in own]
    admitted = admit(SUITE, evil)
    assert (
        not admitted.entrants and "whose command is not the protocol's" in admitted.refused["a"][0]
    )


def test_a_re_run_is_compared_with_what_was_said() -> None:
    peers = [run(SUITE, "a", "task0", FINAL, 1, seed, 0.1 + 0.01 * seed) for seed in range(4)]
    then = peers[0]
    changed = {"then": then.last}

    def verdict(**changes: Any) -> str:
        return compare(SUITE, then, replace(then, **changes), peers).verdict

    assert changed and verdict() == "same"
    assert verdict(last={"test/error": 0.12}) == "close"
    assert verdict(last={"test/error": 0.2}) == "test/error 0.1 then, 0.2 now"
    assert verdict(init_hash="other") == "another hash of the initial weights"
    assert verdict(status="diverged") == "done then, diverged now"
    assert verdict(settings={"lr": 9}) == "its command makes other settings of the optimizer"
    assert compare(SUITE, then, None, peers).verdict == "could not be run again"


def test_reading_stays_within_its_folder(tmp_path: Path) -> None:
    """A name that looks like a path is text: nothing is opened or written by it."""
    own = [
        json.loads(r.line()) | {"name": "../../../escaped", "local": True}
        for r in entrant(SUITE, "a", 0.2)
    ]
    _entries(tmp_path / "results", "a", [json.dumps(line) for line in own])
    runs, unreadable, _ = read_results(tmp_path / "results")
    assert len(runs) == 1 and not runs[0].local  # one name, so one run
    assert unreadable[0] == (
        f"{SUITE.label}/a.jsonl",
        "line 2: a second run is called ../../../escaped",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    with pytest.raises(UnreadableError):
        read_run(tmp_path / "nowhere")
