"""Runs on SLURM, where it is installed, and on submitit's local executor."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from optbench.errors import UserError
from optbench.launch import slurm
from optbench.launch.launcher import Finished, Order
from optbench.launch.node import Report, new_errand
from optbench.launch.slurm import SlurmLauncher
from optbench.launch.slurm_batch import new_batch

pytest.importorskip(
    "submitit", reason="no submitit here (pip install 'optbench[slurm]'): not tested"
)

QUICK = ("task=quadratic", "steps=5", "probes=none", "wandb.mode=disabled", "picture=false")
SLOW = """import time, torch
class Slow(torch.optim.SGD):
    def step(self, closure):
        time.sleep(0.1)
        return super().step(closure)
"""
SLOW_RUN = (
    *("task=quadratic", "steps=80", "probes=none", "wandb.mode=disabled", "picture=false"),
    *("checkpoint_seconds=0.5", "optimizer=custom", "optimizer._target_=slow_one.Slow"),
    "optimizer.lr=0.01",
)
SCRIPT = Path(__file__).parent / "slurm_here.sh"
NEEDED = ("slurmd", "slurmctld", "munged", "sbatch")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A SLURM of one node, this machine. Not in pytest's folder, which munge may not enter."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        pytest.skip(f"no SLURM here ({', '.join(absent)}; see {SCRIPT.name}): it was not tested")
    if os.geteuid() != 0:
        pytest.skip("SLURM is started by root alone: it was not tested")
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True).stdout.strip())
    subprocess.run([SCRIPT, "start", folder], check=True, stdout=subprocess.DEVNULL)
    yield folder
    subprocess.run([SCRIPT, "stop", folder], check=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def here(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLURM_CONF", str(cluster / "slurm.conf"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow_one.py").write_text(SLOW)
    return tmp_path


def _launcher(where: Path, **settings: Any) -> SlurmLauncher:
    order = Order(where / "results", state=where / "results" / "sweeps", jobs=2)
    return SlurmLauncher(order, memory_gb=0.5, **settings)


def _until(holds: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.1)


def _checkpoints(folder: Path) -> int:
    return len(list(folder.glob("results/runs/*/checkpoint.pt")))


def _sessions(run: Finished) -> int:
    assert run.folder is not None, run.why
    return len(json.loads((run.folder / "provenance.json").read_text())["sessions"])


def test_processes_of_submitit_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    launcher = _launcher(tmp_path, cluster="local")
    runs = list(launcher.launch([QUICK, (*QUICK, "optimizer.lr=-1")], print))
    good, bad = sorted(runs, key=lambda run: not run.folder)
    assert good.folder is not None and good.folder.parent == tmp_path / "results" / "runs"
    assert bad.code == 2 and "optimizer.lr must be a finite number, above 0, got -1" in bad.why


def test_folders_come_back_from_a_job_that_does_not_see_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    launcher = _launcher(tmp_path, cluster="local", shared=False, folder=tmp_path / "shared")
    [run] = launcher.launch([(*QUICK, "seed=7")], print)
    assert run.folder is not None and run.folder.parent == tmp_path / "results" / "runs"
    assert not list((tmp_path / "shared").iterdir())  # all went well: nothing is left behind


@pytest.mark.slow
def test_an_array_of_jobs_makes_the_runs_and_a_failure_is_told(here: Path) -> None:
    launcher = _launcher(here, runs_per_job=2)
    commands = [(*QUICK, f"seed={seed}") for seed in range(3)] + [(*QUICK, "optimizer.lr=-1")]
    runs = list(launcher.launch(commands, print))
    assert sorted(run.overrides for run in runs) == sorted(commands)
    assert [run.code for run in runs if run.folder is None] == [2]
    assert len(list((here / "results" / "runs").iterdir())) == 3


@pytest.mark.slow
def test_what_is_cancelled_is_told_and_the_same_command_goes_on(here: Path) -> None:
    launcher, said = _launcher(here), list[str]()
    runs = launcher.launch([SLOW_RUN], said.append)
    _when(lambda: _checkpoints(here) == 1, ["scancel", "--me"])
    [run] = list(runs)
    assert run.folder is None and "was cancelled: the same command goes on" in run.why
    [run] = list(launcher.launch([SLOW_RUN], said.append))
    assert _sessions(run) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("whole_node", "sessions"), [(False, 1), (True, 2)])
def test_slurmd_or_the_whole_node_dies_and_comes_back(
    here: Path, cluster: Path, whole_node: bool, sessions: int
) -> None:
    """A run outlives slurmd, as jobs do; one whose node died goes on from its checkpoint."""
    launcher, said = _launcher(here), list[str]()
    runs = launcher.launch([SLOW_RUN], said.append)

    def kill() -> None:
        os.kill(int((cluster / "slurmd.started").read_text()), signal.SIGKILL)
        for process in _processes_of(_job()) if whole_node else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(1)
        subprocess.run([SCRIPT, "node", cluster], check=True)

    _when(lambda: _checkpoints(here) == 1, kill)
    [run] = list(runs)
    assert _sessions(run) == sessions


@pytest.mark.slow
def test_the_next_driver_waits_for_the_jobs_of_one_that_was_killed(here: Path) -> None:
    launcher, said = _launcher(here), list[str]()
    queue = launcher.launch([SLOW_RUN], said.append)
    _first_look(queue, lambda: _checkpoints(here) == 1)
    [run] = list(launcher.launch([SLOW_RUN], said.append))
    assert said == ["1 job of an earlier call at work: waiting for it"] and _sessions(run) == 1


def _first_look(queue: Any, holds: Any) -> None:
    """Begin a launch in a process that is killed as soon as a condition holds."""
    child = _elsewhere(queue)
    _until(holds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _elsewhere(queue: Any) -> int:
    """Return the number of a process that makes the runs of a launch, or stops them at Ctrl-C."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(KeyboardInterrupt):
            list(queue)
        os._exit(0)
    return child


@pytest.mark.slow
def test_ctrl_c_leaves_the_jobs_that_another_driver_waits_for(here: Path) -> None:
    launcher, said = _launcher(here), list[str]()
    first = _elsewhere(launcher.launch([SLOW_RUN], said.append))
    _until(lambda: _checkpoints(here) == 1)
    second = launcher.launch([SLOW_RUN], said.append)
    _when(lambda: said, lambda: os.kill(first, signal.SIGINT))
    [run] = list(second)
    os.waitpid(first, 0)
    assert said == ["1 job of an earlier call at work: waiting for it"] and _sessions(run) == 1
    assert not list(launcher.state.iterdir()) and not list((here / "results").glob(".launch-*"))


@pytest.mark.slow
def test_two_drivers_at_once_wait_for_the_same_jobs_to_the_end(here: Path) -> None:
    launcher, said = _launcher(here), list[str]()
    first = _elsewhere(launcher.launch([SLOW_RUN], said.append))
    _until(lambda: _checkpoints(here) == 1)
    [run] = list(launcher.launch([SLOW_RUN], said.append))
    assert os.waitpid(first, 0)[1] == 0
    assert said == ["1 job of an earlier call at work: waiting for it"] and _sessions(run) == 1
    assert not list(launcher.state.iterdir()) and not list((here / "results").glob(".launch-*"))


@pytest.mark.slow
def test_jobs_of_another_results_folder_are_left_alone(here: Path) -> None:
    shared, said = here / "shared", list[str]()
    elsewhere = SlurmLauncher(Order(here / "other", jobs=2), memory_gb=0.5, folder=shared)
    first = _elsewhere(elsewhere.launch([SLOW_RUN], said.append))
    _until(lambda: list(here.glob("other/runs/*/checkpoint.pt")))
    [run] = list(_launcher(here, folder=shared).launch([SLOW_RUN], said.append))
    os.waitpid(first, 0)
    assert not any("earlier call" in line for line in said)
    assert run.folder is not None and run.folder.is_relative_to(here / "results"), run.why


def _job() -> str:
    told = subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True, check=True)
    return told.stdout.split()[0]


def _processes_of(job: str) -> list[int]:
    """Numbers of the processes of a job, and of what watches over it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_job = f"SLURM_JOB_ID={job}\0".encode() in (folder / "environ").read_bytes()
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if is_job or title.startswith(f"slurmstepd: [{job}.".encode()):
            found.append(int(folder.name))
    return found


def _when(holds: Any, do: Any) -> None:
    import threading

    def wait() -> None:
        _until(holds)
        do() if callable(do) else subprocess.run(do, check=True)

    threading.Thread(target=wait, daemon=True).start()


NO_PARTITION = """sbatch: error: invalid partition specified: nope
sbatch: error: Batch job submission failed: Invalid partition name specified"""
NO_MEMORY = """sbatch: error: Memory specification can not be satisfied
sbatch: error: Batch job submission failed: Requested node configuration is not available"""
NO_NODE = (
    "sbatch: error: Batch job submission failed: Requested node configuration is not available"
)


@pytest.mark.parametrize(
    ("said", "settings", "told"),
    [
        (
            NO_PARTITION,
            {"partition": "nope"},
            "invalid partition specified: nope; Batch job submission failed: Invalid partition name "
            "specified. Say something else than launcher.partition=nope; sinfo lists what the "
            "cluster has",
        ),
        (NO_MEMORY, {"memory_gb": 1000.0}, "Say something else than launcher.memory_gb=1000.0;"),
        (
            NO_NODE,
            {"cores": 99},
            "than launcher.memory_gb=4.0, launcher.minutes=240.0, launcher.cores=99;",
        ),
    ],
)
def test_what_sbatch_does_not_take_is_one_line_with_the_setting(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    said: str,
    settings: dict[str, Any],
    told: str,
) -> None:
    for name in ("sbatch", "srun", "squeue"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    launcher = SlurmLauncher(Order(tmp_path / "results"), **settings)
    with pytest.raises(UserError, match="SLURM did not take the jobs: ") as raised:
        list(launcher.launch([QUICK], print))
    assert told in str(raised.value) and "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""
    assert not list(launcher.state.glob("*/*"))


@dataclass
class Faked:
    """In place of SLURM: one job at work, and the numbers of those that were cancelled."""

    states: dict[str, tuple[str, str]]
    cancelled: list[str] = field(default_factory=list)

    def scancel(self, words: Sequence[str], **_: Any) -> None:
        assert words[0] == "scancel"
        self.cancelled += words[1:]
        self.states.clear()


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Faked:
    faked = Faked({"7_0": ("RUNNING", "None")})
    monkeypatch.setattr(slurm, "_states", lambda: dict(faked.states))
    monkeypatch.setattr(subprocess, "run", faked.scancel)
    return faked


def _queue(launcher: SlurmLauncher, *commands: tuple[str, ...]) -> slurm._Queue:
    """A driver that has looked for earlier jobs."""
    told = new_errand(launcher.order, launcher.cores, launcher.shared)
    queue = slurm._Queue(launcher, None, told, print, deque(map(slurm._Wanted, commands)))
    queue.find_earlier()
    return queue


def _submitting(launcher: SlurmLauncher, *commands: tuple[str, ...]) -> slurm._Queue:
    """A driver that has submitted all its runs as the job at work."""
    queue = _queue(launcher)
    wanted = [slurm._Wanted(command) for command in commands]
    batch = new_batch(launcher.state, queue.kind, queue.told.token)
    batch.record({"7_0": [run.name for run in wanted]})
    queue._join(batch, {"7_0": wanted})
    return queue


def _report(queue: slurm._Queue, *commands: tuple[str, ...]) -> None:
    for command in commands:
        file = queue.batches[0].folder / f"{slurm._Wanted(command).name}.report"
        file.write_bytes(pickle.dumps(Report(command, why="no luck")))


A, B = ("seed=0",), ("seed=1",)


def test_a_driver_joins_jobs_of_its_results_folder_alone(tmp_path: Path, faked: Faked) -> None:
    shared = tmp_path / "shared"
    _submitting(_launcher(tmp_path / "one", folder=shared), A)
    assert _queue(_launcher(tmp_path / "one", folder=shared), A, B).jobs[0].number == "7_0"
    other = _queue(_launcher(tmp_path / "two", folder=shared), A, B)
    assert not other.jobs and [run.command for run in other.waiting] == [A, B]


def test_the_last_driver_that_leaves_cancels(tmp_path: Path, faked: Faked) -> None:
    launcher = _launcher(tmp_path)
    first = _submitting(launcher, A)
    second = _queue(launcher, A)
    first.stop()
    assert faked.cancelled == [] and first.told.token_file.exists()  # its jobs look for it
    second.stop()
    assert faked.cancelled == ["7_0"]
    assert not list((tmp_path / "results").glob(".launch-*"))


def test_a_driver_that_leaves_before_the_one_that_submitted(tmp_path: Path, faked: Faked) -> None:
    launcher = _launcher(tmp_path)
    first = _submitting(launcher, A)
    second = _queue(launcher, A)
    second.stop()
    assert faked.cancelled == [] and not second.told.token_file.exists()
    assert first.told.token_file.exists()


def test_nobody_joins_a_job_that_is_being_cancelled(tmp_path: Path, faked: Faked) -> None:
    launcher = _launcher(tmp_path)
    _submitting(launcher, A).stop()
    faked.states["7_0"] = ("COMPLETING", "None")
    assert not _queue(launcher, A).jobs


def test_the_last_driver_that_leaves_deletes_the_batch(tmp_path: Path, faked: Faked) -> None:
    launcher = _launcher(tmp_path)
    first = _submitting(launcher, A)
    second = _queue(launcher, A)
    _report(first, A)
    for queue in (first, second):
        assert [report.why for report in queue._reports()] == ["no luck"]
        queue.stop()
    assert not list(launcher.state.iterdir())
    assert not list((tmp_path / "results").glob(".launch-*"))


def test_a_batch_with_runs_of_others_at_work_is_kept(tmp_path: Path, faked: Faked) -> None:
    launcher = _launcher(tmp_path)
    dead = _submitting(launcher, A, B)
    dead.batches[0].leave()
    second = _queue(launcher, A)
    _report(dead, A)
    assert len(list(second._reports())) == 1
    second.stop()
    assert faked.cancelled == [] and _queue(launcher, B).jobs[0].number == "7_0"


def test_few_runs_are_spread_and_many_are_packed(tmp_path: Path) -> None:
    order = Order(tmp_path)
    assert [SlurmLauncher(order).divided(n) for n in (1, 100, 101, 700, 5000)] == [1, 1, 2, 7, 32]
    two = Order(tmp_path, jobs=2)
    assert SlurmLauncher(two, runs_per_job=3).divided(4) == 2
    assert SlurmLauncher(two, cluster="local").divided(10) == 5
    # four runs share a GPU
    assert SlurmLauncher(Order(tmp_path, device="cuda")).at_once == 4
    assert SlurmLauncher(Order(tmp_path, device="cuda"), gpus=2).at_once == 1


def test_what_squeue_says_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "12|3|RUNNING|None\n13|N/A|PENDING|Resources\n14|0|CANCELLED|None\nrubbish\n"
    done = subprocess.CompletedProcess([], 0, told)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert slurm._states() == {
        "12_3": ("RUNNING", "None"),
        "13": ("PENDING", "Resources"),
        "14_0": ("CANCELLED", "None"),
    }
