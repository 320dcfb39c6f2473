"""Engines by name: one YAML each, set on the command line; and sweeps that they make."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from optbench.__main__ import main
from optbench.boundary.kinds import Count
from optbench.errors import UserError
from optbench.launch.engines import known_engines, make_launcher
from optbench.launch.launcher import Finished, Launcher, Order, Say
from optbench.launch.local import LocalLauncher
from optbench.protocol.suite import read_suite
from optbench.protocol.tuner import Tuner
from tests.conftest import Call, Outcome

TINY = ("task=quadratic", "steps=5", "probes=none", "picture=false", "wandb.mode=disabled")


@dataclass(frozen=True)
class Mine:
    """A user's own engine: it writes down what it is asked for, and fails at it."""

    order: Order
    partition: str = ""
    width: Count = 1

    def launch(self, commands: Sequence[Sequence[str]], say: Say) -> Iterator[Finished]:
        say(f"partition {self.partition}, width {self.width}")
        for command in commands:
            yield Finished(tuple(command), None, "no luck", code=7)


def _own(folder: Path) -> Path:
    (folder / "launcher").mkdir(parents=True)
    (folder / "launcher" / "mine.yaml").write_text(
        "_target_: tests.launch.test_engines.Mine\npartition: long\nwidth: 1\n"
    )
    return folder


def _engine(name: str, *words: str, own: Path | None = None) -> Launcher:
    return make_launcher(name, words, Order(Path("results"), device="cpu"), own)


def test_a_setting_of_the_command_line_goes_before_that_of_the_yaml(tmp_path: Path) -> None:
    own = _own(tmp_path)
    # a partition may be called like a number
    chosen = _engine("mine", "partition=2026", "width=3", own=own)
    assert (chosen.partition, chosen.width) == ("2026", 3)  # type: ignore[attr-defined]
    assert _engine("mine", own=own).partition == "long"  # type: ignore[attr-defined]
    local = _engine("local", "jobs=3", "cores=2")
    assert isinstance(local, LocalLauncher) and (local.jobs, local.threads) == (3, 2)
    ordered = make_launcher("local", ["jobs=3"], Order(Path("r"), jobs=5, threads=1))
    assert isinstance(ordered, LocalLauncher) and (ordered.jobs, ordered.threads) == (5, 1)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("lokal", (), "no launcher called lokal. Did you mean local"),
        ("mine", ("widht=2",), "no key launcher.widht. Did you mean launcher.width"),
        ("mine", ("width=0",), "launcher.width must be a whole number, at least 1, got 0"),
        ("mine", ("width=wide",), "launcher.width must be a whole number, at least 1, got wide"),
        ("local", ("cores=1.5",), "launcher.cores must be a whole number, at least 1 or null, got"),
        ("broken", (), "broken.yaml names _target_: no.such.Thing, which is not there"),
        ("empty", (), "empty.yaml must be a mapping"),
    ],
)
def test_what_no_engine_can_be_is_one_line(
    tmp_path: Path, name: str, words: tuple[str, ...], said: str
) -> None:
    own = _own(tmp_path)
    (own / "launcher" / "broken.yaml").write_text("_target_: no.such.Thing\n")
    (own / "launcher" / "empty.yaml").write_text("")
    with pytest.raises(UserError, match=said):
        _engine(name, *words, own=own)


def test_every_engine_of_ours_lists_its_settings_with_their_defaults() -> None:
    import inspect

    import yaml

    from optbench.launch.engines import _target

    for name, file in known_engines().items():
        node = yaml.safe_load(file.read_text())
        parameters = list(inspect.signature(_target(node.pop("_target_"), file)).parameters)
        assert list(node) == parameters[1:], name


@pytest.fixture
def sweep(tmp_path: Path, called: Call, monkeypatch: pytest.MonkeyPatch) -> "Sweep":
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def run(*words: str) -> Outcome:
        return called(main, tmp_path, "--multirun", *TINY, *words)

    return run


Sweep = Call


def test_a_sweep_in_many_processes_tells_each_run_and_each_failure(
    sweep: Sweep, tmp_path: Path
) -> None:
    outcome = sweep("jobs=2", "seed=0,1", "optimizer.lr=0.1,-1", "results_dir=elsewhere")
    assert outcome.code == 2
    told = [line for line in outcome.err.splitlines() if line.startswith("run ")]
    assert [line.split(":")[0] for line in told] == [f"run {i} of 4" for i in range(1, 5)]
    assert sorted(line.rpartition(" ")[2] for line in told) == ["done"] * 2 + ["failed"] * 2
    assert outcome.err.count("exit code 2: optbench: optimizer.lr must be a finite number") == 2
    assert "2 of 4 runs failed: seed=0 optimizer.lr=-1; seed=1 optimizer.lr=-1" in outcome.out
    runs = list((tmp_path / "elsewhere/runs").iterdir())
    assert len(runs) == 2 and not (tmp_path / "results").exists()
    # the engine moves no result: here they are found as finished
    again = sweep("seed=0,1", "optimizer.lr=0.1", "results_dir=elsewhere")
    assert again.code == 0 and again.out.count("finished before") == 2
    assert "run 2 of 2: " in again.err and "\n2 runs" in again.out


def test_a_sweep_on_an_engine_of_the_users_own(sweep: Sweep, tmp_path: Path) -> None:
    own = _own(tmp_path / "conf")
    words = ("launcher=mine", "launcher.width=2", "seed=0,1", "--config-dir", str(own))
    outcome = sweep(*words)
    assert outcome.code == 7 and "partition long, width 2" in outcome.err
    assert outcome.err.count("no luck") == 2 and "2 of 2 runs failed: seed=0; seed=1" in outcome.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("jobs=2", "hydra/launcher=basic"), None),
        (("jobs=0", "seed=0,1"), "jobs must be a whole number, at least 1, got 0"),
        (("jobs=2", "seed=0,1", "results_dir=a,b"), "results_dir must be one for all runs"),
        (("launcher=locl", "seed=0,1"), "there is no launcher called locl. Did you mean"),
        (("jobs=2", "seed=0,1", "config_dir=own"), "there is no key config_dir: say --config-dir"),
    ],
)
def test_what_no_sweep_can_be_is_one_line(
    sweep: Sweep, tmp_path: Path, words: tuple[str, ...], said: str | None
) -> None:
    outcome = sweep(*words)
    assert outcome.code == (2 if said else 0)
    assert said is None or (f"optbench: {said}" in outcome.err and "Traceback" not in outcome.err)
    assert bool(list(tmp_path.glob("*/sweeps/*/multirun.yaml"))) == (said is None)


def test_each_command_says_its_own_word_for_your_folder(sweep: Sweep) -> None:
    outcome = sweep("launcher=mine", "seed=0,1")
    assert "and what --config-dir DIR holds in DIR/launcher/NAME.yaml" in outcome.err
    with pytest.raises(UserError, match="and what config_dir=DIR holds in DIR"):
        _engine("mine")


def test_sigterm_stops_a_sweep_and_leaves_no_scratch_folder(tmp_path: Path) -> None:
    words = [*TINY, "steps=1000000", "jobs=1", "seed=0,1", f"results_dir={tmp_path / 'results'}"]
    with subprocess.Popen(
        [sys.executable, "-m", "optbench", "--multirun", *words],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as driver:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("results/runs/*/metrics.jsonl")):
            assert time.monotonic() < deadline and driver.poll() is None, "no run has begun"
            time.sleep(0.1)
        assert list(tmp_path.glob("optbench-*"))
        driver.terminate()
        _, err = driver.communicate(timeout=60)
    assert driver.returncode == 128 + signal.SIGTERM, err
    assert "stopped by SIGTERM: the same command goes on" in err
    assert not list(tmp_path.glob("optbench-*"))


def test_one_run_is_made_here(called: Call, tmp_path: Path) -> None:
    outcome = called(main, tmp_path, *TINY, "launcher=ray")
    assert outcome.code == 2 and "launcher=ray is for many runs: say --multirun" in outcome.err


class Asked:
    """In place of runs: takes commands, and has the summary of each."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []

    def __enter__(self) -> "Asked":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def make(self, title: str, commands: Sequence[Sequence[str]], _: object = None) -> None:
        self.made.append((title, len(commands)))

    def summary(self, command: Sequence[str]) -> dict[str, object]:
        return {"status": "done", "last": json.loads('{"val/loss": 0.5}')}


def test_a_cluster_gets_the_tuning_of_all_optimizers_at_once() -> None:
    suite, points = read_suite("smoke"), [[f"optimizer.lr={10**-i}"] for i in range(4)]
    optimizers = {"sgd": points, "adam": points}
    for together, made in (
        (False, [("sgd tune", 4), ("sgd final", 6), ("adam tune", 4), ("adam final", 6)]),
        (True, [("2 optimizers tune", 8), ("2 optimizers final", 12)]),
    ):
        asked = Asked()
        Tuner(suite, asked, together).run(optimizers)  # type: ignore[arg-type]
        assert asked.made == made
