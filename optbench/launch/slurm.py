"""The engine of a SLURM cluster, through submitit: elements of job arrays make a few runs each.

1. Divide the runs into jobs of a few, and submit them as one array.
2. Each job writes a report of each run as it ends, into a folder that driver and nodes share.
3. What a job did not report when it was over is submitted again, and goes on from its checkpoint.
   One that was cancelled is not: somebody wanted it to stop.

A driver that is killed leaves its jobs at work. The next driver of the same command finds them, and
waits for them, as it does for those of a driver that lives (`slurm_batch`).

References:
    https://github.com/facebookincubator/submitit; https://slurm.schedmd.com/squeue.html
"""

import io
import math
import os
import pickle
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from optbench.boundary.command_line import FilePath
from optbench.boundary.counting import agreeing, counted
from optbench.boundary.kinds import Count, NotNegative, Positive
from optbench.boundary.signature import shown
from optbench.errors import UserError
from optbench.launch.launcher import MOST_LOSSES, Finished, Order, Say, digest, once
from optbench.launch.node import (
    Errand,
    NodeStoppedError,
    Report,
    arrived,
    heeding_the_queue,
    missing,
    new_errand,
    work,
)
from optbench.launch.slurm_batch import REPORT, Batch, kind_of, new_batch, recorded_batches
from optbench.processes import GRACE

LOOK = 0.2  # seconds between two looks for reports
ASK = 3.0  # seconds between two questions to SLURM
SETTLE = 5.0  # seconds for which a shared folder may hide the last reports of a job that is over
AT_ONCE = 256  # elements of an array at work at a time, without jobs=
SPREAD = 100  # jobs that runs are spread over, before any job gets a second one

ALIVE = {
    "PENDING",
    "RUNNING",
    "COMPLETING",
    "CONFIGURING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
}
"""States of a job that may yet report: https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES."""


@dataclass(frozen=True)
class SlurmLauncher:
    """A SLURM cluster.

    Attributes:
        order: What the runs share.
        cluster: `slurm`, or `local` for submitit's processes on this machine.
        folder: Folder for what goes to and from the jobs; None: below the results folder.
        cores: Cores of a run, and its threads.
        gpus: Share of a GPU that a run needs; None: a quarter with device=cuda, else none. Below 1,
            a job has one GPU and makes as many runs at once as fit.
        memory_gb: Memory that a run needs.
        minutes: Time limit of a job.
        runs_per_job: Most runs of a job, made one after the other.
        partition: Partition of the jobs, as sbatch has it.
        account: Account that is charged, as sbatch has it.
        qos: Quality of service, as sbatch has it.
        constraint: Features that a node must have, as sbatch has it.
        setup: Lines of shell before a job.
        shared: Whether the nodes see the results folder; None: each looks.
    """

    order: Order
    cluster: Literal["slurm", "local"] = "slurm"
    folder: FilePath | None = None
    cores: Count = 1
    gpus: NotNegative | None = None
    memory_gb: Positive = 4.0
    minutes: Positive = 240.0
    runs_per_job: Count = 32
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: Sequence[str] = ()
    shared: bool | None = None

    def launch(
        self, commands: Iterable[Sequence[str]], say: Say
    ) -> Generator[Finished, None, None]:
        """See `Launcher`."""
        submitit = _submitit(self.cluster)
        wanted = list(dict.fromkeys(tuple(command) for command in commands))
        if not wanted:
            return
        told = new_errand(self.order, self.cores, self.shared, self.at_once)
        queue = _Queue(self, submitit, told, once(say), deque(map(_Wanted, wanted)))
        try:
            queue.find_earlier()
            while queue.waiting or queue.jobs:
                queue.submit()
                yield from queue.ended()
        finally:
            queue.stop()

    @property
    def at_once(self) -> int:
        """Runs at a time in one job: those that share its GPU."""
        share = self.order.gpu_share(self.gpus)
        return max(1, math.floor(1 / share)) if share else 1

    @property
    def state(self) -> Path:
        """Folder of the batches."""
        assert self.order.results is not None, "a cluster is told the results folder"
        return Path(self.folder or (self.order.state or self.order.results) / "slurm").resolve()

    @property
    def alone(self) -> FileLock:
        """Lock of the driver that joins or leaves batches."""
        folder = self.order.claims or self.state
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / "drivers.lock")

    @property
    def resources(self) -> dict[str, Any]:
        """What each job asks for, in submitit's words."""
        options: dict[str, Any] = {
            "timeout_min": max(1, math.ceil(self.minutes)),
            "cpus_per_task": self.cores * self.at_once,
            "mem_gb": math.ceil(self.memory_gb * self.at_once),
            "gpus_per_node": math.ceil(self.order.gpu_share(self.gpus)),
        }
        if self.cluster == "slurm":
            options |= {
                f"slurm_{name}": getattr(self, name)
                for name in ("partition", "account", "qos", "constraint")
                if getattr(self, name) is not None
            }
            options["slurm_setup"] = list(self.setup)
        return options

    def executor(self, submitit: Any, folder: Path) -> Any:
        """What submits jobs, with the resources that each needs."""
        executor = submitit.AutoExecutor(folder=str(folder), cluster=self.cluster)
        executor.update_parameters(name="optbench", **self.resources)
        if self.cluster == "slurm":
            executor.update_parameters(slurm_array_parallelism=self.order.jobs or AT_ONCE)
        return executor

    @property
    def places(self) -> int:
        """Jobs that runs are spread over: at a time, where that is known."""
        here = os.cpu_count() or 1
        return self.order.jobs or (here if self.cluster == "local" else SPREAD)

    def divided(self, count: int) -> int:
        """Return how many of so many runs a job gets: few enough that none waits for a place."""
        even = math.ceil(count / self.places)
        return max(1, min(max(self.runs_per_job, self.at_once), even))


@dataclass
class _Wanted:
    command: tuple[str, ...]
    losses: int = 0
    timeouts: int = 0

    @property
    def name(self) -> str:
        """Name of its report."""
        return digest(self.command)


@dataclass
class _Job:
    """A job at work: its number, its batch, and what it has not reported yet."""

    number: str
    batch: Batch
    wanted: list[_Wanted]
    handle: Any = None  # of submitit's local executor
    over_since: float | None = None


@dataclass
class _Queue:
    """The runs of one call of `launch`."""

    engine: SlurmLauncher
    submitit: Any
    told: Errand
    say: Say
    waiting: "deque[_Wanted]"
    jobs: list[_Job] = field(default_factory=list)
    next_question: float = 0.0
    batches: list[Batch] = field(default_factory=list)
    failed: bool = False

    @property
    def kind(self) -> str:
        """What the jobs are told and ask for, as a name."""
        return kind_of(self.told, self.engine.resources)

    def find_earlier(self) -> None:
        """Wait for the jobs of other drivers, dead or alive, as far as they make runs of ours."""
        if self.engine.cluster != "slurm":
            return
        ours = {run.name: run for run in self.waiting}
        states = _states() or {}
        alive = {number for number, (state, _) in states.items() if state in ALIVE}
        with self.engine.alone:
            for folder, record in recorded_batches(self.engine.state, self.kind):
                found = {
                    number: [ours.pop(name) for name in names if name in ours]
                    for number, names in record.jobs.items()
                    if number in alive
                }
                if any(found.values()):
                    self._join(Batch(folder, record), found)
        self.waiting = deque(ours.values())
        if self.jobs:
            them = agreeing(len(self.jobs), "it", "them")
            jobs = counted(len(self.jobs), "job")
            self.say(f"{jobs} of an earlier call at work: waiting for {them}")

    def _join(self, batch: Batch, found: Mapping[str, list[_Wanted]]) -> None:
        self.batches.append(batch)
        self.jobs += [_Job(number, batch, wanted) for number, wanted in found.items() if wanted]

    def submit(self) -> None:
        """Submit what waits, as one array; processes of this machine as places become free."""
        here = self.engine.cluster == "local"
        free = max(0, self.engine.places - len(self.jobs))
        if not self.waiting or (here and not free):
            return
        size = self.engine.divided(len(self.waiting))
        chunks: list[list[_Wanted]] = []
        while self.waiting and (not here or len(chunks) < free):
            chunks.append([self.waiting.popleft() for _ in range(min(size, len(self.waiting)))])
        batch = new_batch(self.engine.state, self.kind, self.told.token)
        self.batches.append(batch)
        executor = self.engine.executor(self.submitit, batch.folder)
        jobs = self._submitted(executor, batch.folder, chunks)
        for job, chunk in zip(jobs, chunks, strict=True):
            handle = job if here else None
            self.jobs.append(_Job(str(job.job_id), batch, chunk, handle))
        batch.record(
            {j.number: [run.name for run in j.wanted] for j in self.jobs if j.batch is batch}
        )
        self.next_question = time.monotonic() + ASK

    def _submitted(self, executor: Any, folder: Path, chunks: Sequence[Sequence[_Wanted]]) -> Any:
        errors = self.submitit.core.utils
        try:
            # submitit prints what sbatch says against the jobs, and raises it, too
            with redirect_stderr(io.StringIO()), executor.batch():
                return [
                    executor.submit(_work, self.told, [run.command for run in chunk], str(folder))
                    for chunk in chunks
                ]
        except (errors.FailedJobError, errors.FailedSubmissionError) as why:
            raise UserError(_not_taken(str(why), self.engine)) from why

    def ended(self) -> Iterator[Finished]:
        """Wait a moment, and yield the runs that have been reported, or that are given up."""
        time.sleep(LOOK)
        for report in self._reports():
            yield self._told_of(report)
        if time.monotonic() >= self.next_question:
            self.next_question = time.monotonic() + ASK
            yield from self._of_jobs_that_are_over()
        self.jobs = [job for job in self.jobs if job.wanted]

    def _reports(self) -> Iterator[Report]:
        for batch in {job.batch for job in self.jobs}:
            reported = batch.reported
            for job in self.jobs:
                for run in list(job.wanted):
                    if job.batch is batch and run.name in reported:
                        job.wanted.remove(run)
                        yield pickle.loads((batch.folder / f"{run.name}{REPORT}").read_bytes())

    def _told_of(self, report: Report) -> Finished:
        assert self.engine.order.results is not None
        finished = arrived(report, self.engine.order.results)
        self.failed |= finished.folder is None
        return finished

    def _of_jobs_that_are_over(self) -> Iterator[Finished]:
        states = self._states()
        if states is None:
            self.say("SLURM does not answer: waiting for it")
            return
        self._say_why_none_starts(states)
        for job in self.jobs:
            state, _ = states.get(job.number, ("GONE", ""))
            if state in ALIVE:
                job.over_since = None
                continue
            job.over_since = job.over_since or time.monotonic()
            settle = SETTLE if self.engine.cluster == "slurm" else LOOK
            if job.wanted and time.monotonic() >= job.over_since + settle:
                yield from self._left_over(job, state)

    def _left_over(self, job: _Job, state: str) -> Iterator[Finished]:
        """What a job that is over has not reported: given up, or to be submitted again."""
        for report in self._reports():  # between the last look and now
            yield self._told_of(report)
        left, job.wanted = list(job.wanted), []
        for i, run in enumerate(left):
            if why := self._given_up(run, job, state, was_at_work=i < self.engine.at_once):
                self.failed = True
                yield Finished(run.command, None, why)
            else:
                self.waiting.append(run)

    def _given_up(self, run: _Wanted, job: _Job, state: str, was_at_work: bool) -> str:
        """Say why a run is not submitted again; empty if it is."""
        log = f"its log is in {job.batch.folder}"
        if state == "CANCELLED":
            return f"job {job.number} was cancelled: the same command goes on from the checkpoint"
        if state in ("TIMEOUT", "DEADLINE", "PREEMPTED", "COMPLETED") and _stopped(job):
            self.say(f"a job was stopped ({state.lower()}): its runs go on in another one")
            run.timeouts += was_at_work
            tried = run.timeouts * self.engine.minutes * 60
            return f"not done after {tried:g} seconds" if tried >= self.told.seconds else ""
        run.losses += was_at_work
        if run.losses >= MOST_LOSSES:
            return f"job {job.number} ended without a word {run.losses} times ({state}); {log}"
        self.say(f"a job died ({state}; {log}): its runs go on from their checkpoints")
        return ""

    def _states(self) -> "Mapping[str, tuple[str, str]] | None":
        if self.engine.cluster == "slurm":
            return _states()
        # submitit looks whether the process lives
        return {j.number: ("FINISHED" if j.handle.done() else "RUNNING", "") for j in self.jobs}

    def _say_why_none_starts(self, states: "Mapping[str, tuple[str, str]]") -> None:
        of_ours = [states.get(job.number, ("", "")) for job in self.jobs]
        pending = {why for state, why in of_ours if state == "PENDING"}
        if of_ours and all(state == "PENDING" for state, _ in of_ours):
            self.say(f"SLURM has not begun a job yet: {', '.join(sorted(pending))}")

    def stop(self) -> None:
        """Leave the batches: cancel the jobs that are left, and delete them if all is well.

        A batch that another driver waits for is left to it, with the token that its jobs look for.
        """
        with self.engine.alone:
            ours = [batch for batch in self.batches if batch.leave()]
            left = [job for job in self.jobs if job.wanted and job.batch in ours]
            for batch in ours:
                batch.forget({job.number for job in left})
                self._clear(batch, delete=not self.failed and not left)
        if self.told.token not in {batch.token for batch in self.batches if batch not in ours}:
            self.told.token_file.unlink(missing_ok=True)
        self._cancel(left)

    def _clear(self, batch: Batch, delete: bool) -> None:
        """Remove the token of a batch, and its folder, unless its jobs make runs of others."""
        if batch.unreported:
            states = self._states()
            if states is None or _any_alive(batch.unreported, states):
                return
        (self.told.token_file.parent / batch.token).unlink(missing_ok=True)
        if delete:
            batch.delete()

    def _cancel(self, left: Sequence[_Job]) -> None:
        """Cancel jobs, and wait until they have stopped."""
        for job in left:
            if job.handle is not None:
                job.handle.cancel(check=False)
        numbers = [job.number for job in left if job.handle is None]
        if numbers:
            subprocess.run(["scancel", *numbers], check=False, capture_output=True)
        deadline = time.monotonic() + GRACE
        while left and time.monotonic() < deadline:
            states = self._states()
            if states is None or not _any_alive([job.number for job in left], states):
                break
            time.sleep(LOOK)


STOPPED = "stopped"


def _work(told: Errand, commands: Sequence[tuple[str, ...]], batch: str) -> None:
    """The job: a few runs, a report of each as it ends; begun again, those not reported."""
    folder = Path(batch)
    left = [c for c in commands if not (folder / f"{_Wanted(c).name}{REPORT}").exists()]
    try:
        with heeding_the_queue(told.threads), closing(work(told, left)) as reports:
            for report in reports:
                name = f"{_Wanted(report.command).name}{REPORT}"
                part = folder / f"{name}.{os.getpid()}"
                part.write_bytes(pickle.dumps(report))
                part.rename(folder / name)
    except NodeStoppedError as why:
        number = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID", "")
        (folder / f"{number}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}.{STOPPED}").write_text(
            str(why)
        )


def _stopped(job: _Job) -> bool:
    """Whether a job was told to end, and has said so."""
    number, _, element = job.number.partition("_")
    return (job.batch.folder / f"{number}_{element}.{STOPPED}").exists()


_SAID_OF = {
    "partition": r"partition",
    "account": r"account",
    "qos": r"\bqos\b",
    "constraint": r"feature|constraint",
    "gpus": r"gres|gpu",
    "memory_gb": r"memory",
    "minutes": r"time ?limit",
    "cores": r"cpu|processor",
}
"""What sbatch calls that which a setting asks for."""


def _not_taken(said: str, engine: SlurmLauncher) -> str:
    """Say in one line what sbatch has against the jobs, and which settings it is about."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line.strip()) for line in said.splitlines()]
    about = [key for key, words in _SAID_OF.items() if re.search(words, said, re.IGNORECASE)]
    given = [key for key in _SAID_OF if getattr(engine, key) is not None]
    asked = [f"launcher.{key}={shown(getattr(engine, key))}" for key in about or given]
    return (
        f"SLURM did not take the jobs: {'; '.join(filter(None, lines))}. Say something else than "
        f"{', '.join(asked)}; sinfo lists what the cluster has"
    )


def _submitit(cluster: str) -> Any:
    try:
        import submitit
    except ImportError as why:
        raise missing("slurm", "submitit", why) from why
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "launcher=slurm needs sbatch, which is not on the PATH: give the command on a login "
            "node of the cluster, or say launcher.cluster=local to try it here"
        )
    return submitit


def _any_alive(numbers: Iterable[str], states: "Mapping[str, tuple[str, str]]") -> bool:
    return any(states.get(number, ("GONE",))[0] in ALIVE for number in numbers)


_LINE = re.compile(r"(\d+)\|(\S*)\|([A-Z_]+)\|(.*)")


def _states() -> dict[str, tuple[str, str]] | None:
    """Return state and reason of each job of this user, by number; None if SLURM does not answer.

    From squeue, for not every cluster keeps accounts that sacct could show.
    """
    words = ["squeue", "--me", "-h", "-r", "-t", "all", "-o", "%F|%K|%T|%r"]
    try:
        told = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    states = {}
    for line in told.stdout.splitlines():
        if match := _LINE.fullmatch(line.strip()):
            number, element, state, why = match.groups()
            states[f"{number}_{element}" if element.isdigit() else number] = (state, why)
    return states
