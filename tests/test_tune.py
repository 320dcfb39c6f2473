"""Tuning: fair points, selection by validation, nothing lost; one crash costs one run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from optbench import search
from optbench.errors import UserError
from optbench.launch.index import INDEX
from optbench.launch.local import LocalLauncher
from optbench.leaderboard.__main__ import main as leaderboard
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.results_folder import read_results
from optbench.protocol.points import search_spaces, sobol_points
from optbench.protocol.selection_rule import select
from optbench.protocol.suite import read_suite
from optbench.protocol.tuner import main
from tests.conftest import Call, Outcome

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ("suite=tiny.yaml", "optimizer=adam,sgd", "jobs=2")
QUICK = ("task=quadratic", "steps=5", "wandb.mode=disabled", "picture=false")
SPACE = search.read(
    {"lr": {"low": 1e-4, "high": 1.0, "scale": "log"}, "nesterov": {"choices": [True, False]}}
)

TINY = {
    "version": 1,
    "points": 2,
    "sobol_seed": 0,
    "tuning_seeds": [1000],
    "final_seeds": [0, 1],
    "held_out": "second",
    "common": ["task.loss=ce", "model.widths=[8]", "probes=default"],
    "tasks": {
        name: {
            "kind": "vision",
            "run": ["task=digits", "task.train_size=100", f"steps={steps}", "batch_size=20"],
            "final": ["probes.generalization.every=5", "probes.sharpness.every=10"],
            "metric": "test/error",
            "select": "val/loss",
            "start": 0.9,
            "good": 0.1,
            "targets": [2.2, 1.5],
        }
        for name, steps in (("first", 10), ("second", 12))
    },
}


Tune = Callable[..., Outcome]


@pytest.fixture
def tune(called: Call) -> Tune:
    """The tuner in this process, on the tiny suite, in a folder."""

    def run(folder: Path, *arguments: str) -> Outcome:
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        return called(main, folder, *COMMAND, *arguments)

    return run


def test_sobol_points_are_uniform_and_the_same_each_time() -> None:
    points = sobol_points(SPACE, 64, seed=0)
    assert points == sobol_points(SPACE, 64, seed=0) and points != sobol_points(SPACE, 64, seed=1)
    assert sobol_points(SPACE, 8, seed=0) == points[:8]
    rates = np.log10([float(point[0].removeprefix("optimizer.lr=")) for point in points])
    assert stats.kstest(rates, stats.uniform(-4, 4).cdf).pvalue > 0.5
    # balanced, as Sobol's points are
    assert sum(point[1] == "optimizer.nesterov=true" for point in points) == 32


def test_selection_is_by_validation_and_of_the_held_out_task_by_rank_on_the_others() -> None:
    values = {"a": [0.3, 0.1, 0.2], "b": [9.0, 7.0, 5.0], "c": [0.1, 0.2, float("inf")]}
    assert select(values, "d") == {"a": 1, "b": 2, "c": 0, "d": 1}  # ranks 3 3 1, 1 2 2, 2 1 3
    assert select({"a": [float("inf")] * 2}, "d") == {"a": 0, "d": 0}


def test_every_optimizer_with_a_search_space_is_found_and_one_without_is_refused(
    tmp_path: Path,
) -> None:
    assert {"adam", "sgd", "muon", "sam"} <= search_spaces(["all"]).keys()
    with pytest.raises(UserError, match=r"no optimizer called adamm\. Did you mean adam"):
        search_spaces(["adamm"])
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text(
        "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\n"
    )
    with pytest.raises(
        UserError, match=r"mine declares no search space: add `search:` to mine\.yaml"
    ):
        search_spaces(["mine"], tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_costs_one_run(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer of one run kills its own process, as a fault in a C library would."""
    (tmp_path / f"fatal{number}.py").write_text(
        "import os, torch\nclass Fatal(torch.optim.SGD):\n"
        f"    def step(self, closure):\n        os.kill(os.getpid(), {int(number)})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    commands = [[*QUICK, f"seed={i}", f"results_dir={tmp_path}"] for i in range(3)]
    commands[1] += ["optimizer=custom", f"optimizer._target_=fatal{number}.Fatal"]
    ended = {run.overrides[4]: run for run in LocalLauncher(jobs=2).launch(commands)}
    assert ended["seed=1"].folder is None and f"killed by {number.name}" in ended["seed=1"].why
    for seed in (0, 2):
        folder = ended[f"seed={seed}"].folder
        assert (
            folder is not None
            and json.loads((folder / "summary.json").read_text())["status"] == "done"
        )


def test_a_run_that_cannot_be_says_why(tmp_path: Path) -> None:
    [run] = LocalLauncher(jobs=1).launch([[*QUICK, "optimizer.lr=-1", f"results_dir={tmp_path}"]])
    assert run.folder is None and "optimizer.lr must be a finite number, above 0, got -1" in run.why


def _finals(results: Path) -> dict[str, float]:
    runs, unreadable, _ = read_results(results)
    assert not unreadable
    return {run.name: run.last["test/error"] for run in runs}


def test_a_suite_killed_in_the_middle_is_finished_by_the_same_command(
    tmp_path: Path, tune: Tune, called: Call
) -> None:
    """Kill the tuner, and a worker with it, then go on: the runs are as if undisturbed."""
    (tmp_path / "whole").mkdir()
    undisturbed = tune(tmp_path / "whole")
    assert undisturbed.code == 0, undisturbed.err

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = [sys.executable, "-m", "optbench.tune", *COMMAND]
    process = subprocess.Popen(
        command, cwd=broken, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )
    _wait_for(broken / "results" / "suites" / "tiny-v1" / INDEX, lines=3)
    process.kill()
    process.communicate()
    time.sleep(1)  # the workers notice, write a checkpoint and stop
    index = broken / "results/suites/tiny-v1" / INDEX
    assert 3 <= index.read_bytes().count(b"\n") < 12
    index.write_bytes(index.read_bytes()[:-9])  # as if killed while it wrote its last line
    again = tune(broken)
    assert again.code == 0, again.err
    assert _finals(broken / "results") == _finals(tmp_path / "whole/results")
    before = _mtimes(broken)
    assert tune(broken).code == 0 and _mtimes(broken) == before  # nothing is run again

    suite = read_suite(str(broken / "tiny.yaml"))
    admitted = admit(suite, read_results(broken / "results")[0])
    assert [e.name for e in admitted.entrants] == ["adam", "sgd"] and not admitted.refused
    _contribute(broken, called)


def _contribute(folder: Path, called: Call) -> None:
    """Enter, take the run folders away, verify, and rank from the committed files alone."""

    def board(*arguments: str) -> tuple[int, str]:
        outcome = called(leaderboard, folder, "suite=tiny.yaml", *arguments)
        return outcome.code, outcome.out

    assert board("enter=all")[0] == 0
    local = board()[1]
    (folder / "results/runs").rename(folder / "elsewhere")
    assert "unverified: `python -m optbench.leaderboard verify=unverified`" in board()[1]
    code, said = board("verify=unverified", "sample=2", "jobs=1")
    assert code == 0 and said.count(": same (") == 4 and "2 of 2 entries agree" in said
    ranked = board()[1]
    assert ranked.splitlines()[3:12] == local.splitlines()[3:12]
    entry = folder / "results/entries/tiny-v1/adam.jsonl"
    lines = [json.loads(line) for line in entry.read_text().splitlines()]
    for line in lines:
        line["last"]["test/error"] = 0.0
    entry.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # its mark was of another file
    assert "not ranked: adam: unverified" in board()[1].replace("\n", " ")
    code, said = board("verify=unverified", "sample=2", "jobs=1")
    assert code == 1 and "0 then," in said and "not adam" in said
    assert "re-run, and found to differ" in board()[1].replace("\n", " ")


def _mtimes(folder: Path) -> Sequence[float]:
    return sorted(file.stat().st_mtime for file in (folder / "results/runs").glob("*/summary.json"))


def _wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} has not got {lines} lines")


def test_results_that_cannot_be_written_take_one_line(tmp_path: Path, tune: Tune) -> None:
    (tmp_path / "taken").write_text("")
    done = tune(tmp_path, "results_dir=taken")
    assert done.code == 1 and done.err.startswith("optbench: a file is in the way at taken/")
    assert "say results_dir=DIR with a folder" in done.err
    assert len(done.err.strip().splitlines()) == 1
    wrong = tune(tmp_path, "jobs=none")
    assert (
        wrong.code == 2
        and wrong.err == "optbench: jobs must be a whole number, at least 1, got none\n"
    )
