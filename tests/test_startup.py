"""Trouble of the terminal is not the run's: nothing printed can raise, Ctrl-C takes one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from optbench import startup
from optbench.record.terminal import Terminal, closing_table
from tests.processes import command

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX descriptors")
RUN = ("task=quadratic", "steps=20", "probes=none", "picture=false", "wandb.mode=disabled")


def _heeding_signals() -> None:
    """Take signals as from a terminal: `nohup`, and shells without jobs, leave some ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _python(folder: Path, code: str, **environment: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        preexec_fn=_heeding_signals,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@posix
def test_writing_to_what_takes_nothing_is_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for number in (os.open("/dev/full", os.O_WRONLY), writer):
        stream = startup.unfailing(number)
        with Terminal(10, Console(file=stream)) as terminal:
            for step in range(10):
                terminal.update(step, {"batch/loss": 1.0})
                terminal.say(f"{step} λ" * 5000)
        stream.flush()
        os.close(number)
        stream.write("more\n")  # and to what is no longer there


def test_what_an_encoding_lacks_is_spelled_and_the_bytes_of_a_name_are_kept(tmp_path: Path) -> None:
    number = os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT)
    stream = startup.unfailing(number, "ascii")
    print("λ = 1, caf\udce9", file=stream)
    os.close(number)
    assert (tmp_path / "said").read_bytes() == b"? = 1, caf\xe9\n"


def test_the_closing_table_on_a_terminal_that_has_ascii_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(sys, "stdout", startup.unfailing(number, "ascii"))
    summary = {
        "name": "zoë",
        "status": "done",
        "step": 1,
        "steps": 1,
        "train_seconds": 1.0,
        "probe_seconds": 0.0,
    }
    closing_table(
        summary
        | {
            "last": {
                "train/loss": 1.0,
                "sharpness/lambda_max_bound": 0.1,
                "sharpness/lambda_max": 2.0,
            }
        },
        0.1,
    )
    sys.stdout.flush()
    assert b"sharpness 2 ? 0.1" in (tmp_path / "said").read_bytes()


@posix
def test_a_run_with_nowhere_to_write_to_trains_to_its_end(tmp_path: Path) -> None:
    """Standard output and error closed, and the first file opened must not take their numbers."""
    command = f"exec {sys.executable} -m optbench {' '.join(RUN)} >&- 2>&-"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0
    [folder] = (tmp_path / "results/runs").iterdir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"
    assert all(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())


@posix
def test_ctrl_c_while_python_imports_takes_one_line(tmp_path: Path) -> None:
    """A module that the command imports first stops until it is interrupted."""
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy/__init__.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "optbench.tune"],
        cwd=tmp_path,
        preexec_fn=_heeding_signals,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "importing").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"optbench: stopped before it began\n"
    assert process.returncode == 130


def test_a_program_that_imports_us_keeps_its_own_ctrl_c(tmp_path: Path) -> None:
    code = "import signal, optbench, optbench.errors; assert signal.getsignal(2) is signal.default_int_handler"
    process = _python(tmp_path, code)
    assert process.communicate(timeout=60)[1] == b"" and process.returncode == 0


@pytest.mark.parametrize("by_the_user", [False, True])
def test_garbage_is_sought_again_once_the_imports_are_over(
    tmp_path: Path, by_the_user: bool
) -> None:
    """Unless it was not before; what was imported is spared."""
    code = (
        "import gc, optbench.errors, optbench.startup\n"
        f"gc.disable() if {by_the_user} else None\n"
        "optbench.startup.begin(); optbench.startup.begin(); assert not gc.isenabled()\n"
        f"work = lambda: 0 if gc.isenabled() is {not by_the_user} else 1\n"
        "try: optbench.errors.exit_with(work)\n"
        f"finally: assert (gc.get_freeze_count() == 0) is {by_the_user}"
    )
    process = _python(tmp_path, code)
    assert process.communicate(timeout=60)[1] == b"" and process.returncode == 0


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_of_many_runs_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import os, time, optbench.errors\n"
        "def work():\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {int(number)}); time.sleep(60)\n"
        "    finally:\n"
        "        print('ended its runs', flush=True)\n"
        "optbench.errors.exit_with(work)"
    )
    process = _python(tmp_path, code)
    out, err = process.communicate(timeout=60)
    by = "" if number is signal.SIGINT else f" by {number.name}"
    assert out == b"ended its runs\n" and err.decode() == f"stopped{by}: the same command goes on\n"
    assert process.returncode == 128 + number


@pytest.mark.parametrize(
    "name", ["tune", "leaderboard", "study", "report", "check", "new", "metrics"]
)
def test_the_script_takes_the_name_of_a_command(name: str) -> None:
    done = command(ROOT, name, "--help")
    assert done.returncode == 0 and f"python -m optbench.{name}" in done.stdout


def test_the_main_jobs_imports_leave_torchs_compiler_out(tmp_path: Path) -> None:
    """It takes half as long as all of torch; `--help` and a wrong setting need no optimizer."""
    code = (
        "import sys, optbench.launch.multirun\n"
        "assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    err = _python(tmp_path, code).communicate(timeout=120)[1]
    assert err == b""


def test_the_version_is_said_without_torch(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['--version']\n"
        "runpy.run_module('optbench', run_name='__main__')\n"
        "assert 'torch' not in sys.modules"
    )
    out, err = _python(tmp_path, code).communicate(timeout=120)
    assert out.startswith(b"optbench ") and err == b""
