"""The seeds of one configuration, split over processes of one thread each.

Each process trains its share as `run_batch` does: together, or one by one where that is refused.
The start of a process and the trial that a batch begins with are paid for in each, so that a batch
of a few seconds stays in this one.
"""

import contextlib
import io
import math
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

from optbench.boundary.counting import counted
from optbench.cli.batch import Ended, Member, Say, run_batch
from optbench.configuration.build import build
from optbench.configuration.compose import find_plugins
from optbench.configuration.finished import PresentData
from optbench.errors import MachineError
from optbench.processes import (
    cores,
    end_processes,
    fork_server,
    stop_with_the_launcher,
    without_main,
)
from optbench.record.progress import News, Progress, sent_to
from optbench.run.loop import Experiment

WORTH = 2.5
"""Seconds of a core from which on a batch is split. The first processes take as long to begin."""
RUN = 0.08  # seconds that it takes to build a run, to open and to close its folder
FLOPS = 5e10  # a second, of products of small matrices on one core
CALL = 5e-5  # seconds that a member's update costs in calls
SOLVE = 20  # gradients of the data that a measurement is taken to cost


@dataclass
class _Share:
    """The places of some members, the process that trains them, and what it sends."""

    places: Sequence[int]
    process: BaseProcess
    results: Connection


@dataclass(frozen=True)
class _Report:
    """What a process has to say at its end."""

    ended: list[Ended]
    is_interrupted: bool


def run_batch_in_processes(
    members: Sequence[Member],
    present: PresentData,
    processes: int | None = None,
    say: Say = print,
) -> list[Ended]:
    """Train members as `run_batch` does, each process a share; return how each ended.

    Args:
        members: Members of one group.
        present: Data and code as they are now.
        processes: Number of processes, at most one a member; None for `processes_that_pay`.
        say: Takes the lines that the processes print, as they come.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after a checkpoint of each.
    """
    if all(member.is_finished for member in members):
        return run_batch(members, present, say)
    count = processes_that_pay(members) if processes is None else min(processes, len(members))
    if count <= 1:
        return run_batch(members, present, say)
    say(f"{counted(len(members), 'run')} in {counted(count, 'process')} of one thread")
    context = fork_server(threads=1)
    shares: list[_Share] = []
    reports: dict[int, _Report | MachineError] = {}
    try:
        with without_main():
            shares.extend(  # one after the other, so that `finally` knows those that were started
                _started(context, range(k, len(members), count), members, present)
                for k in range(count)
            )
        reports = _awaited(shares, say, int(members[0].config.steps or 0))
    finally:
        end_processes([share.process for share in shares])
    ended: dict[int, Ended] = {}
    for k, share in enumerate(shares):
        match reports[k]:
            case _Report() as report:
                ended |= dict(zip(share.places, report.ended, strict=True))
                if report.is_interrupted:
                    raise KeyboardInterrupt
            case lost:
                ended |= dict.fromkeys(share.places, lost)
    return [ended[place] for place in range(len(members))]


def processes_that_pay(members: Sequence[Member]) -> int:
    """Number of processes that a batch is trained in: one for each core, or this one alone.

    It is a function of the settings and of the number of cores, so that a batch that is resumed is
    split as it was. One process for a batch of a few seconds, on an accelerator, in a process that
    shares the cores with others already, and where a class is the calling script's own.
    """
    first = members[0].config
    if parent_process() is not None or "__main__." in members[0].group:
        return 1
    try:
        experiment = build(first.copy())
    except Exception:  # `run_batch` meets it again, and says whose it is
        return 1
    if experiment.update.parameters[0].device.type != "cpu":
        return 1
    alone = core_seconds(experiment)
    return min(cores(), len(members)) if len(members) * alone > WORTH else 1


def core_seconds(experiment: Experiment) -> float:
    """Rough seconds that one run takes of one core, from its settings alone.

    An update is 6 B P operations, for B examples and P weights, and a measurement some `SOLVE`
    gradients of all N examples. Weights that are shared, as in a convolution, count once: too few.
    """
    weights = sum(p.numel() for p in experiment.update.parameters)
    examples, steps = len(experiment.task.train.inputs), experiment.settings.steps
    gradient = 6 * weights / FLOPS  # seconds for one example
    measured = max(
        (_times(p.every, steps, experiment.batches.per_epoch) for p in experiment.probes.values()),
        default=0.0,
    )
    return (
        RUN
        + steps * (CALL + experiment.batches.size * gradient)
        + measured * SOLVE * examples * gradient
    )


def _times(every: int | str, steps: int, per_epoch: int) -> float:
    """How often a cadence falls in a run, about; 0 for one that follows another."""
    match every:
        case int(number):
            return steps / number
        case "epoch":
            return steps / per_epoch
        case "log":
            return 10 * math.log10(max(1, steps))
        case _:
            return 0.0


def _started(
    context: Any, places: Sequence[int], members: Sequence[Member], present: PresentData
) -> _Share:
    results, sender = context.Pipe(duplex=False)
    share = [members[place] for place in places]
    process = context.Process(target=_train, args=(share, present, sender), daemon=False)
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    return _Share(places, process, results)


class _Shares:
    """The progress of all shares as one: as far as their mean, as long as the last of them."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._news: dict[int, News] = {}

    def take(self, k: int, news: News) -> None:
        """Take in how far a share is."""
        self._news[k] = news
        all_of_them = list(self._news.values())
        self._shown.total = max(n.total for n in all_of_them)
        self._shown.begin(all_of_them[0].doing, line=False)
        mean = sum(n.done for n in all_of_them) // len(all_of_them)
        self._shown.update(mean, all_of_them[0].numbers, self._left)

    def _left(self) -> float | None:
        known = [n.left for n in self._news.values() if n.left is not None]
        return max(known, default=None)


def _awaited(shares: Sequence[_Share], say: Say, steps: int) -> dict[int, _Report | MachineError]:
    """Show what the processes tell, until the report of each; an error stands for one that died."""
    with Progress(steps, "steps", "starting") as shown:
        return _reports(shares, say, _Shares(shown))


def _reports(
    shares: Sequence[_Share], say: Say, together: _Shares
) -> dict[int, _Report | MachineError]:
    reports: dict[int, _Report | MachineError] = {}
    pending = {share.results: k for k, share in enumerate(shares)}
    while pending:
        for results in wait(list(pending)):
            k = pending[cast(Connection, results)]
            try:
                told = shares[k].results.recv()
            except EOFError:
                process = shares[k].process
                process.join()
                told = MachineError(
                    f"the process of this run died (exit code {process.exitcode}): the same call "
                    "goes on"
                )
            if isinstance(told, str):
                say(told)
                continue
            if isinstance(told, News):
                together.take(k, told)
                continue
            reports[k] = told
            del pending[cast(Connection, results)]
    return reports


class _Lines(io.TextIOBase):
    """What a process prints, sent line by line to the one that started it."""

    def __init__(self, sender: Connection) -> None:
        self._sender, self._begun, self._lock = sender, "", threading.Lock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:  # a mirror prints from threads of its own
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                self.send(line)
        return len(text)

    def end(self) -> None:
        """Send a line that has no end."""
        if self._begun:
            self.send(self._begun)
            self._begun = ""

    def send(self, told: str | News) -> None:
        """Send a line, or how far the work is."""
        with contextlib.suppress(OSError):  # nobody reads any more: a run does not end of that
            self._sender.send(told)


def _train(members: Sequence[Member], present: PresentData, sender: Connection) -> None:
    """Be one of the processes."""
    import torch

    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    threading.Thread(target=stop_with_the_launcher, daemon=True).start()
    torch.set_num_threads(1)
    find_plugins()
    heard = _Lines(sender)
    ended: list[Ended] = []
    is_interrupted = False
    with (
        contextlib.redirect_stdout(heard),
        contextlib.redirect_stderr(heard),
        sent_to(heard.send),
    ):
        try:
            ended = run_batch(members, present)
        except KeyboardInterrupt:
            is_interrupted = True
            ended = ["interrupted" for _ in members]
    heard.end()
    sender.send(_Report([_sendable(end) for end in ended], is_interrupted))
    sender.close()


def _sendable(end: Ended) -> Ended:
    """An end that another process can read: an error that cannot be sent becomes its words."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(end))
    except Exception:  # an error is anybody's, and so is how it is pickled
        return RuntimeError(f"{type(end).__name__}: {end}")
    return end
