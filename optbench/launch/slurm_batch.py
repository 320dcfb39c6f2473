"""A batch of SLURM jobs: the folder that drivers and jobs share, and the drivers that wait for it.

KIND-ID/batch.json      the runs of each job, and the token that the jobs look for
KIND-ID/NAME.report     how a run ended
KIND-ID/ID.waits        locked by a driver that waits for the batch, as long as it lives

- KIND is a digest of what the jobs are told and ask for. A driver joins batches of its own kind, so
  never those of another results folder.
- The last driver that leaves a batch cancels its jobs and deletes it. Those before leave it be.
- Joining and leaving are done under one lock: nobody joins what is being given up.
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field

from optbench.boundary import LAX, ShapeError, UnreadableError, read_json, shaped
from optbench.launch.launcher import digest
from optbench.launch.node import Errand
from optbench.record.durable import write_whole

RECORD = "batch.json"
REPORT, WAITS = ".report", ".waits"


@dataclass(frozen=True)
class Record:
    """What drivers tell each other of a batch.

    Attributes:
        token: Token of the driver that submitted it.
        jobs: Names of the runs of each job, by its number.
    """

    __pydantic_config__: ClassVar[ConfigDict] = LAX

    token: Annotated[str, Field(pattern=r"^\.launch-[0-9a-f]+$")]
    jobs: dict[str, list[str]]


class Batch:
    """A batch that this driver waits for.

    Attributes:
        folder: Its folder.
        token: Token of the driver that submitted it.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        """Join it."""
        self.folder, self.token, self._jobs = folder, record.token, record.jobs
        self._mark = FileLock(folder / f"{uuid.uuid4().hex[:12]}{WAITS}", timeout=0)
        self._mark.acquire()

    def record(self, jobs: dict[str, list[str]]) -> None:
        """Write down the names of the runs of each job, by its number, for other drivers."""
        self._jobs = jobs
        write_whole(self.folder / RECORD, json.dumps(asdict(Record(self.token, jobs))))

    def forget(self, numbers: Collection[str]) -> None:
        """Let no driver take over these jobs any more."""
        left = {number: names for number, names in self._jobs.items() if number not in numbers}
        if left != self._jobs:
            self.record(left)

    @property
    def reported(self) -> set[str]:
        """Names of the runs that have a report."""
        return {file.stem for file in self.folder.glob(f"*{REPORT}")}

    @property
    def unreported(self) -> list[str]:
        """Numbers of the jobs that may yet have something to report."""
        reported = self.reported
        return [number for number, names in self._jobs.items() if not reported.issuperset(names)]

    def leave(self) -> bool:
        """Wait no longer; return whether no other living driver waits."""
        self._mark.release()
        Path(self._mark.lock_file).unlink(missing_ok=True)
        return not any(_is_held(mark) for mark in self.folder.glob(f"*{WAITS}"))

    def delete(self) -> None:
        """Delete its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_held(mark: Path) -> bool:
    try:
        with FileLock(mark, timeout=0):
            return False
    except Timeout:
        return True


def kind_of(told: Errand, resources: Mapping[str, Any]) -> str:
    """Return a name for what jobs are told and ask for, whoever submits them.

    A sweep's W&B group is called after the time of its command, and moves nothing.
    """
    where = [word for word in told.where if not word.startswith("wandb.group=")]
    content = asdict(told) | {"token": "", "where": where, "resources": resources}
    return digest([json.dumps(content, sort_keys=True)])[:12]


def new_batch(state: Path, kind: str, token: str) -> Batch:
    """Return a batch without jobs, in a folder of its own below `state`."""
    folder = state / f"{kind}-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    return Batch(folder, Record(token, {}))


def recorded_batches(state: Path, kind: str) -> Iterator[tuple[Path, Record]]:
    """Yield the folder and the record of each batch of a kind."""
    for folder in sorted(state.glob(f"{kind}-*")):
        with contextlib.suppress(UnreadableError, ShapeError):
            yield folder, shaped(Record, read_json(folder / RECORD))
