"""Writing that survives a power cut: the content has reached the disk, and so has its name.

A file's content and its entry in a directory are two things to a file system, each with its own
`fsync`.
"""

import contextlib
import os
from pathlib import Path

PART = ".part"  # ends the name of a file that is still being written


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, a kill and a power cut leave the old or the new content."""
    part = write_part(path, content)
    try:
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_part(path: Path, content: str | bytes | memoryview) -> Path:
    """Write the content beside its place, bring it to the disk, and return where it is."""
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, where the system has a way to."""
    # Windows and some network drives open no directories; others may forbid it
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_upwards(folder: Path) -> None:
    """Bring the entries of a folder, and of all that hold it, to the disk.

    Whoever made the folders may not have done so.
    """
    resolved = folder.resolve()
    for place in (resolved, *resolved.parents):
        sync_folder(place)
