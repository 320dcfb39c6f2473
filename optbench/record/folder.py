"""The run folder: every file of it is written whole or flushed line by line, by one process at a time.

config.yaml        the resolved configuration
provenance.json    versions, hardware, git commit, data hash, init hash, initial loss
metrics.jsonl      what was measured, a line a step; bit-identical however often the run was killed
timings.jsonl      what the clock said, a line a step; so it is not
summary.json       status, last and best values
checkpoint.pt      the state to resume from
dynamics.png       the picture
"""

import json
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from optbench.errors import MachineError

SCHEMA = 1
METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
SUMMARY, PROVENANCE, CONFIG = "summary.json", "provenance.json", "config.yaml"
WRITTEN = (  # by a run; the lock stays, which is held
    *(CONFIG, PROVENANCE, METRICS, TIMINGS, SUMMARY),
    *("checkpoint.pt", "checkpoint.previous.pt", "dynamics.png", "spectrum.png", "wandb.json", "wandb.log"),
)
FINISHED = ("done", "diverged")


def is_timing(metric: str) -> bool:
    """Say whether a metric is read off a clock (or an allocator) rather than computed."""
    return metric.endswith(("seconds", "gib"))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's object, or None where it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_finished(path: Path) -> dict[str, Any] | None:
    """Return the summary of a run folder, or None where there is no run, or one that has not come to its end."""
    summary = read_json(path / SUMMARY)
    return summary if summary and summary.get("status") in FINISHED else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a `.jsonl` file; a last line without its end is still being written."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def plain(value: Any) -> Any:
    """Lists and dicts with NaN and infinity, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: Path, content: str) -> None:
    """Write a file so that a reader, and a killed writer, sees the old content or the new one."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class _Series:
    """One `.jsonl` file, appended to a flushed line at a time."""

    def __init__(self, path: Path, offset: int) -> None:
        path.touch()
        os.truncate(path, min(offset, path.stat().st_size))
        self._stream: IO[bytes] = path.open("ab", buffering=0)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        line = json.dumps({"step": step} | dict(values), allow_nan=False)
        rest = memoryview(line.encode() + b"\n")
        while rest:  # an unbuffered write may take only a part
            rest = rest[self._stream.write(rest) :]

    @property
    def offset(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()


class RunFolder:
    """A run folder held by this process alone, as a context.

    Raises:
        MachineError: On entering, if another process holds it, or it cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / "run.lock", timeout=0)
        self._series: dict[str, _Series] = {}

    def __enter__(self) -> "RunFolder":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as why:
            owner = (self.summary or {}).get("process", "unknown")
            raise MachineError(f"another process ({owner}) is at work in {self.path}: wait for it, or stop it") from why
        except OSError as why:
            raise MachineError(
                f"cannot write to {self.path} ({why.strerror}): say results_dir=DIR with a folder that you may write to"
            ) from why
        return self

    def __exit__(self, *_: object) -> None:
        for series in self._series.values():
            series.close()
        self._lock.release()

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary so far, None before there is one."""
        return read_json(self.path / SUMMARY)

    @property
    def provenance(self) -> dict[str, Any] | None:
        """What the run came from, None before there is any."""
        return read_json(self.path / PROVENANCE)

    def clear(self) -> None:
        """Delete what an earlier run left here, and nothing that the user may have put here."""
        for name in WRITTEN:
            for file in (self.path / name, self.path / f"{name}.part"):
                file.unlink(missing_ok=True)

    def open_series(self, offsets: Mapping[str, int]) -> None:
        """Open both series, cut back to where a checkpoint says they ended; from nothing without one."""
        self._series = {name: _Series(self.path / name, offsets.get(name, 0)) for name in (METRICS, TIMINGS)}

    @property
    def offsets(self) -> dict[str, int]:
        """Bytes written to each series, for the checkpoint."""
        return {name: series.offset for name, series in self._series.items()}

    def log(self, step: int, found: Mapping[str, Any]) -> None:
        """Append one step's values. A number that is not finite has no place in JSON and is left out."""
        finite = {name: value for name, value in found.items() if _is_finite(value)}
        timings = {name: value for name, value in finite.items() if is_timing(name)}
        metrics = {name: value for name, value in finite.items() if name not in timings}
        for name, values in ((METRICS, metrics), (TIMINGS, timings)):
            if values:
                self._series[name].write(step, values)

    def write_summary(self, status: str, values: Mapping[str, Any]) -> None:
        """Write the summary whole."""
        head = {"schema": SCHEMA, "status": status, "process": f"{socket.gethostname()}:{os.getpid()}"}
        self.write_json(SUMMARY, head | dict(values))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole."""
        write_whole(self.path / name, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _is_finite(value: Any) -> bool:
    return all(math.isfinite(x) for x in value) if isinstance(value, list) else math.isfinite(value)
