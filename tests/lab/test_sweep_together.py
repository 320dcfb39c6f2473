"""Seeds of one configuration, trained together: the runs that they are alone, to rounding."""

import copy
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from optbench import lab
from optbench.cli import batch_processes
from optbench.cli.batch import Member
from optbench.cli.batch_processes import _Lines, processes_that_pay
from optbench.errors import MachineError, UserError
from optbench.lab import Below, Run
from optbench.probes import State
from optbench.run import checkpoint
from optbench.run.stacked import Stack, _linear
from optbench.run.stacked_evaluation import StackedEvaluation
from optbench.run.update import Update
from optbench.task import half_mse
from tests.processes import command

WORDS = (
    "task=digits",
    "task.train_size=100",
    "task.loss=ce",
    "model.widths=[16]",
    "batch_size=20",
    "probes.sharpness.every=15",
    "probes.generalization.every=5",
    "probes.layers.every=7",
    "device=cpu",
    *lab.QUIET,
)
STEPS = 30
# Float32: 30 updates whose sums are taken in another order. A sign that rounding turns counts for
# an optimizer that normalizes, which the relative norm of all weights hardly sees.
BOUND = 1e-4

Together = Callable[..., list[Run]]
Alone = Callable[..., Run]


@pytest.fixture
def together(tmp_path: Path) -> Together:
    def together(*words: str, seeds: Any = (1, 2, 3), **settings: Any) -> list[Run]:
        settings = {"steps": STEPS, "results_dir": tmp_path / "together", **settings}
        return lab.sweep(*WORDS, *words, seeds=seeds, **settings)

    return together


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    def alone(*words: str, seed: int, **settings: Any) -> Run:
        run = lab.start(*WORDS, *words, seed=seed, results_dir=tmp_path / "alone")
        return run.train(**{"steps": STEPS, **settings})

    return alone


def _flat(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.end.model.parameters()])


def _apart(a: Run, b: Run) -> float:
    return float((_flat(a) - _flat(b)).norm() / _flat(b).norm())


@pytest.mark.parametrize(
    ("words", "step", "forward"),
    [
        (["optimizer=sgd"], "stacked", "bmm"),
        (["optimizer=momentum", "schedule=cosine"], "stacked", "bmm"),
        (["optimizer=adam", "task.loss=mse"], "stacked", "bmm"),
        (["optimizer=adam", "batch_size=full"], "stacked", "bmm"),
        (["optimizer=signum", "model.norm=layer"], "stacked", "bmm"),
        (["optimizer=muon"], "own", "bmm"),
        (["optimizer=lamb"], "own", "bmm"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_members_are_the_runs_that_they_are_alone(
    together: Together, alone: Alone, words: list[str], step: str, forward: str
) -> None:
    for run in together(*words):
        one = alone(*words, seed=run.config.seed)
        assert run.name == one.name
        assert run.summary["batched"] == {"with": 3, "step": step, "forward": forward}
        assert run.status == "done" and _apart(run, one) < BOUND
        for metric in ("train/loss", "sharpness/lambda_max", "edge/distance", "layers/1/angle"):
            if metric not in one.last:
                continue
            ours, theirs = run.series(metric), one.series(metric)
            assert np.array_equal(ours[0], theirs[0])
            # λ₁ is solved to .5 %, from a start vector of the run before
            np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-2, err_msg=metric)
        assert run.summary["gradients"] == one.summary["gradients"]


def test_a_convolution_goes_together(tmp_path: Path) -> None:
    words = [word for word in WORDS if not word.startswith("model.widths")]
    words += ["model=cnn", "model.channels=[4]", "optimizer=adam"]
    runs = lab.sweep(*words, seeds=(1, 2), steps=10, results_dir=tmp_path / "a")
    one = lab.start(*words, seed=2, results_dir=tmp_path / "b").train(steps=10)
    assert runs[1].summary["batched"]["forward"] == "vmap" and _apart(runs[1], one) < BOUND


def test_each_stops_at_its_own_step_and_keeps_what_it_was_told(
    together: Together, alone: Alone
) -> None:
    settings: dict[str, Any] = {
        "until": Below("train/loss", 0.5),
        "keep": [1.0],
        "keep_steps": [5],
        "steps": 800,
    }
    runs = together("optimizer=adam", seeds=range(4), **settings)
    assert len({run.summary["step"] for run in runs}) > 1, "they stop at different steps"
    for run in runs:
        one = alone("optimizer=adam", seed=run.config.seed, **settings)
        assert run.kept == one.kept and run.summary["stopped"] is True
        assert run.summary["step"] == one.summary["step"] and _apart(run, one) < 1e-2
    size = (runs[0].folder / "kept" / "step-5.pt").stat().st_size
    assert size < 2 * (one.folder / "kept" / "step-5.pt").stat().st_size, "only its own row"


def test_one_that_diverges_leaves_the_others(
    together: Together, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At this rate some seeds blow up and some do not; each does what it does alone."""
    words = ["optimizer=sgd", "optimizer.lr=0.4", "task.loss=mse", "explosion_factor=3"]
    runs = together(*words, seeds=range(8))
    ends = {run.status for run in runs}
    assert ends == {"done", "diverged"}, [run.status for run in runs]
    for run in runs:
        one = alone(*words, seed=run.config.seed)
        assert run.status == one.status and run.summary["step"] == one.summary["step"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["optimizer=sam"], "2 gradients an update"),
        (["optimizer=lbfgs"], ""),
        (["model.norm=batch"], "batch norm"),
        (["clip_norm=1"], "clip_norm is set"),
        (["micro_batch_size=5"], "micro_batch_size is set"),
        ([f"model._target_={__name__}.with_dropout"], "dropout draws its masks"),
    ],
)
def test_what_cannot_go_together_runs_one_by_one_and_says_why(
    together: Together, alone: Alone, words: list[str], why: str
) -> None:
    runs = together(*words, seeds=(1, 2), steps=6)
    assert "one by one, for these runs cannot be updated together" in runs[0].said
    assert why in runs[0].said
    for run in runs:
        one = alone(*words, seed=run.config.seed, steps=6)
        assert "batched" not in run.summary and run.name == one.name
        assert torch.equal(_flat(run), _flat(one)), "one by one is bit-identical"


@dataclass
class Meddler:
    """A probe that does something at step 10 of the run of seed 2."""

    every: int = 5
    deed: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def __call__(self, state: State) -> dict[str, float]:
        if state.seed == 2 and state.step == 10:
            type(self).deed()
        return {}


MEDDLER = f"+probes.meddler={{_target_: {__name__}.Meddler}}"


def test_an_error_in_one_leaves_the_others(
    together: Together, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def deed() -> None:
        raise UserError("this one cannot be measured")

    monkeypatch.setattr(Meddler, "deed", staticmethod(deed))
    with pytest.raises(UserError, match="this one cannot be measured"):
        together(MEDDLER)
    ends = {
        run.config.seed: run.status for run in map(lab.open, (tmp_path / "together/runs").iterdir())
    }
    assert ends == {1: "done", 2: "crashed", 3: "done"}


def test_ctrl_c_leaves_all_at_one_step_and_the_same_call_goes_on(
    together: Together, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    straight = [_flat(run) for run in together(MEDDLER, "optimizer=adam")]
    elsewhere = {"results_dir": tmp_path / "interrupted"}
    monkeypatch.setattr(Meddler, "deed", staticmethod(lambda: signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        together(MEDDLER, "optimizer=adam", **elsewhere)
    stopped = [lab.open(folder) for folder in (tmp_path / "interrupted/runs").iterdir()]
    assert [run.status for run in stopped] == 3 * ["interrupted"]
    assert [run.summary["step"] for run in stopped] == [11, 11, 11]
    again = together(MEDDLER, "optimizer=adam", **elsewhere)
    assert again[0].summary["batched"]["with"] == 3
    assert all(map(torch.equal, [_flat(run) for run in again], straight))


def test_runs_that_stand_at_different_steps_go_on_in_groups_and_say_so(
    together: Together,
) -> None:
    straight = together("optimizer=adam", keep_steps=[12, 18])
    weights = [_flat(run) for run in straight]
    for run, step in zip(straight, (12, 12, 18), strict=True):
        checkpoint.save(run.folder, checkpoint.read_kept(run.folder, step))
        (run.folder / "checkpoint.previous.pt").unlink()
        (run.folder / "summary.json").unlink()
    again = together("optimizer=adam", keep_steps=[12, 18])
    assert "stand at steps 12, 18" in again[0].said
    assert [run.summary["batched"]["with"] for run in again] == [2, 2, 1]
    for run, before in zip(again, weights, strict=True):
        assert float((_flat(run) - before).norm() / before.norm()) < BOUND


def test_a_run_that_goes_on_alone_says_that_it_began_in_a_batch(together: Together) -> None:
    run = together("optimizer=adam", keep_steps=[12])[0]
    checkpoint.save(run.folder, checkpoint.read_kept(run.folder, 12))
    (run.folder / "checkpoint.previous.pt").unlink()
    (run.folder / "summary.json").unlink()
    assert run.train().summary["batched"]["with"] == 3


class AsMany(torch.optim.Optimizer):
    """Gradient descent whose state is one number a matrix, which no stack of them has."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["size"] = p.grad.norm()
                p -= group["lr"] * p.grad
        return loss


def test_state_that_would_be_another_takes_a_step_each(together: Together) -> None:
    name = f"optimizer._target_={__name__}.AsMany"
    runs = together("optimizer=custom", name, "optimizer.lr=0.1", steps=6)
    assert runs[0].summary["batched"]["step"] == "own"


def with_dropout(input_shape: tuple[int, ...], output_width: int, **_: Any) -> nn.Module:
    """A linear classifier of which half the inputs are dropped."""
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(math.prod(input_shape), output_width)
    )


def test_loss_and_error_of_all_at_once_are_those_of_each(together: Together, alone: Alone) -> None:
    words = ["optimizer=sgd", "task.loss=mse"]
    one_by_one = StackedEvaluation._ordinary
    with mock.patch.object(StackedEvaluation, "_ordinary", autospec=True) as ordinary:
        ordinary.side_effect = one_by_one
        runs = together(*words)
    assert ordinary.call_count == 2, "held against two members, once"
    for run in runs:
        one = alone(*words, seed=run.config.seed)
        for metric in ("train/loss", "test/loss", "test/error", "gap/loss"):
            np.testing.assert_allclose(
                run.series(metric)[1], one.series(metric)[1], rtol=1e-4, atol=1e-5, err_msg=metric
            )


def test_it_goes_on_after_a_kill_as_if_there_had_been_none(together: Together) -> None:
    straight = together("optimizer=adam", seeds=(1, 2), keep_steps=[12])
    weights = [_flat(run) for run in straight]
    for run in straight:  # as it was when a kill came after step 12
        checkpoint.save(run.folder, checkpoint.read_kept(run.folder, 12))
        (run.folder / "checkpoint.previous.pt").unlink()
        (run.folder / "summary.json").unlink()
    again = together("optimizer=adam", seeds=(1, 2), keep_steps=[12])
    assert again[0].summary["batched"]["with"] == 2
    assert all(map(torch.equal, [_flat(run) for run in again], weights))


def test_finished_runs_are_not_run_again(together: Together) -> None:
    first = together(seeds=(1, 2))
    stamps = [(run.folder / "summary.json").stat().st_mtime_ns for run in first]
    more = together(seeds=(1, 2, 3, 4))
    assert [(run.folder / "summary.json").stat().st_mtime_ns for run in more[:2]] == stamps
    assert [run.summary["batched"]["with"] for run in more] == [2, 2, 2, 2]


def test_the_command_line_does_the_same(tmp_path: Path) -> None:
    words = ["optimizer=sgd", "seed=1,2,3", "batched=true", "steps=8", f"results_dir={tmp_path}"]
    done = command(tmp_path, "--multirun", *WORDS, *words)
    done.check_returncode()
    assert "3 runs together: one forward pass (bmm), one optimizer step for all" in done.stdout
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 3 and all(str(folder) in done.stdout for folder in folders)
    assert {lab.open(folder).summary["batched"]["with"] for folder in folders} == {3}


MLP = [(1, 8, 5), (3, 5, 4)]
"""Examples B, inputs n and outputs m of a stacked layer."""


@pytest.mark.parametrize(("count", "inputs", "outputs"), MLP)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_gradient_of_a_stacked_layer_is_that_of_each_and_lies_as_its_weights(
    count: int, inputs: int, outputs: int, with_bias: bool
) -> None:
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        made = torch.randn(3, *shape, dtype=torch.float64, generator=draws)
        return made.requires_grad_()

    x, weight = drawn(count, inputs), drawn(outputs, inputs)
    bias = drawn(outputs) if with_bias else None
    over = [x, weight, *([bias] if bias is not None else [])]
    slope = drawn(count, outputs).detach()
    ours = torch.autograd.grad(_linear(weight, bias)(x), over, slope)
    for i in range(3):
        own = [p[i].detach().requires_grad_() for p in over]
        theirs = torch.autograd.grad(nn.functional.linear(*own), own, slope[i])
        for a, b in zip(ours, theirs, strict=True):
            # float64: a sum of at most 8 products of numbers of size 1
            torch.testing.assert_close(a[i], b, rtol=0, atol=1e-13)
    assert ours[1].is_contiguous()


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_fused_step_is_that_of_each_member_and_stays_the_stacks_own(name: str) -> None:
    """Of 20 steps on noise; a member's settings do not say `fused`, else its checkpoints would."""
    make = getattr(torch.optim, name)
    settings = {"momentum": 0.9} if name == "SGD" else {}
    torch.manual_seed(0)
    models = [nn.Linear(6, 4).double() for _ in range(2)]
    copies = [copy.deepcopy(model) for model in models]
    updates = [
        Update(model, half_mse, make(model.parameters(), lr=0.01, **settings)) for model in models
    ]
    stack = Stack(updates, one_step=True)
    assert stack.optimizer is not None and stack.optimizer.param_groups[0]["fused"] is True
    singles = [
        Update(model, half_mse, make(model.parameters(), lr=0.01, **settings)) for model in copies
    ]
    for _ in range(20):
        x, y = torch.randn(2, 5, 6).double(), torch.randn(2, 5, 4).double()
        stack(x, y)
        for i, single in enumerate(singles):
            single(x[i], y[i])
    stack.sync()
    for one, update, single in zip(models, updates, singles, strict=True):
        for a, b in zip(one.parameters(), single.model.parameters(), strict=True):
            # float64; Adam divides by √v, which turns rounding of 1e-16 into some 1e-14 at most
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert not update.optimizer.param_groups[0]["fused"]
        assert update.optimizer.state_dict().keys() == single.optimizer.state_dict().keys()


@dataclass
class Leaver:
    """A probe that ends the process of seed 2 at once, as the system does that wants memory."""

    every: int = 5

    def __call__(self, state: State) -> dict[str, float]:
        if state.seed == 2 and state.step == 10:
            os._exit(3)
        return {}


def test_processes_share_the_seeds(together: Together, alone: Alone) -> None:
    runs = together("optimizer=adam", seeds=(1, 2, 3), processes=2)
    assert [run.summary["batched"]["with"] for run in runs[::2]] == [2, 2]
    assert "batched" not in runs[1].summary, "one of its kind in its process"
    assert "2 runs together" in runs[0].said
    for run in runs:
        one = alone("optimizer=adam", seed=run.config.seed)
        assert run.status == "done" and _apart(run, one) < BOUND


def test_processes_are_chosen_by_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(batch_processes, "cores", lambda: 3)

    def chosen(*words: str, count: int = 8) -> int:
        run = lab.start("task=digits", "probes=none", *words, *lab.QUIET, results_dir=tmp_path)
        return processes_that_pay([Member(run.config, "a", run.choices)] * count)

    assert chosen("steps=20") == 1, "some seconds to start for less than a second of work"
    assert chosen("steps=100000") == 3
    assert chosen("steps=100000", count=2) == 2, "one a member at most"
    small = ("steps=1000", "batch_size=16", "model.widths=[8]")
    assert chosen(*small) == 1
    # 101 measurements of 20 gradients of 1,000 examples and 600 weights, 8 times: 1.2 s more
    assert chosen(*small, "probes=default", "probes.sharpness.every=5") == 3
    monkeypatch.setattr(batch_processes, "parent_process", object)
    assert chosen("steps=100000") == 1, "a process of a pool leaves the cores to the others"


def test_a_sweep_starts_processes_where_that_pays(
    together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_processes, "cores", lambda: 2)
    monkeypatch.setattr(batch_processes, "WORTH", 0.0)
    runs = together("optimizer=adam", seeds=(1, 2, 3))
    assert "3 runs in 2 processes of one thread" in runs[0].said
    again = together("optimizer=adam", seeds=(1, 2, 3))
    assert "in 2 processes" not in again[0].said, "none is started for runs that are finished"


def test_lines_of_a_process_arrive_whole() -> None:
    here, there = Pipe(duplex=False)
    heard = _Lines(there)
    heard.write("a\nb")
    heard.write("c\n")
    heard.write("d")
    heard.end()
    assert [here.recv() for _ in range(3)] == ["a", "bc", "d"]


def test_a_process_that_dies_takes_its_share_alone(together: Together, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"died \(exit code 3\)"):
        together(f"+probes.leaver={{_target_: {__name__}.Leaver}}", processes=2)
    ends = {
        run.config.seed: run.status for run in map(lab.open, (tmp_path / "together/runs").iterdir())
    }
    assert ends[1] == ends[3] == "done" and ends[2] != "done"


def test_processes_are_counted(together: Together) -> None:
    with pytest.raises(UserError, match="processes must be 1 or more, got 0"):
        together(processes=0)


def test_git_is_asked_once_for_all_and_each_says_what_it_said(together: Together) -> None:
    with mock.patch("optbench.record.provenance._git_commit", return_value="abc") as asked:
        runs = together("optimizer=sgd", steps=2)
    assert asked.call_count == 1
    for run in runs:
        origin = json.loads((run.folder / "provenance.json").read_text())
        assert origin["git_commit"] == "abc" and origin["versions"]["torch"]
