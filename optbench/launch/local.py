"""The engine of one machine: each run has a process, so that a crash costs one run.

- The processes are forked from a server that has imported everything once. A run starts in a
  fraction of a second.
- Several launchers may be given the same runs, at once or one after the other. Whoever is at work
  on a run has claimed it, with a lock that ends with its process. The others take other runs
  first, and then look again.
"""

import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from filelock import FileLock, Timeout

from optbench.boundary.kinds import Count
from optbench.boundary.overrides import quoted_path
from optbench.launch.launcher import MOST_LOSSES, Finished, Order, Say, digest, once
from optbench.processes import (
    GRACE,
    end_processes,
    fork_server,
    kill_unseen,
    stop_with_the_launcher,
    without_main,
)
from optbench.processes import cores as cores_here
from optbench.record.folder import read_finished
from optbench.startup import begun, secure_terminal

# by every run, before its first step
CLAIMED = 75  # exit code of a process whose run another one is at work on
LOST = 255  # what Python gives for the exit code of a process whose fork server has died
LOOK_AGAIN = 1.0  # seconds until a claimed run is tried again
LONGEST_WAIT = 3600.0  # seconds of one wait; the system call takes no more than 24 days


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class LocalLauncher:
    """The cores of this machine, shared by runs that are each in a process.

    Attributes:
        jobs: Runs at a time.
        threads: Threads of each run, by default cores/jobs, one at least; rounding depends on them.
        results: Results folder; None where the commands say it.
        where: More overrides for all runs, which move no result: how to run.
        claims: Folder of the claims; launchers that share it share the runs. None: a folder that no
            other launcher knows.
        seconds: Time limit of a run; one that takes longer is stopped, and has failed.
        environment: Environment variables of the runs, beside those of this process.
    """

    jobs: int
    threads: int | None = None
    results: Path | None = None
    where: Sequence[str] = ()
    claims: Path | None = None
    seconds: float = math.inf
    environment: Mapping[str, str] = field(default_factory=dict)

    def launch(
        self, commands: Iterable[Sequence[str]], say: Say = _to_stderr
    ) -> Generator[Finished, None, None]:
        """See `Launcher`. Ctrl-C asks the runs at work to stop, as closing the generator does."""
        begun()
        with tempfile.TemporaryDirectory(prefix="optbench-") as scratch:
            claims = self.claims or Path(scratch) / "claims"
            claims.mkdir(parents=True, exist_ok=True)
            queue = _Queue(self, Path(scratch), claims, once(say))
            queue.waiting = [_Waiting(tuple(command)) for command in commands]
            try:
                while queue.waiting or queue.running:
                    queue.start()
                    yield from queue.ended()
            finally:
                end_processes([run.process for run in queue.running])


def local_engine(
    order: Order, jobs: Count | None = None, cores: Count | None = None
) -> LocalLauncher:
    """Return the engine of this machine for an order.

    Args:
        order: What the runs share.
        jobs: Runs at a time; None: the order's, else one a core, and on a GPU four at most.
        cores: Threads of each run; None: the order's, else cores/jobs.
    """
    at_once = cores_here() if order.device == "cpu" else min(4, cores_here())
    return LocalLauncher(
        jobs=order.jobs or jobs or at_once,
        threads=order.threads or cores,
        results=order.results,
        where=order.where,
        claims=order.claims,
        seconds=order.seconds,
    )


@dataclass
class _Waiting:
    command: tuple[str, ...]
    losses: int = 0
    not_before: float = 0.0

    @property
    def claim(self) -> str:
        """Name of the file that is locked by whoever is at work on it."""
        return digest(self.command)[:16] + ".lock"


@dataclass
class _Running:
    about: _Waiting
    process: BaseProcess
    said: Path
    deadline: float
    stopped: bool = False


@dataclass
class _Queue:
    """The runs of one call of `launch`: those that wait, and those at work."""

    settings: LocalLauncher
    scratch: Path
    claims: Path
    say: Say
    waiting: list[_Waiting] = field(default_factory=list)
    running: list[_Running] = field(default_factory=list)

    def start(self) -> None:
        """Start what may be started now."""
        settings, now = self.settings, time.monotonic()
        threads = settings.threads or max(1, cores_here() // settings.jobs)
        ready = [run for run in self.waiting if run.not_before <= now]
        for run in ready[: settings.jobs - len(self.running)]:
            self.waiting.remove(run)
            said = Path(tempfile.mkdtemp(dir=self.scratch))
            overrides = (*run.command, *settings.where, *_results_dir(settings.results))
            process = _start_process(
                overrides, said, threads, self.claims / run.claim, settings.environment
            )
            deadline = time.monotonic() + settings.seconds
            self.running.append(_Running(run, process, said, deadline))

    def ended(self) -> Iterator[Finished]:
        """Wait until a run ends or is due, and yield those that have ended for good."""
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
        """Seconds until a claimed run is tried again, or a run has had its time; None for ever."""
        times = [run.deadline for run in self.running]
        if len(self.running) < self.settings.jobs:
            times += [run.not_before for run in self.waiting]
        soonest = min(times, default=math.inf)
        if soonest == math.inf:
            return None
        return min(max(0.0, soonest - time.monotonic()), LONGEST_WAIT)

    def _again(self, run: _Running) -> bool:
        """Put a run that was not made, for a reason outside it, back among those that wait."""
        if run.process.exitcode == CLAIMED:
            self.say("another process is at work on some of these runs: waiting for it")
            run.about.not_before = time.monotonic() + LOOK_AGAIN
        elif run.process.exitcode == LOST and run.about.losses < MOST_LOSSES:
            self.say(
                "the server that starts the runs was killed: they go on from their checkpoints"
            )
            kill_unseen(run.process)
            run.about.losses += 1
        else:
            return False
        self.waiting.append(run.about)
        return True

    def _outcome(self, run: _Running) -> Finished:
        command, code = run.about.command, run.process.exitcode or 0
        out, err = (_lines(run.said / name) for name in ("out", "err"))
        if code == 0 and out:
            results, folder = self.settings.results, Path(out[-1])
            if results is not None:
                folder = results / "runs" / folder.name
            if read_finished(folder):
                return Finished(command, folder)
        if run.stopped:
            limit = f"{self.settings.seconds:g} seconds, its time limit"
            return Finished(command, None, f"stopped after {limit}")
        died = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        why = f"{died}: {err[-1] if err else 'no word'}"
        return Finished(command, None, why, code=code if code > 0 else 1)


def _results_dir(results: Path | None) -> list[str]:
    return [] if results is None else [f"results_dir={quoted_path(results)}"]


def _start_process(
    overrides: Sequence[str],
    said: Path,
    threads: int,
    claim: Path,
    environment: Mapping[str, str],
) -> BaseProcess:
    context = fork_server(threads)
    for _ in range(MOST_LOSSES):
        process: BaseProcess = context.Process(
            target=_main_job, args=(overrides, said, threads, claim, environment), daemon=False
        )
        try:
            with without_main():
                process.start()
        # the fork server has just been killed; the next try starts another
        except (EOFError, ConnectionError):
            time.sleep(0.1)
        else:
            return process
    raise ConnectionError(
        "the server that starts the runs is killed again and again: is there too little memory?"
    )


def _main_job(
    overrides: Sequence[str],
    said: Path,
    threads: int,
    claim: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Be the main job: write to files, and hold the claim on the run while this process lives."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    secure_terminal(encoding=sys.getfilesystemencoding())
    os.environ |= environment or {}
    threading.Thread(target=stop_with_the_launcher, daemon=True).start()
    if claim is not None:
        lock = FileLock(claim, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            sys.exit(CLAIMED)
    import torch

    from optbench.cli.command_job import main

    torch.set_num_threads(threads)
    sys.argv = ["optbench", *overrides]
    main()


def _lines(file: Path) -> list[str]:
    """What a process has said, as `secure_terminal` has encoded it."""
    if not file.exists():
        return []
    text = file.read_text(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    return text.strip("\n").split("\n") if text.strip() else []
