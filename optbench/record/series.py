"""The `.jsonl` files of a run: appended to line by line, and cut back to go on."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

BLOCK = 2**20  # bytes read at a time


class Series:
    """One `.jsonl` file, appended to a flushed line at a time.

    Args:
        path: The file; it is made where there is none.
        offset: Bytes to keep of it; what is beyond is cut off.

    Attributes:
        offset: Bytes written.
    """

    def __init__(self, path: Path, offset: int) -> None:
        path.touch()
        os.truncate(path, min(offset, path.stat().st_size))
        self._digest = _sha256(path, offset)
        self._stream: IO[bytes] = path.open("ab", buffering=0)
        self.offset = self._stream.tell()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line."""
        line = json.dumps({"step": step} | dict(values), allow_nan=False).encode() + b"\n"
        rest = memoryview(line)
        while rest:  # an unbuffered write may take only a part
            rest = rest[self._stream.write(rest) :]
        self._digest.update(line)
        self.offset += len(line)

    @property
    def digest(self) -> str:
        """SHA-256 of all that was written."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Bring all that was written to the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a `.jsonl` file; one without its end is still being written."""
    if not is_file(path):
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def is_file(path: Path) -> bool:
    """Say whether this is a plain file: no link, folder or pipe, which could hang a reader."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def sha256(path: Path, length: int | None = None) -> str:
    """Return the SHA-256 of a plain file's first `length` bytes, or of all of them.

    Empty where there is no file.
    """
    return _sha256(path, length).hexdigest() if is_file(path) else ""


def whole_length(path: Path, length: int) -> int:
    """Return how many of the first `length` bytes are whole lines of JSON whose steps rise."""
    whole, before = 0, -1
    for line in _lines(path, length) if is_file(path) else ():
        step = _step(line)
        if step is None or step <= before:
            break
        whole, before = whole + len(line), step
    return whole


def _step(line: bytes) -> int | None:
    try:
        content = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    step = content.get("step") if isinstance(content, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _lines(path: Path, length: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while length > 0 and (line := stream.readline(length)):
            length -= len(line)
            yield line


def _sha256(path: Path, length: int | None) -> "hashlib._Hash":
    digest, left = hashlib.sha256(), path.stat().st_size if length is None else length
    with path.open("rb") as stream:
        while left > 0 and (block := stream.read(min(BLOCK, left))):
            digest.update(block)
            left -= len(block)
    return digest
