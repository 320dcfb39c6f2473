import gzip
import os
import socket
import tracemalloc
from pathlib import Path

import pytest

from optbench.boundary.regular_files import (
    UnreadableFileError,
    open_regular,
    read_bytes,
    read_gzip,
    reason,
)


def test_a_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_bytes(file, 5) == b"12345"
    with pytest.raises(
        UnreadableFileError, match=rf"^{file} holds more than 4 bytes, the most expected of it$"
    ):
        read_bytes(file, 4)
    link = tmp_path / "link"
    link.symlink_to(file)
    assert read_bytes(link, 5) == b"12345"
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "absent", 5)


def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        kinds = {
            "fifo": "a FIFO",
            "folder": "a folder",
            "socket": "a socket",
            "/dev/zero": "a device",
        }
        for name, kind in kinds.items():
            with pytest.raises(UnreadableFileError) as refused:
                open_regular(Path(name))
            assert str(refused.value) == f"{name} is {kind}, not a regular file"
            assert reason(refused.value) == f"is {kind}, not a regular file"


def test_an_endless_file_is_read_no_further_than_its_limit(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(UnreadableFileError, match="more than 1,000 bytes"):
        read_bytes(sparse, 1000)


def test_gzip_is_unpacked_up_to_its_limit_and_must_be_whole(tmp_path: Path) -> None:
    file = tmp_path / "file.gz"
    packed = gzip.compress(b"12345" * 1000)
    file.write_bytes(packed)
    assert read_gzip(file, 5000) == b"12345" * 1000
    with pytest.raises(UnreadableFileError, match="more than 4,999 bytes"):
        read_gzip(file, 4999)
    flipped = bytearray(packed)
    flipped[20] ^= 0xFF
    for content in (
        packed[:-1],
        packed[:15],
        b"no",
        bytes(flipped),
        packed[:-8] + b"\0" * 8,
        packed + b"x",
    ):
        file.write_bytes(content)
        with pytest.raises(UnreadableFileError, match="is not whole in gzip's format"):
            assert read_gzip(file, 5000) is None


def test_a_bomb_takes_no_more_memory_than_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "bomb.gz"
    file.write_bytes(gzip.compress(bytes(2**26), 1))
    tracemalloc.start()
    with pytest.raises(UnreadableFileError, match="more than 1,048,576 bytes"):
        read_gzip(file, 2**20)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**23
