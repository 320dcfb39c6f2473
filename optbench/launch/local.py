"""Many runs of the main job share one machine: each in a process of its own, so that a crash costs one run.

The processes are forked from a server that has imported everything once; a run starts in a fraction
of a second. Several launchers may be given the same runs, at once or one after the other's end:
whoever is at work on a run has claimed it, with a lock that goes with its process, and the others
do what else there is before they look again.
"""

import contextlib
import hashlib
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from optbench.boundary.overrides import quoted
from optbench.record.folder import read_finished
from optbench.startup import begun, secure_terminal

# by every run, before its first step
PRELOADED = ["optbench.cli.main", "torch._dynamo", "torch.nn.functional"]
CLAIMED = 75  # exit code of a process whose run another one is at work on
LOST = 255  # what Python gives for the exit code of a process whose fork server has died
MOST_LOSSES = 3  # of one run, which then is taken to be their cause
LOOK_AGAIN = 1.0  # seconds until a claimed run is tried again
RUN_SECONDS = 86400.0  # a day: the time limit of a run for commands that are given none
GRACE = 30.0  # seconds to write a checkpoint in, for a run that is asked to stop


@dataclass(frozen=True)
class Finished:
    """How a run of the main job ended.

    Attributes:
        overrides: It was given these.
        folder: Its run folder; None if it failed.
        why: What it said last, if it failed.
    """

    overrides: tuple[str, ...]
    folder: Path | None
    why: str = ""


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(
    commands: Iterable[Sequence[str]],
    jobs: int,
    threads: int | None = None,
    *,
    results: Path | None = None,
    where: Sequence[str] = (),
    claims: Path | None = None,
    seconds: float = math.inf,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Generator[Finished, None, None]:
    """Run the main job once for each list of overrides, `jobs` at a time, and yield each as it ends.

    Every run has as many threads, by default cores/jobs, one at least; rounding depends on them.
    Left early, or on Ctrl-C, the runs at work are asked to stop: each writes its checkpoint, and
    goes on from it when it is given again.

    Args:
        commands: The lists of overrides.
        jobs: Runs at a time.
        threads: Of each.
        results: The results folder; None where the commands say it.
        where: More overrides for all of them, which move no result: how to run.
        claims: Folder of the claims; launchers that share it share the runs. None: of this launcher
            alone.
        seconds: A run that takes longer is stopped, and has failed.
        say: Takes a line for the person who waits.
    """
    begun()
    threads = threads or max(1, cores() // jobs)
    with tempfile.TemporaryDirectory(prefix="optbench-") as scratch:
        claims = claims or Path(scratch) / "claims"
        claims.mkdir(parents=True, exist_ok=True)
        launcher = _Launcher(
            Path(scratch), results, claims, jobs, threads, tuple(where), seconds, say
        )
        launcher.waiting = [_Waiting(tuple(command)) for command in commands]
        try:
            while launcher.waiting or launcher.running:
                launcher.start()
                yield from launcher.ended()
        finally:
            _end([run.process for run in launcher.running])


@dataclass
class _Waiting:
    command: tuple[str, ...]
    losses: int = 0
    not_before: float = 0.0

    @property
    def claim(self) -> str:
        """Name of the file that is locked by whoever is at work on it."""
        return (
            hashlib.sha256("\0".join(self.command).encode(errors="surrogateescape")).hexdigest()[
                :16
            ]
            + ".lock"
        )


@dataclass
class _Running:
    about: _Waiting
    process: BaseProcess
    said: Path
    deadline: float
    stopped: bool = False


@dataclass
class _Launcher:
    """The runs of one call of `launch`."""

    scratch: Path
    results: Path | None
    claims: Path
    jobs: int
    threads: int
    where: tuple[str, ...]
    seconds: float
    say: Callable[[str], None]
    waiting: list[_Waiting] = field(default_factory=list)
    running: list[_Running] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)

    def start(self) -> None:
        """Start what may be started now."""
        now = time.monotonic()
        ready = [run for run in self.waiting if run.not_before <= now]
        for run in ready[: self.jobs - len(self.running)]:
            self.waiting.remove(run)
            said = Path(tempfile.mkdtemp(dir=self.scratch))
            overrides = (*run.command, *self.where, *_results_dir(self.results))
            process = _start_process(overrides, said, self.threads, self.claims / run.claim)
            self.running.append(_Running(run, process, said, time.monotonic() + self.seconds))

    def ended(self) -> Iterator[Finished]:
        """Wait until something is to be done, and give what has ended for good."""
        connection.wait([run.process.sentinel for run in self.running], timeout=self._patience())
        for run in list(self.running):
            if run.process.exitcode is not None:
                self.running.remove(run)
                if not self._again(run):
                    yield self._outcome(run)
            elif time.monotonic() >= run.deadline:
                stop = run.process.kill if run.stopped else run.process.terminate
                stop()
                run.stopped, run.deadline = True, time.monotonic() + GRACE

    def _patience(self) -> float | None:
        """Seconds until a claimed run is to be tried again, or a run has had its time; None for ever."""
        times = [run.deadline for run in self.running]
        if len(self.running) < self.jobs:
            times += [run.not_before for run in self.waiting]
        soonest = min(times, default=math.inf)
        return max(0.0, soonest - time.monotonic()) if soonest < math.inf else None

    def _again(self, run: _Running) -> bool:
        """Put a run that has not been made, through no fault of its own, back among those that wait."""
        if run.process.exitcode == CLAIMED:
            self._say_once("another process is at work on some of these runs: waiting for it")
            run.about.not_before = time.monotonic() + LOOK_AGAIN
        elif run.process.exitcode == LOST and run.about.losses < MOST_LOSSES:
            self._say_once(
                "the server that starts the runs was killed: they go on from their checkpoints"
            )
            _kill_unseen(run.process)
            run.about.losses += 1
        else:
            return False
        self.waiting.append(run.about)
        return True

    def _outcome(self, run: _Running) -> Finished:
        command, code = run.about.command, run.process.exitcode or 0
        out, err = (_lines(run.said / name) for name in ("out", "err"))
        if code == 0 and out:
            folder = (
                self.results / "runs" / Path(out[-1]).name
                if self.results is not None
                else Path(out[-1])
            )
            if read_finished(folder):
                return Finished(command, folder)
        if run.stopped:
            return Finished(
                command, None, f"stopped after {self.seconds:g} seconds, its time limit"
            )
        died = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Finished(command, None, f"{died}: {err[-1] if err else 'no word'}")

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)


def _results_dir(results: Path | None) -> list[str]:
    return [] if results is None else [f"results_dir={quoted(str(results))}"]


def _start_process(overrides: Sequence[str], said: Path, threads: int, claim: Path) -> BaseProcess:
    context = _context(threads)
    for _ in range(MOST_LOSSES):
        process: BaseProcess = context.Process(
            target=_main_job, args=(overrides, said, threads, claim), daemon=False
        )
        try:
            process.start()
        # the fork server has just been killed; the next try starts another
        except (EOFError, ConnectionError):
            time.sleep(0.1)
        else:
            return process
    raise ConnectionError(
        "the server that starts the runs is killed again and again: is there too little memory?"
    )


def _context(threads: int) -> Any:
    """Return the way to start processes: a fork server that knows the number of threads before it imports torch."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if sys.platform == "win32":
        return get_context("spawn")
    from multiprocessing import forkserver

    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with _without_ctrl_c():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C for a moment: what is started then will ignore it too, and leave it to us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _main_job(
    overrides: Sequence[str], said: Path, threads: int, claim: Path | None = None
) -> None:
    """Be the main job, with what it says in files, and the claim on the run for as long as this process lives."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    secure_terminal(encoding=sys.getfilesystemencoding())
    threading.Thread(target=_stop_with_the_launcher, daemon=True).start()
    if claim is not None:
        lock = FileLock(claim, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            sys.exit(CLAIMED)
    import torch

    from optbench.cli.main import main

    torch.set_num_threads(threads)
    sys.argv = ["optbench", *overrides]
    main()


def _stop_with_the_launcher() -> None:
    """Ask this process to stop once the one that launched it is gone, however it went."""
    launcher = parent_process()
    assert launcher is not None
    connection.wait([launcher.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)  # a run that hangs would never end


def _kill_unseen(process: BaseProcess) -> None:
    """Kill a process whose fork server has died: it lives, and would keep its claim, but nobody sees it end."""
    if process.pid is not None and sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _end(processes: Sequence[BaseProcess]) -> None:
    """Ask processes to stop, and kill those that do not in time."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()


def _lines(file: Path) -> list[str]:
    """What a process has said, as `secure_terminal` has encoded it."""
    if not file.exists():
        return []
    text = file.read_text(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    return text.strip("\n").split("\n") if text.strip() else []
