"""Many runs at once: launchers share them, a server that dies is started anew, and a run that hangs is stopped."""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from optbench.errors import UserError
from optbench.launch import local as launching
from optbench.launch.local import Finished, launch
from optbench.protocol.tuner import COMMAND
from optbench.record.terminal import ManyRuns

QUICK = ("task=quadratic", "steps=5", "probes=none", "wandb.mode=disabled", "picture=false")
HANGING = """import signal, time, torch
class Hanging(torch.optim.SGD):
    def step(self, closure):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
"""
SLOW = """import pathlib, time, torch
class Slow(torch.optim.SGD):
    def step(self, closure):
        pathlib.Path(FOLDER, "begun").touch()
        time.sleep(0.05)
        return super().step(closure)
"""


def _folders(runs: Sequence[Finished]) -> list[Path]:
    assert all(run.folder for run in runs), [run.why for run in runs]
    return [run.folder for run in runs if run.folder]


@pytest.mark.parametrize("name", ["zoë ${seed}", "a,b=(1)", "2026", "it's\\"])
def test_results_go_to_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    [run] = launch([QUICK], jobs=1, results=tmp_path / name)
    [folder] = _folders([run])
    assert folder.parent == tmp_path / name / "runs" and run.overrides == QUICK


def test_a_run_that_somebody_else_is_at_work_on_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two launchers share four runs; the third is claimed at first by neither of them."""
    monkeypatch.setattr(launching, "LOOK_AGAIN", 0.05)
    commands = [(*QUICK, f"seed={seed}") for seed in range(2)]
    said: list[str] = []
    ended: dict[int, list[Finished]] = {}
    claims = tmp_path / "claims"
    claims.mkdir()

    def work(number: int) -> None:
        shared = launch(commands, jobs=1, results=tmp_path, claims=claims, say=said.append)
        ended[number] = list(shared)

    with FileLock(claims / launching._Waiting(commands[0]).claim):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while not said and time.monotonic() < deadline:
            time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert set(said) == {"another process is at work on some of these runs: waiting for it"}
    assert set(_folders(ended[0])) == set(_folders(ended[1])) == set((tmp_path / "runs").iterdir())
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_run_whose_claim_is_to_be_tried_again_waits_for_a_free_place(tmp_path: Path) -> None:
    """Not in a loop that keeps a core busy."""
    launcher = launching._Launcher(tmp_path, None, tmp_path, 1, 1, (), math.inf, print)
    launcher.waiting = [launching._Waiting(QUICK, not_before=time.monotonic() - 1)]
    assert launcher._patience() == 0
    process = get_context("spawn").Process()
    launcher.running = [launching._Running(launching._Waiting(QUICK), process, tmp_path, math.inf)]
    assert launcher._patience() is None


@pytest.mark.skipif(sys.platform == "win32", reason="there is a fork server on POSIX only")
def test_a_fork_server_that_is_killed_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_one.py").write_text(SLOW.replace("FOLDER", repr(str(tmp_path))))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(launching, "LOOK_AGAIN", 0.05)
    slow = (
        *QUICK[:1],
        "steps=20",
        *QUICK[2:],
        "optimizer=custom",
        "optimizer._target_=slow_one.Slow",
    )
    said: list[str] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]

    threading.Thread(target=kill).start()
    runs = launch([slow, (*QUICK, "seed=7")], jobs=1, results=tmp_path, say=said.append)
    folders = _folders(list(runs))
    assert said == ["the server that starts the runs was killed: they go on from their checkpoints"]
    assert {json.loads((f / "summary.json").read_text())["status"] for f in folders} == {"done"}


def test_a_run_that_hangs_is_stopped_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not even heed the request to stop."""
    (tmp_path / "hanging.py").write_text(HANGING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(launching, "GRACE", 0.2)
    hanging = (*QUICK, "optimizer=custom", "optimizer._target_=hanging.Hanging")
    bad, good = launch([hanging, QUICK], jobs=1, results=tmp_path, seconds=4)
    assert bad.folder is None and bad.why == "stopped after 4 seconds, its time limit"
    assert _folders([good])


def test_without_a_terminal_progress_comes_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with ManyRuns(40, console=Console(stderr=True, force_terminal=False)) as shown:
        shown.begin("adam tune")
        for _ in range(40):
            shown.advance()
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0] == "0/40 runs  adam tune"
        and lines[-1] == "40/40 runs  adam tune"
        and len(lines) == 11
    )


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with ManyRuns(2, console=Console(stderr=True, force_terminal=True)) as shown:
        shown.begin("adam tune")
        shown.advance()
        shown.say("a word [bold]")
        shown.advance()
    said = capsys.readouterr().err
    assert "2/2" in said and "a word [bold]" in said


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon", ""])
def test_a_time_limit_is_a_positive_number(text: str) -> None:
    with pytest.raises(UserError, match="run_seconds must be a finite number, above 0 and at most"):
        COMMAND.read([f"run_seconds={text}"])
