"""The seeds of one configuration, split over processes of one thread each.

Each process trains its share as `run_batch` does: together, or one by one where that is refused.
The trial that a batch begins with, and the start of a process, are paid for in each: for two seeds
a process and 60 steps a pool that trains them one by one is quicker.
"""

import contextlib
import io
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

from optbench.cli.batch import Ended, Member, Say, run_batch
from optbench.configuration.compose import find_plugins
from optbench.configuration.finished import PresentData
from optbench.errors import MachineError
from optbench.processes import end_processes, fork_server, stop_with_the_launcher


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
    said: str
    is_interrupted: bool


def run_batch_in_processes(
    members: Sequence[Member], present: PresentData, processes: int, say: Say = print
) -> list[Ended]:
    """Train members as `run_batch` does, each process a share; return how each ended.

    Args:
        members: Members of one group.
        present: Data and code as they are now.
        processes: Number of processes; at most one a member is started.
        say: Takes what the processes have printed, each at its end.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after a checkpoint of each.
    """
    count = min(processes, len(members))
    if count <= 1:
        return run_batch(members, present, say)
    context = fork_server(threads=1)
    shares: list[_Share] = []
    reports: dict[int, _Report | MachineError] = {}
    try:
        shares.extend(  # one after the other, so that `finally` knows those that were started
            _started(context, range(k, len(members), count), members, present) for k in range(count)
        )
        reports = _awaited(shares)
    finally:
        end_processes([share.process for share in shares])
    ended: dict[int, Ended] = {}
    for k, share in enumerate(shares):
        match reports[k]:
            case _Report() as report:
                say(report.said.rstrip("\n"))
                ended |= dict(zip(share.places, report.ended, strict=True))
                if report.is_interrupted:
                    raise KeyboardInterrupt
            case lost:
                ended |= dict.fromkeys(share.places, lost)
    return [ended[place] for place in range(len(members))]


def _started(
    context: Any, places: Sequence[int], members: Sequence[Member], present: PresentData
) -> _Share:
    results, sender = context.Pipe(duplex=False)
    share = [members[place] for place in places]
    process = context.Process(target=_train, args=(share, present, sender), daemon=False)
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    return _Share(places, process, results)


def _awaited(shares: Sequence[_Share]) -> dict[int, _Report | MachineError]:
    """Wait for the report of each share; an error stands for a process that died."""
    reports: dict[int, _Report | MachineError] = {}
    pending = {share.results: k for k, share in enumerate(shares)}
    while pending:
        for results in wait(list(pending)):
            k = pending.pop(cast(Connection, results))
            try:
                reports[k] = shares[k].results.recv()
            except EOFError:
                process = shares[k].process
                process.join()
                reports[k] = MachineError(
                    f"the process of this run died (exit code {process.exitcode}): the same call "
                    "goes on; a script that starts processes needs `if __name__ == '__main__':`"
                )
    return reports


def _train(members: Sequence[Member], present: PresentData, sender: Connection) -> None:
    """Be one of the processes."""
    import torch

    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    threading.Thread(target=stop_with_the_launcher, daemon=True).start()
    torch.set_num_threads(1)
    find_plugins()
    heard = io.StringIO()
    ended: list[Ended] = []
    is_interrupted = False
    with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
        try:
            ended = run_batch(members, present)
        except KeyboardInterrupt:
            is_interrupted = True
            ended = ["interrupted" for _ in members]
    report = _Report([_sendable(end) for end in ended], heard.getvalue(), is_interrupted)
    sender.send(report)
    sender.close()


def _sendable(end: Ended) -> Ended:
    """An end that another process can read: an error that cannot be sent becomes its words."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(end))
    except Exception:  # an error is anybody's, and so is how it is pickled
        return RuntimeError(f"{type(end).__name__}: {end}")
    return end
