"""What a cluster's node does: it makes runs as this machine's engine would, one errand at a time.

- A node that sees the driver's results folder writes there. Its claims and checkpoints are those of
  everybody, so a run that dies with its node goes on from its checkpoint on another.
- A node that does not see it has a folder of its own, $TMPDIR/optbench-UID/…, in which a run that
  was stopped goes on when it comes back. Finished run folders are packed and sent to the driver.
"""

import contextlib
import hashlib
import io
import os
import secrets
import shutil
import signal
import sys
import tarfile
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from optbench.errors import UserError
from optbench.launch.launcher import Finished, Order
from optbench.launch.local import LocalLauncher
from optbench.processes import fork_server
from optbench.record.durable import sync_folder
from optbench.record.folder import read_finished

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Errand:
    """What a node is told, beside the commands.

    Attributes:
        results: Results folder of the driver.
        token: File in it by which a node finds out whether it sees that folder.
        claims: Folder of the claims; None: the node's own.
        where: More overrides for all runs.
        threads: Threads of each run.
        seconds: Time limit of each run.
        cwd: Working folder of the driver, in which modules of the user's own may lie.
        shared: Whether the node sees the results folder; None: it looks.
        at_once: Runs at a time.
    """

    results: str
    token: str
    claims: str | None
    where: tuple[str, ...]
    threads: int
    seconds: float
    cwd: str
    shared: bool | None = None
    at_once: int = 1

    @property
    def token_file(self) -> Path:
        """Where the token lies."""
        return Path(self.results) / self.token

    @property
    def sees_results(self) -> bool:
        """Whether this machine has the driver's results folder."""
        return self.token_file.is_file() if self.shared is None else self.shared

    @property
    def own_results(self) -> Path:
        """Results folder of a node that does not see the driver's."""
        name = hashlib.sha256(f"{self.token.rpartition('-')[0]} {self.results}".encode())
        user = os.getuid() if hasattr(os, "getuid") else "me"
        return Path(tempfile.gettempdir()) / f"optbench-{user}" / name.hexdigest()[:16]


@dataclass(frozen=True)
class Report:
    """How a run ended on a node.

    Attributes:
        command: Overrides that it was given.
        folder: Name of its run folder; empty if it failed.
        why: Why it failed.
        code: Exit code, if it failed.
        packed: The run folder, for a driver that does not see it.
    """

    command: tuple[str, ...]
    folder: str = ""
    why: str = ""
    code: int = 1
    packed: bytes | None = field(default=None, repr=False)


def new_errand(order: Order, threads: int, shared: bool | None, at_once: int = 1) -> Errand:
    """Return an errand, and lay its token into the results folder."""
    assert order.results is not None, "a cluster is told the results folder"
    results = order.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    claims = order.claims.resolve() if order.claims is not None else None
    told = Errand(
        results=str(results),
        token=f".launch-{secrets.token_hex(8)}",
        claims=str(claims) if claims is not None else None,
        where=tuple(order.where),
        threads=order.threads or threads,
        seconds=order.seconds,
        cwd=str(Path.cwd()),
        shared=shared,
        at_once=at_once,
    )
    told.token_file.touch()
    return told


@contextmanager
def errand(order: Order, threads: int, shared: bool | None) -> Iterator[Errand]:
    """Context with an errand, during which its token lies in the results folder."""
    told = new_errand(order, threads, shared)
    try:
        yield told
    finally:
        told.token_file.unlink(missing_ok=True)


def work(errand: Errand, commands: Sequence[Sequence[str]]) -> Generator[Report, None, None]:
    """Make runs on this node, and yield a report of each as it ends.

    A generator that is closed early stops the runs at work, after a checkpoint of each.
    """
    if Path(errand.cwd).is_dir():
        os.chdir(errand.cwd)
        if errand.cwd not in sys.path:
            sys.path.insert(0, errand.cwd)
    sees = errand.sees_results
    results = Path(errand.results) if sees else errand.own_results
    claims = Path(errand.claims) if sees and errand.claims is not None else results / "claims"
    launcher = LocalLauncher(
        jobs=errand.at_once,
        threads=errand.threads,
        results=results,
        where=errand.where,
        claims=claims,
        seconds=errand.seconds,
        # the process that starts the runs may be older than the share of a GPU that it has now
        environment={name: os.environ[name] for name in GPU_VARIABLES if name in os.environ},
    )
    with closing(launcher.launch(commands, _nowhere)) as runs:
        for run in runs:
            if run.folder is None:
                yield Report(run.overrides, why=run.why, code=run.code)
            else:
                yield Report(
                    run.overrides, run.folder.name, packed=None if sees else pack(run.folder)
                )


def _nowhere(line: str) -> None:
    """What a launcher says while it waits is of no use to a driver elsewhere."""


def arrived(report: Report, results: Path) -> Finished:
    """Return how a run ended for the driver; a folder that was sent is unpacked into `results`."""
    if not report.folder:
        return Finished(report.command, None, report.why, report.code)
    folder = results / "runs" / report.folder
    if report.packed is not None and read_finished(folder) is None:
        unpack(report.packed, folder)
    if read_finished(folder) is None:
        why = f"the node says that {report.folder} is finished, but it is not in {results / 'runs'}"
        return Finished(report.command, None, f"{why}: say launcher.shared=false")
    return Finished(report.command, folder)


def pack(folder: Path) -> bytes:
    """Return a run folder as one string of bytes, without its lock."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name != "run.lock":
                archive.add(file, str(file.relative_to(folder)), recursive=False)
    return packed.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Write a packed run folder; it is there whole, or not at all.

    What an unfinished run had left in its place is set aside in it, as a run does with what it
    cannot go on from.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(fresh, filter="data")
        fresh.chmod(0o755)
        if folder.exists():
            folder.rename(fresh / "set-aside-1")
        fresh.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(fresh)
        raise


class NodeStoppedError(BaseException):
    """The cluster asks this node to end."""


@contextmanager
def heeding_the_queue(threads: int, also: Sequence[str] = ("SIGUSR2",)) -> Iterator[None]:
    """Context in which SIGTERM, and what else a queue sends before it kills, raises.

    The runs get to see SIGTERM only: the other signals would kill them before their checkpoint. So
    those are ignored while the process is started from which the runs are forked.
    """
    names = [name for name in also if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    fork_server(threads)
    before[signal.SIGTERM] = signal.getsignal(signal.SIGTERM)
    for number in before:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _: FrameType | None) -> None:
    raise NodeStoppedError(signal.Signals(number).name)


def missing(engine: str, package: str, why: ImportError) -> UserError:
    """Return the error of an engine whose package is not installed."""
    return UserError(
        f"launcher={engine} needs {package}, which cannot be imported ({why}): "
        f"pip install 'optbench[{engine}]'"
    )
