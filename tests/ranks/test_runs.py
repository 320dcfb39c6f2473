"""Whole runs on two processes: the same record as one process, from the same checkpoints."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from optbench.record import folder as record
from optbench.run import checkpoint
from tests.conftest import Command
from tests.processes import command
from tests.ranks.processes import Group, main_job

# 3 steps of 37 of 1,000 examples, in float64; two processes have 18 and 19 of a batch
RUN = ("batch_size=37", "steps=3", "dtype=float64", "probes.sharpness.every=2", "log_every=1")
SPECTRUM = (
    "probes=spectrum",
    "probes.spectrum.every=3",
    "probes.spectrum.samples=3",
    "probes.spectrum.steps=4",
    "probes.spectrum.layer_steps=2",
    "+probes.spectrum.deflate=1",
)
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "sgd": ("optimizer=sgd", *SPECTRUM),
    "adam": ("optimizer=adam", "batch_size=full", "steps=22", "probes.sharpness.every=21"),
    "muon": ("optimizer=muon", "batch_size=full", "probes.edge.norm_hvps=5"),
}


def _folder(results: Path) -> Path:
    (folder,) = (results / "runs").iterdir()
    return folder


def _lines(results: Path) -> list[dict[str, Any]]:
    return record.read_lines(_folder(results) / record.METRICS)


def _sessions(results: Path) -> list[dict[str, Any]]:
    provenance = json.loads((_folder(results) / record.PROVENANCE).read_text())
    sessions: list[dict[str, Any]] = provenance["sessions"]
    return sessions


def _ran(group: Group, code: int = 0) -> Group:
    assert group.codes() == [code] * len(group.processes), [group.err(0), group.err(1)]
    return group


def _assert_same(one: list[dict[str, Any]], other: list[dict[str, Any]], rel: float) -> None:
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for a, b in zip(one, other, strict=True):
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=rel, abs=1e-12), (a["step"], name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_number_is_that_of_one_process(
    optimizer: str, optbench: Command, tmp_path: Path
) -> None:
    settings = (*RUN, *OPTIMIZERS[optimizer])
    alone = optbench(*settings, f"results_dir={tmp_path / 'alone'}")
    assert alone.code == 0, alone.err
    group = _ran(main_job(2, tmp_path / "said", *settings, f"results_dir={tmp_path / 'both'}"))
    # rounding of float64, magnified by the solves: seen 1e-13
    _assert_same(_lines(tmp_path / "alone"), _lines(tmp_path / "both"), rel=1e-8)
    measured = set().union(*_lines(tmp_path / "both"))
    assert {"sharpness/lambda_max", "edge/distance", "test/error", "gap/loss"} <= measured
    states = [
        next(checkpoint.candidates(_folder(tmp_path / name)))[1] for name in ("alone", "both")
    ]
    assert not isinstance(states[0], str)
    assert not isinstance(states[1], str)
    for name, weights in states[0]["model"].items():
        assert (weights - states[1]["model"][name]).abs().max() <= 1e-10 * weights.abs().max()
    assert states[0]["batches"]["position"] == states[1]["batches"]["position"]
    # one process alone writes and prints
    assert [group.out(1), group.err(1)] == ["", ""]
    assert group.out(0).splitlines()[-1] == str(_folder(tmp_path / "both"))
    (session,) = _sessions(tmp_path / "both")
    assert session["processes"] == 2
    assert "1.1e-16 an addition (float64)" in session["rounding"]
    assert "processes" not in _sessions(tmp_path / "alone")[0]


def _until(results: Path, group: Group, step: int) -> None:
    """Wait until a run has come to a step, and has written a checkpoint."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and all(p.is_alive() for p in group.processes):
        folders = list(results.glob("runs/*"))
        if folders and (folders[0] / checkpoint.NAME).exists():
            lines = record.read_lines(folders[0] / record.METRICS)
            if lines and lines[-1]["step"] >= step:
                return
        time.sleep(0.02)
    raise AssertionError(f"it did not come to step {step}: {group.err(0)}")


LONG = (
    "batch_size=37",
    "steps=300",
    "dtype=float64",
    "probes=none",
    "checkpoint_seconds=0.05",
    "optimizer.lr=0.01",
    "log_every=1",
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    results = tmp_path_factory.mktemp("reference")
    group = main_job(1, results / "said", *LONG, f"results_dir={results}")
    assert group.codes() == [0], group.err(0)
    return _lines(results)


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1)])
def test_a_run_goes_on_under_another_number_of_processes(
    sizes: tuple[int, int], tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    results = tmp_path / "results"
    first = main_job(sizes[0], tmp_path / "first", *LONG, f"results_dir={results}")
    _until(results, first, 30)
    for process in first.processes:
        process.terminate()
    assert first.codes() == [130] * sizes[0], first.err(0)
    second = main_job(sizes[1], tmp_path / "second", *LONG, f"results_dir={results}")
    assert second.codes() == [0] * sizes[1], second.err(0)
    assert "going on from step" in second.err(0)
    before, after = ("1 process", "2") if sizes == (1, 2) else ("2 processes", "1")
    assert f"went on with {before} so far, and with {after} from here" in second.err(0)
    assert [s.get("processes", 1) for s in _sessions(results)] == list(sizes)
    # a step multiplies a difference by less than 1 + lr·λ₁ < 1.1 at worst, and by less than 1
    # near a minimum
    _assert_same(reference, _lines(results), rel=1e-7)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_of_which_a_process_is_killed_fails_and_goes_on(
    victim: int, tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    results = tmp_path / "results"
    first = main_job(2, tmp_path / "first", *LONG, f"results_dir={results}")
    _until(results, first, 30)
    first.processes[victim].kill()
    codes = first.codes()
    assert codes[victim] == -9
    assert codes[1 - victim] == 1
    said = first.err(1 - victim)
    assert "a process of this run has ended or cannot be reached" in said
    assert "the same command goes on from the last checkpoint" in said
    assert "Traceback" not in said
    _ran(main_job(2, tmp_path / "second", *LONG, f"results_dir={results}"))
    _assert_same(reference, _lines(results), rel=1e-7)


def test_a_finished_run_is_not_made_again(tmp_path: Path) -> None:
    settings = ("steps=2", "probes=none", f"results_dir={tmp_path / 'results'}")
    _ran(main_job(2, tmp_path / "first", *settings))
    again = _ran(main_job(2, tmp_path / "second", *settings))
    assert "finished before" in again.out(0)


def dropping(
    input_shape: tuple[int, ...],
    output_width: int,
    widths: list[int],
    activation: str,
    bias: bool,
) -> nn.Module:
    """A model with dropout."""
    layers = nn.Flatten(), nn.Dropout(0.5), nn.Linear(math.prod(input_shape), output_width)
    return nn.Sequential(*layers)


REFUSED = {
    "batch norm (1) takes": ("task=digits", "model=cnn", "model.norm=batch"),
    "dropout": ("model=linear", "model._target_=tests.ranks.test_runs.dropping"),
    "is below the 2 processes": ("batch_size=1",),
    "differentiates the gradient": ("optimizer=adahessian",),
    "leave out --multirun": ("--multirun", "seed=0,1"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_processes_cannot_share_is_refused_in_one_line(words: str, tmp_path: Path) -> None:
    arguments = (*REFUSED[words], "steps=1", f"results_dir={tmp_path / 'results'}")
    group = main_job(2, tmp_path / "said", *arguments)
    assert group.codes() == [2, 2], group.err(0)
    assert words in group.err(0)
    assert group.err(0).startswith("optbench: ")
    assert len(group.err(0).splitlines()) == 1
    assert group.err(1) == ""  # it is said once


def test_other_commands_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = command(tmp_path, "suite=smoke", module="optbench.tune")
    assert found.returncode == 2
    assert "optbench.tune starts its runs itself" in found.stderr


def test_torchrun_starts_it_and_its_mirrors_are_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    settings = ["steps=2", "wandb.mode=offline", "wandb.wait_seconds=60", "picture=false"]
    found = subprocess.run(
        [*command, "--standalone", "-m", "optbench", *settings, f"results_dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == str(_folder(tmp_path))
    assert "send it: wandb sync" in found.stdout
    assert math.isfinite(_lines(tmp_path)[-1]["sharpness/lambda_max"])
