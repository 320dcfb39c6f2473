"""How the processes of a run end: no thread of a group outlives it, whoever else holds the group."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from optbench.cli.command_job import main
from optbench.errors import MachineError
from optbench.ranks import Ranks
from optbench.ranks.distributed import joined
from tests.ranks.processes import Group, main_job

# It makes the group of the moment in which it is imported a default argument: seen by
# `torch._dynamo` in the middle of a run.
KEEPS = "torch.distributed.nn.functional"


def _threads() -> set[str]:
    tasks = Path("/proc/self/task").iterdir()
    return {(task / "comm").read_text().strip() for task in tasks}


def _end(rank: int, folder: str, how: str) -> None:
    sys.modules.pop(KEEPS, None)
    try:
        with joined("cpu") as ranks:
            assert any("gloo" in name for name in _threads())
            _leave(ranks, how)
    except (ValueError, MachineError) as why:
        sys.stdout.write(f"{type(why).__name__} ")
    left = {name for name in _threads() if "gloo" in name}
    sys.stdout.write(f"left {sorted(left)}")
    sys.stdout.flush()


def _leave(ranks: Ranks, how: str) -> None:
    importlib.import_module(KEEPS)
    ranks.sums(1.0)
    if how == "error":
        raise ValueError
    if how == "death" and ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "death":
        ranks.sums(1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are read from /proc")
@pytest.mark.parametrize(
    ("how", "said", "codes"),
    [
        ("well", "left []", [0, 0]),
        ("error", "ValueError left []", [0, 0]),
        ("death", "MachineError left []", [0, -signal.SIGKILL]),
    ],
)
def test_no_thread_of_a_group_outlives_it(
    how: str, said: str, codes: list[int], tmp_path: Path
) -> None:
    group = Group(2, tmp_path, _end, how)
    assert group.codes() == codes, group.err(0)
    assert group.out(0) == said


STEP = ("optimizer=custom", "optimizer._target_=tests.ranks.failing.Failing")
PROBE = ("+probes.mine._target_=tests.ranks.failing.Probe",)
RUN = ("task=digits_small", "probes=none", "batch_size=20", "steps=6")
WAYS: dict[str, tuple[tuple[str, ...], str, str, int]] = {
    "in a step": (STEP, "optimizer", "UserError", 2),
    "of somebody's code": (STEP, "optimizer", "ValueError", 1),
    "as the end of the process": (STEP, "optimizer", "SystemExit", 2),
    "before the first step": ((*STEP, "+optimizer.at=0"), "optimizer", "ValueError", 2),
    "in a probe": (PROBE, "probes.mine", "UserError", 2),
    "in a probe of somebody's": (PROBE, "probes.mine", "ValueError", 1),
    "in a probe as the end": (PROBE, "probes.mine", "SystemExit", 2),
    "in a probe as an iterator's": (PROBE, "probes.mine", "StopIteration", 1),
    "by what a probe returns": (PROBE, "probes.mine", "tensor", 2),
}
REASONS = {
    "UserError": "lr=7 is too much: say lr=1",
    "ValueError": "no such step",
    "SystemExit": "calls for the end of the process (sys.exit(3)): take that out",
    "StopIteration": "StopIteration",
    "tensor": "probe mine returned my/x=tensor(1.)",
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_what_goes_wrong_in_one_process_is_said_once_with_its_reason(
    way: str, rank: int, tmp_path: Path
) -> None:
    words, key, how, code = WAYS[way]
    words = (*RUN, *words, f"+{key}.how={how}", f"+{key}.rank={rank}")
    group = main_job(2, tmp_path / "said", *words, f"results_dir={tmp_path / 'results'}")
    assert group.codes() == [code, code], [group.err(0), group.err(1)]
    (line,) = [line for line in group.err(0).splitlines() if line.startswith("optbench: ")]
    assert REASONS[how] in line
    assert "Traceback" not in group.err(0)
    assert group.err(1) == ""


def test_an_error_that_fails_to_say_what_it_is_lets_nobody_wait(tmp_path: Path) -> None:
    words = (*RUN, *STEP, "+optimizer.how=Unreadable", "+optimizer.rank=1")
    group = main_job(2, tmp_path / "said", *words, f"results_dir={tmp_path / 'results'}")
    assert group.codes() == [1, 1], group.err(0)
    assert "UnreadableError" in group.err(0)


def test_where_tracebacks_are_wanted_the_process_that_failed_shows_its_own(
    tmp_path: Path,
) -> None:
    words = (*RUN, *STEP, "+optimizer.how=ValueError", "+optimizer.rank=1")
    group = Group(2, tmp_path / "said", _with_tracebacks, (*words, f"results_dir={tmp_path}"))
    assert group.codes() == [1, 1], group.err(0)
    assert "optbench: process 1: failing.py" in group.err(0)
    assert "Traceback" in group.err(1) and "no such step" in group.err(1)
    assert ", in _fail" in group.err(1)


def _with_tracebacks(rank: int, folder: str, words: tuple[str, ...]) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["optbench", *words, "wandb.mode=disabled", "picture=false"]
    main()


def test_of_three_processes_the_leader_says_alone_what_went_wrong_in_one(tmp_path: Path) -> None:
    words = (*RUN, *STEP, "+optimizer.how=UserError", "+optimizer.rank=2")
    group = main_job(3, tmp_path / "said", *words, f"results_dir={tmp_path / 'results'}")
    assert group.codes() == [2, 2, 2], group.err(0)
    assert group.err(0).splitlines()[-1] == "optbench: process 2: lr=7 is too much: say lr=1"
    assert [group.err(1), group.err(2)] == ["", ""]


def _torchrun(results: Path, restarts: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = ("task=digits_small", "probes=none", "batch_size=10", "optimizer=custom", *words)
    return subprocess.run(
        [
            *(*command, "--standalone", "--max-restarts", str(restarts), "-m", "optbench"),
            *(*words, f"results_dir={results}"),
        ],
        env=os.environ | {"WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_what_torchrun_starts_again_goes_on(tmp_path: Path) -> None:
    words = ("optimizer._target_=tests.ranks.failing.Once", "steps=150", "checkpoint_seconds=0.01")
    found = _torchrun(tmp_path, 1, *words)
    assert found.returncode == 0, found.stderr
    assert "optbench: process 1: failing.py, line " in found.stderr
    assert "going on from step 9" in found.stderr
    assert "done at step 150" in found.stdout


def test_a_leader_that_is_told_to_stop_closes_before_torchrun_ends_it(tmp_path: Path) -> None:
    words = ("optimizer._target_=tests.ranks.failing.Stopped", "steps=1000000", "log_every=10")
    found = _torchrun(tmp_path, 0, *words)
    assert found.returncode == 1, found.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert found.stdout.splitlines()[-1] == str(folder), found.stderr
    assert (folder / "dynamics.png").exists()
    assert (folder / "checkpoint.pt").exists()
    assert "stopped: the same command goes on" in found.stderr.splitlines()
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
