"""Runs on SLURM, where it is installed, and on submitit's local executor."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optbench.launch import slurm
from optbench.launch.launcher import Finished, Order
from optbench.launch.slurm import SlurmLauncher

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
    child = os.fork()
    if child == 0:
        next(queue)
        os._exit(0)
    _until(holds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


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
