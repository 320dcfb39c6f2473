"""Several files written as one: all are new, or all are as they were."""

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def write_together(contents: Mapping[Path, str]) -> None:
    """Write files so that an error at any of them leaves every old one as it was.

    1. Write all contents beside their places, and wait for the disk.
    2. Keep the old files under another name.
    3. Put the new ones in their places; where that fails, put the old ones back.

    A kill between two of the last step's renames leaves some new and some old; each is whole.
    """
    parts = {path: path.with_name(f"{path.name}.{os.getpid()}.part") for path in contents}
    old = {path: path.with_name(f"{path.name}.{os.getpid()}.old") for path in contents}
    try:
        for path, content in contents.items():
            _write(parts[path], content)
        for path in contents:
            if path.exists():
                _keep(path, old[path])
        _replace(parts, old)
    finally:
        for path in (*parts.values(), *old.values()):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _write(path: Path, content: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _keep(path: Path, old: Path) -> None:
    if not path.is_file():
        raise FileExistsError(errno.EEXIST, "not a file", str(path))
    try:
        os.link(path, old)
    except OSError:  # some file systems have no links
        shutil.copy2(path, old)


def _replace(parts: Mapping[Path, Path], old: Mapping[Path, Path]) -> None:
    done: list[Path] = []
    try:
        for path, part in parts.items():
            part.replace(path)
            done.append(path)
    except BaseException:
        for path in done:
            if old[path].exists():
                old[path].replace(path)
            else:
                path.unlink(missing_ok=True)
        raise
