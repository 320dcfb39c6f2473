"""Reading a `.jsonl` series while another process writes it."""

import json
from pathlib import Path
from typing import Any


class Tail:
    """The lines of a growing series, each once, in the order of their steps.

    A file that has been cut back and written again (the run was killed and resumed) is read anew:
    what was the last line read is then no longer found in its place.
    """

    def __init__(self, path: Path, last: int) -> None:
        self.path, self.last = path, last
        self.damaged = 0
        self._offset, self._line = 0, b""

    def read(self) -> list[dict[str, Any]]:
        """Return the new whole lines with a step above `last`; count those that are no record."""
        records = []
        for line in self._new_lines():
            record = _record(line)
            if record is None:
                self.damaged += 1
            elif record["step"] > self.last:
                self.last = record["step"]
                records.append(record)
        return records

    def _new_lines(self) -> list[bytes]:
        if not self.path.is_file():
            return []
        with self.path.open("rb") as stream:
            stream.seek(self._offset - len(self._line))
            if stream.read(len(self._line)) != self._line:
                stream.seek(0)
                self._offset, self.damaged = 0, 0
            whole, end, _ = stream.read().rpartition(b"\n")
        if not end:
            return []
        self._offset += len(whole) + 1
        lines = whole.split(b"\n")
        self._line = lines[-1] + b"\n"
        return lines


def _record(line: bytes) -> dict[str, Any] | None:
    """Return a line's values, None if it is not JSON, not an object, or has no step."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and type(values.get("step")) is int else None
