"""Runs from Python: the command line's own, stopped at a loss, opened, gone back to, forked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optbench import lab
from optbench.errors import UserError
from optbench.lab import Below, Run
from optbench.leaderboard.results_folder import read_folders
from optbench.leaderboard.untuned import compare_runs
from optbench.optimizers.nested import nested
from optbench.run import checkpoint
from tests.processes import command

WORDS = (
    "task=digits",
    "task.train_size=100",
    "task.loss=ce",
    "model.widths=[16]",
    "batch_size=20",
    "probes.sharpness.every=never",
    "probes.generalization.every=5",
    "device=cpu",
    "log_every=1",
    *lab.QUIET,
)

Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def start(*words: str, **settings: Any) -> Run:
        return lab.start(*WORDS, *words, **{"results_dir": tmp_path, "seed": 3, **settings})

    return start


def _weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(_weights(a), _weights(b), strict=True))


def test_it_is_the_run_of_the_command_line_to_the_byte(start: Start, tmp_path: Path) -> None:
    run = start("optimizer=adam")
    run.train(until=Below("train/loss", 0.5), keep=[1.0, 0.5], keep_steps=[5], steps=500)
    words = ["optimizer=adam", "seed=3", "steps=500", "keep=[1.0,0.5]", "keep_steps=[5]"]
    stop = ["stop.metric=train/loss", "stop.below=0.5", f"results_dir={tmp_path / 'shell'}"]
    command(tmp_path, *WORDS, *words, *stop).check_returncode()
    (folder,) = (tmp_path / "shell" / "runs").iterdir()
    assert folder.name == run.name
    assert (folder / "metrics.jsonl").read_bytes() == (run.folder / "metrics.jsonl").read_bytes()
    theirs = lab.open(folder)
    assert theirs.kept == run.kept and len(run.kept) >= 3
    assert all(_same(theirs.at(step=s).model, run.at(step=s).model) for s in run.kept)


def test_it_ends_at_the_first_measurement_below_with_every_probe(start: Start) -> None:
    run = start("optimizer=adam", "probes.sharpness.every=1000").train(
        until=Below("train/loss", 0.5), steps=500
    )
    steps, losses = run.series("train/loss")
    assert run.status == "done" and run.summary["stopped"] is True
    assert losses[-1] <= 0.5 and (losses[:-1] > 0.5).all() and steps[-1] == run.summary["step"]
    sharp, _ = run.series("sharpness/lambda_max")
    assert sharp.tolist() == [0, steps[-1]]


def test_a_run_that_never_gets_there_says_so(start: Start) -> None:
    run = start("optimizer.lr=1e-4").train(until=Below("train/loss", 0.5), steps=10)
    assert run.status == "done" and run.summary["stopped"] is False and run.summary["step"] == 10


def test_a_stop_that_nothing_measures_is_refused(start: Start) -> None:
    with pytest.raises(UserError, match=r"stop.metric=val/los is measured by no probe.*train/loss"):
        start().train(until=Below("val/los", 0.5), steps=10)
    with pytest.raises(UserError, match=r"stop.metric and stop.below go together"):
        start("stop.below=1").train(steps=10)


def test_keys_at_their_defaults_leave_a_run_its_name(start: Start) -> None:
    assert start("stop.metric=null", "keep=[]").name == start().name
    assert start("keep=[0.1]").name != start().name


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "sam", "muon", "prodigy"])
def test_a_fork_that_changes_nothing_goes_on_to_the_bit(start: Start, optimizer: str) -> None:
    whole = start(f"optimizer={optimizer}").train(keep_steps=[7], steps=18)
    fork = whole.at(step=7).fork().train(steps=11)
    assert _same(fork.end.model, whole.end.model)
    assert fork.summary["start_from"]["left"] == []
    assert fork.series("batch/loss")[1][-1] == whole.series("batch/loss")[1][-1]


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "muon", "sam"])
def test_a_fork_takes_the_state_and_not_the_settings(start: Start, optimizer: str) -> None:
    parent = start(f"optimizer={optimizer}").train(keep_steps=[7], steps=8)
    fork = parent.at(step=7).fork("optimizer.scale=3", keep_steps=[0]).train(steps=1)
    before, after = parent.at(step=7).optimizer, fork.at(step=0).optimizer
    for ours, theirs in zip(nested(after), nested(before), strict=True):
        for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert group["lr"] == pytest.approx(3 * other["lr"])
        for p, q in zip(ours.state.values(), theirs.state.values(), strict=True):
            for name, value in p.items():
                assert not isinstance(value, torch.Tensor) or torch.equal(value, q[name])
    assert any(line.startswith("lr=") for line in fork.summary["start_from"]["left"])


def test_a_fork_says_what_it_took_and_what_it_left(start: Start) -> None:
    parent = start("optimizer=adam").train(keep=[2.0], steps=60)
    twin = parent.at(loss=2.0).fork("optimizer=sgd", lr=0.3, seed=4).train(steps=3)
    record = twin.summary["start_from"]
    assert record["run"] == parent.name and record["took"] == ["weights and buffers"]
    assert record["left"] == [
        "the optimizer's state: SGD begins with none",
        "the order of the data: another seed here",
    ]
    assert twin.end.optimizer.param_groups[0]["lr"] == 0.3 and twin.summary["optimizer"] == "sgd"
    first = twin.series("train/loss")[1][0]
    assert first == pytest.approx(parent._loss_at(parent.at(loss=2.0).step), rel=1e-6)


def test_a_fork_goes_on_after_a_kill_as_if_there_had_been_none(start: Start) -> None:
    parent = start("optimizer=adam").train(keep_steps=[5], steps=6)
    straight = parent.at(step=5).fork(lr=0.01, keep_steps=[4, 9]).train(steps=12)
    states = [checkpoint.read_kept(straight.folder, step)["digest"] for step in (4, 9)]
    weights = _weights(straight.end.model)
    state = checkpoint.read_kept(straight.folder, 4)
    # as it was when a kill came after step 4
    checkpoint.save(straight.folder, state)
    (straight.folder / "checkpoint.previous.pt").unlink()
    (straight.folder / "summary.json").unlink()
    stale = straight.folder / "kept" / "step-11.pt"  # of a path that it does not take now
    stale.write_bytes((straight.folder / "kept" / "step-9.pt").read_bytes())
    again = parent.at(step=5).fork(lr=0.01, keep_steps=[4, 9]).train(steps=12)
    assert "going on from step 4" in again.said
    assert all(map(torch.equal, _weights(again.end.model), weights)) and not stale.exists()
    assert [checkpoint.read_kept(again.folder, step)["digest"] for step in (4, 9)] == states


def test_what_is_not_there_is_said_with_what_is(start: Start, tmp_path: Path) -> None:
    run = start().train(keep_steps=[3], steps=6)
    with pytest.raises(UserError, match=r"not kept a checkpoint of step 4 \(there are the steps 3"):
        run.at(step=4)
    with pytest.raises(UserError, match=r"has kept no checkpoint at its first loss of 0.1"):
        run.at(loss=0.1)
    with pytest.raises(UserError, match=r"has no x/y; it has batch/loss"):
        run.series("x/y")
    with pytest.raises(UserError, match=r"is no run folder"):
        lab.open(tmp_path)
    with pytest.raises(UserError, match=r"there is no key foo"):
        run.at().fork(foo=3)
    with pytest.raises(UserError, match=r"Did you mean digits"):
        lab.start("task=digitz")
    (run.folder / "kept" / "step-3.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"step-3.pt cannot be used: it is damaged"):
        run.at(step=3)


def test_a_diverged_run_is_a_result(start: Start) -> None:
    run = start("optimizer.lr=1e6").train(steps=200)
    assert run.status == "diverged" and np.isfinite(run.series("train/loss")[1][0])


def test_an_opened_run_is_whole(start: Start) -> None:
    run = start("optimizer=adam").train(steps=4)
    opened = lab.open(run.folder)
    assert opened.name == run.name and opened.status == "done" and opened.last == run.last
    end = opened.end
    assert len(end.task.train) == 100 and end.step == 4 and end.batches.size == 20
    assert all("exp_avg" in state for state in end.optimizer.state.values())


def test_building_a_snapshot_leaves_the_random_state(start: Start) -> None:
    run = start().train(steps=2)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    _ = run.end.model
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [("sgd", [0.1]), ("muon", [0.02, 2e-3]), ("sam", [0.1]), ("lookahead", None)],
)
def test_one_scale_multiplies_every_rate(
    start: Start, optimizer: str, rates: list[float] | None
) -> None:
    plain = start(f"optimizer={optimizer}").train(steps=1).end.optimizer
    scaled = start(f"optimizer={optimizer}", "optimizer.scale=2").train(steps=1).end.optimizer
    ours, theirs = ([g["lr"] for g in o.param_groups] for o in (scaled, plain))
    assert ours == pytest.approx([2 * lr for lr in theirs])


def test_a_scale_without_a_rate_is_refused(start: Start) -> None:
    with pytest.raises(UserError, match=r"optimizer.scale must be .*above 0"):
        start("optimizer.scale=-1").train(steps=1)


def test_forks_of_runs_that_differ_in_their_seed_are_compared_by_seed(
    start: Start, tmp_path: Path
) -> None:
    """Whatever was kept of these runs, and wherever they lay; a fork of a fork likewise."""
    for seed, kept in ((3, [5]), (4, [2, 5])):
        parent = start(seed=seed).train(keep_steps=kept, steps=6)
        middle = parent.at(step=5).fork("optimizer=adam").train(keep_steps=[1], steps=2)
        for optimizer in ("sgd", "momentum"):
            middle.at(step=1).fork(f"optimizer={optimizer}").train(steps=3)
    parent.at(step=5).fork("optimizer=sgd", seed=9).train(steps=3)  # of seed 4
    groups = compare_runs(read_folders(tmp_path, any_run=True)[0]).groups
    seeds = [{line.name: list(line.runs) for line in group.lines} for group in groups]
    assert {"sgd": [3, 4], "momentum": [3, 4]} in seeds
    assert {"adam": [3, 4]} in seeds and {"sgd": [3, 4]} in seeds and {"sgd": [9]} in seeds
    assert len(seeds) == 4
