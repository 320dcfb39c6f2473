"""The run folder: files are written whole or line by line, by one process at a time.

config.yaml        the resolved configuration
provenance.json    versions, hardware, git commit, sources, data hash, init hash, initial loss
metrics.jsonl      what was measured, a line a step; bit-identical however often the run was killed
timings.jsonl      what the clock said, a line a step; so it is not
summary.json       status, last and best values
digests.json       SHA-256 of the other files, once the run has finished
checkpoint.pt      the state to resume from
kept/step-N.pt     states that the run was told to keep
dynamics.png       the picture; updates.png and spectrum.png where those were measured
set-aside-1/       what could not be gone on from, as it was found
"""

import hashlib
import json
import math
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic.dataclasses import dataclass

from optbench.boundary import LAX, ShapeError, UnreadableError, shaped
from optbench.boundary import read_json as read_plain_json
from optbench.errors import MachineError
from optbench.record.durable import PART, sync_folder, sync_upwards
from optbench.record.durable import write_whole as write_whole
from optbench.record.picture import PICTURES
from optbench.record.series import Series, is_file, sha256
from optbench.record.series import read_lines as read_lines

SCHEMA = 1
METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
SUMMARY, PROVENANCE, CONFIG = "summary.json", "provenance.json", "config.yaml"
DIGESTS = "digests.json"
CHECKPOINT, CHECKPOINT_BEFORE = "checkpoint.pt", "checkpoint.previous.pt"
KEPT = "kept"
RUN_FILES = (
    CONFIG,
    PROVENANCE,
    METRICS,
    TIMINGS,
    SUMMARY,
    DIGESTS,
    CHECKPOINT,
    CHECKPOINT_BEFORE,
    *PICTURES,
)
MIRRORS = {"wandb": "W&B", "tensorboard": "TensorBoard", "trackio": "trackio"}
"""Mirrors of this package, and what they are called."""


def mirror_state(name: str) -> str:
    """Name of the file that a mirror keeps its state in."""
    return f"{name}.json"


def mirror_log(name: str) -> str:
    """Name of the file that takes what a mirror prints."""
    return f"{name}.log"


MIRROR_FILES = tuple(file(name) for name in MIRRORS for file in (mirror_state, mirror_log))
CLOSED = (CONFIG, PROVENANCE, METRICS)  # what the digests of a finished run are of; see `_closed`
LARGEST_JSON = LARGEST_CONFIG = 2**24
FINISHED = ("done", "diverged")


@dataclass(config=LAX)
class _Finished:
    """What the summary of a finished run must have."""

    status: Literal["done", "diverged"]
    step: int
    digests: str = ""


def is_timing(metric: str) -> bool:
    """Say whether a metric is read off a clock (or an allocator) rather than computed."""
    return metric.endswith(("seconds", "gib"))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's object, or None where it is missing or damaged."""
    try:
        content = read_plain_json(path, LARGEST_JSON)
    except UnreadableError:
        return None
    return content if isinstance(content, dict) else None


def read_finished(path: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run, None if there is no run or it has not finished.

    It does not look at the other files: `check_digests` does.
    """
    summary = read_json(path / SUMMARY)
    try:
        shaped(_Finished, summary)
    except ShapeError:
        return None
    return summary


def check_digests(path: Path, weights: bool = True) -> str:
    """Say what of a finished run is missing or not as the run left it; empty if all is.

    Args:
        path: The run folder.
        weights: Whether the last checkpoint counts; whoever reads numbers alone does not need it.
    """
    summary = read_finished(path)
    if summary is None:
        return f"{SUMMARY} is missing or damaged"
    if "digests" not in summary:  # an earlier version wrote none
        missing = [name for name in CLOSED if not is_file(path / name)]
        return f"{missing[0]} is missing" if missing else ""
    closed = read_json(path / DIGESTS)
    if closed is None:
        return f"{DIGESTS} is missing or damaged"
    names = _closed(summary["status"]) if weights else CLOSED
    for name in names:
        if not is_file(path / name):
            return f"{name} is missing"
        if closed.get(name) != sha256(path / name):
            return f"{name} is not as the run left it"
    if closed.get(SUMMARY) != _content_digest(summary):
        return f"{SUMMARY} is not as the run left it"
    return ""


def _closed(status: str) -> tuple[str, ...]:
    """The files that nothing writes to any more; a diverged run has no last checkpoint."""
    return (*CLOSED, CHECKPOINT) if status == "done" else CLOSED


def _content_digest(summary: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def leftovers(path: Path) -> list[Path]:
    """Return what killed writers left half written in a run folder."""
    return [part for name in RUN_FILES if is_file(part := path / (name + PART))]


def plain(value: Any) -> Any:
    """Lists and dicts with NaN and infinity, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunFolder:
    """A run folder held by this process alone, as a context.

    Entering clears up what killed writers left, and sets aside what is in the way, such as a folder
    called `metrics.jsonl`.

    Attributes:
        moved: A line for each time that something was set aside on entering.

    Raises:
        MachineError: On entering, if another process holds it, or it cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.moved: list[str] = []
        self._lock = FileLock(path / "run.lock", timeout=0)
        self._series: dict[str, Series] = {}

    def __enter__(self) -> "RunFolder":
        try:
            fresh = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if fresh:
                sync_upwards(self.path)
            self._tidy()
        except Timeout as why:
            owner = (self.summary or {}).get("process", "unknown")
            raise MachineError(
                f"another process ({owner}) is at work in {self.path}: wait for it, or stop it"
            ) from why
        except OSError as why:
            self._lock.release()
            raise MachineError(
                f"cannot write to {self.path} ({why.strerror}): say results_dir=DIR with a folder "
                "that you may write to"
            ) from why
        return self

    def __exit__(self, *_: object) -> None:
        for series in self._series.values():
            series.close()
        self._lock.release()

    def _tidy(self) -> None:
        for part in leftovers(self.path):
            part.unlink()
        strange = [
            name
            for file in RUN_FILES
            for name in (file, file + PART)
            if os.path.lexists(self.path / name) and not is_file(self.path / name)
        ]
        if strange:
            self.moved.append(f"{', '.join(strange)} is no file: {self.set_aside(strange)}")

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary so far, None before there is one."""
        return read_json(self.path / SUMMARY)

    @property
    def provenance(self) -> dict[str, Any] | None:
        """What the run came from, None before there is any."""
        return read_json(self.path / PROVENANCE)

    def clear(self) -> None:
        """Delete what an earlier run left here, and nothing that a run does not write."""
        for name in (*RUN_FILES, *MIRROR_FILES):
            for file in (self.path / name, self.path / (name + PART)):
                file.unlink(missing_ok=True)
        for file in (self.path / KEPT).glob("step-*.pt*"):
            file.unlink()
        for file in self.path.glob("events.out.tfevents.*"):
            file.unlink()

    def set_aside(self, names: Iterable[str] = (*RUN_FILES, KEPT)) -> str:
        """Move files, as they are, to a new folder in this one; return words on where they are."""
        number = 1
        while os.path.lexists(place := self.path / f"set-aside-{number}"):
            number += 1
        place.mkdir()
        for name in names:
            if os.path.lexists(self.path / name):
                (self.path / name).rename(place / name)
        sync_folder(place)
        sync_folder(self.path)
        return f"set aside in {place.name}"

    def open_series(self, offsets: Mapping[str, int]) -> None:
        """Open both series, cut back to where a checkpoint says they ended; empty without one."""
        self._series = {
            name: Series(self.path / name, offsets.get(name, 0)) for name in (METRICS, TIMINGS)
        }
        sync_folder(self.path)

    @property
    def offsets(self) -> dict[str, int]:
        """Bytes written to each series, for the checkpoint."""
        return {name: series.offset for name, series in self._series.items()}

    @property
    def metrics_digest(self) -> str:
        """SHA-256 of all that was written to the metrics, for the checkpoint."""
        return self._series[METRICS].digest

    def sync(self) -> None:
        """Bring both series to the disk.

        A checkpoint or a summary may count only after what it builds on.
        """
        for series in self._series.values():
            series.sync()

    def log(self, step: int, measured: Mapping[str, Any]) -> None:
        """Append one step's values.

        A number that is not finite has no place in JSON, and is left out.
        """
        finite = {name: value for name, value in measured.items() if _is_finite(value)}
        timings = {name: value for name, value in finite.items() if is_timing(name)}
        metrics = {name: value for name, value in finite.items() if name not in timings}
        for name, values in ((METRICS, metrics), (TIMINGS, timings)):
            if values:
                self._series[name].write(step, values)

    def write_summary(self, status: str, values: Mapping[str, Any]) -> None:
        """Write the summary whole; of a finished run, after the digests that close the folder."""
        head = {
            "schema": SCHEMA,
            "status": status,
            "process": f"{socket.gethostname()}:{os.getpid()}",
        }
        summary = head | dict(values)
        if status in FINISHED:
            self.sync()
            summary["digests"] = (
                DIGESTS  # a file of their own: they differ between a run and the same run killed
            )
            digests = {name: sha256(self.path / name) for name in _closed(status)}
            as_read = json.loads(json.dumps(summary, allow_nan=False))
            self.write_json(DIGESTS, digests | {SUMMARY: _content_digest(as_read)})
        self.write_json(SUMMARY, summary)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole."""
        write_whole(self.path / name, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _is_finite(value: Any) -> bool:
    return all(math.isfinite(x) for x in value) if isinstance(value, list) else math.isfinite(value)
