"""The loop: what it records, that probes only read, that nothing is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import checkpoints
from tests.conftest import Command
from tests.processes import Forked

SHORT = ("task=digits", "steps=40", "model.widths=[8]", "task.train_size=200")
MODELS = [
    "model=mlp",
    "model=cnn model.channels=[8,16]",
    "model=resnet model.depth=8 model.width=4",
    "model=vit model.depth=1 model.width=16",
]


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def _state(folder: Path) -> dict[str, Any]:
    state, damaged = checkpoints.newest(folder)
    assert state is not None and not damaged
    return state


def _assert_same(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            _assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y, path)
    elif "seconds" not in path and "timings" not in path:
        assert a == b, path


def test_the_record_has_every_step_of_the_full_batch_and_probes_at_their_cadence(
    optbench: Command,
) -> None:
    folder = optbench(
        *SHORT, "picture=true", "probes.generalization.every=10", "probes.sharpness.every=10"
    ).folder
    lines = _lines(folder)
    assert [line["step"] for line in lines] == list(range(41))
    assert all("batch/loss" in line for line in lines[:-1]) and "batch/loss" not in lines[-1]
    assert [line["step"] for line in lines if "sharpness/lambda_max" in line] == [0, 10, 20, 30, 40]
    # the full batch's loss is the train loss, but for train against eval mode
    for line in lines[:-1:10]:
        assert line["batch/loss"] == pytest.approx(line["train/loss"], rel=1e-6)
        assert line["edge/distance"] == line["sharpness/lambda_max"] / line["edge/threshold"]
    summary = _summary(folder)
    assert (summary["status"], summary["step"], summary["gradients"]) == ("done", 40, 40)
    each = summary["each_probe_seconds"]
    assert each.keys() == {"generalization", "sharpness", "edge", "layers"}
    assert 0 < sum(each.values()) <= summary["probe_seconds"]
    assert summary["last"]["test/loss"] == lines[-1]["test/loss"]
    best = min((line["val/error"], line["step"]) for line in lines if "val/error" in line)
    assert (summary["best_val"]["value"], summary["best_val"]["step"]) == best
    assert {file.name for file in folder.iterdir()} >= {
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "timings.jsonl",
        "summary.json",
        "checkpoint.pt",
        "dynamics.png",
    }


def test_mini_batch_losses_are_averaged_between_records(optbench: Command) -> None:
    every = _lines(optbench(*SHORT, "batch_size=50", "log_every=1", "probes=none").folder)
    tenth = _lines(optbench(*SHORT, "batch_size=50", "probes=none", "log_every=10").folder)
    losses = [line["batch/loss"] for line in every if "batch/loss" in line]
    assert len(losses) == 40
    recorded = {line["step"]: line["batch/loss"] for line in tenth if "batch/loss" in line}
    assert list(recorded) == [0, 10, 20, 30, 40]
    assert recorded[0] == losses[0]
    assert recorded[10] == pytest.approx(sum(losses[1:11]) / 10, rel=1e-12)
    assert recorded[40] == pytest.approx(sum(losses[31:]) / 9, rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_run_with_probes_is_bit_identical_to_the_run_without(
    optbench: Command, model: str, optimizer: str
) -> None:
    small = (
        "task=digits",
        "steps=6",
        "batch_size=50",
        "task.train_size=200",
        f"optimizer={optimizer}",
        *model.split(),
    )
    watched = _state(
        optbench(*small, "probes.sharpness.every=2", "probes.generalization.every=1").folder
    )
    alone = _state(optbench(*small, "probes=none").folder)
    for part in ("model", "optimizer", "batches", "random"):
        _assert_same(watched[part], alone[part], part)


@pytest.mark.parametrize(
    ("model", "optimizer", "batch"),
    [
        *(
            (MODELS[0], optimizer, batch)
            for optimizer in ("adam", "lion", "muon")
            for batch in ("full", "20")
        ),
        *(
            (MODELS[2], *rest)
            for rest in (("adam", "full"), ("adam", "20"), ("lion", "20"), ("muon", "full"))
        ),
    ],
)
def test_every_probe_only_reads(optbench: Command, model: str, optimizer: str, batch: str) -> None:
    small = (
        "task=digits",
        "steps=4",
        f"batch_size={batch}",
        "task.train_size=40",
        f"optimizer={optimizer}",
    )
    every = (
        "probes=dynamics",
        "probes.sharpness.every=2",
        "probes.layers.every=1",
        "probes.direction.every=1",
    )
    fewer = (
        "probes.critical.every=1",
        "probes.noise.batches=2",
        "probes.batch_sharpness.batches=2",
    )
    watched = _state(optbench(*small, *model.split(), *every, *fewer).folder)
    alone = _state(optbench(*small, *model.split(), "probes=none").folder)
    for part in ("model", "optimizer", "batches", "random"):
        _assert_same(watched[part], alone[part], part)


def test_two_optimizers_at_one_seed_share_init_data_order_and_noise(optbench: Command) -> None:
    small = (*SHORT, "batch_size=50", "task.label_noise=0.1", "log_every=1")
    folders = [optbench(*small, f"optimizer={name}").folder for name in ("sgd", "adam")]
    origins = [json.loads((folder / "provenance.json").read_text()) for folder in folders]
    for key in ("data_hash", "init_hash", "initial_loss"):
        assert origins[0][key] == origins[1][key]
    assert _lines(folders[0])[0]["batch/loss"] == _lines(folders[1])[0]["batch/loss"]
    _assert_same(_state(folders[0])["batches"], _state(folders[1])["batches"])


def test_a_divergence_is_a_result_with_its_step_and_no_padded_value(optbench: Command) -> None:
    outcome = optbench("task=quadratic", "optimizer.lr=1.0", "steps=500")  # λ₁ = 10, threshold 2
    summary, lines = _summary(outcome.folder), _lines(outcome.folder)
    assert outcome.code == 0 and summary["status"] == "diverged"
    # Each step multiplies the leading component by 1 − 10 = −9, the loss by 81: 10⁶ is passed in
    # about 4.
    assert 2 <= summary["step"] <= 8
    assert lines[-1]["step"] < summary["step"]
    assert (
        "finished before (diverged"
        in optbench("task=quadratic", "optimizer.lr=1.0", "steps=500").out
    )


def test_weights_that_overflow_between_two_losses_are_a_divergence(optbench: Command) -> None:
    outcome = optbench("task=quadratic", "optimizer.lr=1e38", "steps=3", "explosion_factor=1e300")
    assert _summary(outcome.folder)["status"] == "diverged"


def _run_folder(results: Path) -> Path:
    return next((results / "runs").iterdir())


KILLED = (
    "task=digits",
    "optimizer=adam",
    "schedule=cosine",
    "batch_size=64",
    "steps=800",
    "probes.sharpness.every=50",
    "checkpoint_seconds=0.2",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = Forked(folder, *KILLED)
    assert process.end() == 0, process.err
    return _run_folder(folder)


def _wait_for(found: Callable[[], object], process: Forked) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.works() and not found():
        time.sleep(0.02)


def _wait_for_progress(results: Path, process: Forked) -> None:
    """Wait until there is a checkpoint that was not there when this was called, then for a random moment more."""

    def written() -> set[int]:
        return {file.stat().st_mtime_ns for file in results.glob("runs/*/checkpoint.pt")}

    before = written()
    _wait_for(lambda: written() - before, process)
    time.sleep(random.uniform(0, 0.6))


def test_killed_at_random_moments_and_resumed_it_ends_bit_identical(
    uninterrupted: Path, tmp_path: Path
) -> None:
    kills = 0
    for _ in range(3):
        process = Forked(tmp_path, *KILLED)
        _wait_for_progress(tmp_path, process)
        process.send(signal.SIGKILL)
        kills += process.end() == -signal.SIGKILL
    assert kills > 0
    command = [
        sys.executable,
        "-m",
        "optbench",
        f"results_dir={tmp_path}",
        "wandb.mode=disabled",
        *KILLED,
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    folder = _run_folder(tmp_path)
    assert (folder / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    _assert_same(_state(folder), _state(uninterrupted))
    assert len(json.loads((folder / "provenance.json").read_text())["sessions"]) > 1


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(
    uninterrupted: Path, tmp_path: Path
) -> None:
    process = Forked(tmp_path, *KILLED)
    _wait_for(lambda: list(tmp_path.glob("runs/*/checkpoint.previous.pt")), process)
    process.send(signal.SIGKILL)
    process.end()
    folder = _run_folder(tmp_path)
    newest = folder / "checkpoint.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    process = Forked(tmp_path, *KILLED)
    assert process.end() == 0
    assert "checkpoint.pt is damaged" in process.err and "going on from step" in process.err
    assert (folder / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    _assert_same(_state(folder), _state(uninterrupted))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = Forked(tmp_path, *KILLED)
    _wait_for_progress(tmp_path, process)
    process.send(number)
    code = process.end()
    folder = _run_folder(tmp_path)
    if code == 130:
        assert _summary(folder)["status"] == "interrupted" and "Traceback" not in process.err
        assert (folder / "dynamics.png").exists()
        assert Forked(tmp_path, *KILLED).end() == 0
    assert _summary(folder)["status"] == "done"
    assert (folder / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()


def test_curvature_that_overflows_is_a_divergence_too(optbench: Command) -> None:
    wild = ("optimizer.lr=1e17", "explosion_factor=1e300", "probes.sharpness.every=1")
    outcome = optbench("task=quadratic", *wild, "steps=5")
    assert outcome.code == 0 and _summary(outcome.folder)["status"] == "diverged"
