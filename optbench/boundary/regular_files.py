"""Reading files that come from elsewhere: regular ones only, and never more of them than expected.

A FIFO hangs whoever opens it, a device never ends, and a small packed file can unpack to any size.
Whoever reads a file that optbench did not write itself, or that somebody may have changed, reads it
through here.
"""

import errno
import gzip
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class UnreadableFileError(OSError):
    """A file that exists but cannot be read; `strerror` is the reason, the whole a sentence."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


def reason(error: Exception) -> str:
    """Return what is wrong, without the file's name and without a full stop.

    It stands in the middle of a message that has both.
    """
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")


def open_regular(path: Path, links: bool = True) -> BinaryIO:
    """Open a regular file to read its bytes, through a link only if `links`.

    Raises:
        UnreadableFileError: At once if it is a FIFO, a folder, a device or a socket.
        OSError: If it is missing, or may not be read.
    """
    try:
        follow = 0 if links else getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | follow)
    except OSError as why:
        if why.errno == errno.ENXIO:
            raise UnreadableFileError(path, "is a socket, not a regular file") from why
        if why.errno == errno.ELOOP:  # what O_NOFOLLOW says of any link
            raise UnreadableFileError(path, "is a link, or one that leads in a circle") from why
        raise
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise UnreadableFileError(
            path, f"is {_KINDS.get(kind, 'something else')}, not a regular file"
        )
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int) -> bytes:
    """Return all bytes of a regular file.

    Raises:
        UnreadableFileError: If it holds more than `limit` bytes, or is no regular file.
        OSError: If it is missing, or may not be read.
    """
    with open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_size > limit:
            raise _too_long(path, limit)
        return _all(stream, limit, path)


def read_gzip(path: Path, limit: int) -> bytes:
    """Return the unpacked bytes of a regular file in gzip's format.

    Errors are those of `read_bytes`; `limit` is of the unpacked bytes.

    Raises:
        UnreadableFileError: Also if it is corrupt or cut off.
    """
    try:
        with open_regular(path) as packed, gzip.GzipFile(fileobj=packed) as stream:
            return _all(stream, limit, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as why:
        raise UnreadableFileError(path, f"is not whole in gzip's format ({why})") from why


def _all(stream: BinaryIO | gzip.GzipFile, limit: int, path: Path) -> bytes:
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise _too_long(path, limit)
    return content


def _too_long(path: Path, limit: int) -> UnreadableFileError:
    return UnreadableFileError(path, f"holds more than {limit:,} bytes, the most expected of it")
