"""Many runs at once: launchers share them, and neither a death nor a hang stops the others."""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from optbench.configuration.finished import PresentData
from optbench.errors import UserError
from optbench.launch import local as launching
from optbench.launch.index import INDEX
from optbench.launch.launcher import Finished, Say
from optbench.launch.local import LocalLauncher
from optbench.launch.runs import Runs
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
    [run] = LocalLauncher(jobs=1, results=tmp_path / name).launch([QUICK])
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
        launcher = LocalLauncher(jobs=1, results=tmp_path, claims=claims)
        ended[number] = list(launcher.launch(commands, said.append))

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
    queue = launching._Queue(LocalLauncher(jobs=1), tmp_path, tmp_path, print)
    queue.waiting = [launching._Waiting(QUICK, not_before=time.monotonic() - 1)]
    assert queue._patience() == 0
    process = get_context("spawn").Process()
    running = launching._Running(launching._Waiting(QUICK), process, tmp_path, math.inf)
    queue.running = [running]
    assert queue._patience() is None
    running.deadline = time.monotonic() + 1e9  # longer than the system waits for
    assert queue._patience() == launching.LONGEST_WAIT


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
    launcher = LocalLauncher(jobs=1, results=tmp_path)
    runs = launcher.launch([slow, (*QUICK, "seed=7")], said.append)
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
    bad, good = LocalLauncher(jobs=1, results=tmp_path, seconds=4).launch([hanging, QUICK])
    assert bad.folder is None and bad.why == "stopped after 4 seconds, its time limit"
    assert _folders([good])


def test_without_a_terminal_progress_comes_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with ManyRuns(40, console=Console(stderr=True, force_terminal=False)) as shown:
        shown.begin("adam tune")
        shown.advance(0)
        for _ in range(40):
            shown.advance()
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0] == "  0%  0/40 runs  adam tune"
        and lines[-1] == "100%  40/40 runs  adam tune"
        and len(lines) == 2  # they came at once
    )


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with ManyRuns(2, console=Console(stderr=True, force_terminal=True)) as shown:
        shown.begin("adam tune")
        shown.advance()
        shown.say("a word [bold]")
        shown.advance()
    said = capsys.readouterr().err
    assert "2/2" in said and "a word [bold]" in said


DONE = {"status": "done", "step": 1, "last": {}}


class Engine:
    """Makes no run: the first command of all fails, the folder of each other is there."""

    def __init__(self, results: Path) -> None:
        self.results, self.asked = results, list[tuple[str, ...]]()

    def launch(
        self, commands: Iterable[Sequence[str]], say: Say
    ) -> Generator[Finished, None, None]:
        for command in commands:
            self.asked.append(tuple(command))
            folder = self.results / "runs" / command[0]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text(json.dumps(DONE))
            failed = len(self.asked) == 1
            yield Finished(tuple(command), None if failed else folder, "no luck" * failed)


def test_runs_of_any_engine_are_made_once_and_failures_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PresentData, "check_command", lambda *_: None)
    engine, index = Engine(tmp_path), tmp_path / "deep" / INDEX
    with Runs(engine, tmp_path, index, total=4) as runs:
        runs.make("first", [["a"], ["b"]])
        assert runs.failures == ["failed: python -m optbench a: no luck"]
        assert (runs.folder(["a"]), runs.folder(["b"])) == (None, tmp_path / "runs" / "b")
        runs.make("second", [["b"], ["c"]])
    assert engine.asked == [("a",), ("b",), ("c",)]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "  0%  0/4 runs  first" and said[-1] == "100%  4/4 runs  second"
    index.write_bytes(index.read_bytes()[:-5])  # as if killed while it wrote its last line
    with Runs(engine, tmp_path, index, total=3) as runs:
        runs.make("again", [["a"], ["b"], ["c"]])
        assert runs.failures == [] and runs.summary(["c"]) == DONE
    assert engine.asked[3:] == [("a",), ("c",)]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon", ""])
def test_a_time_limit_is_a_positive_number(text: str) -> None:
    with pytest.raises(UserError, match="run_seconds must be a finite number, above 0 and at most"):
        COMMAND.read([f"run_seconds={text}"])
