"""A power cut without a machine to spare: what a disk holds at the moment is made beside, as strictly as POSIX allows.

What counts of a file is what it held at its last fsync, and of a folder the names that it held at
its own. A rename, a new file or a line that no fsync has followed is lost. Real disks keep more,
and any of it: this is the least.
"""

import os
import shutil
from pathlib import Path
from typing import Any


class StrictDisk:
    """Stands between a process and the disk by taking note of every fsync.

    Args:
        root: The folder that is looked after.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._contents: dict[int, bytes] = {}  # of files, by inode
        self._names: dict[Path, dict[str, int]] = {}  # of folders
        self._fsync = os.fsync

    def watch(self) -> None:
        """Take note from now on."""
        os.fsync = self._noted  # type: ignore[assignment]

    def _noted(self, descriptor: int) -> None:
        self._fsync(descriptor)
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not place.is_relative_to(self.root):
            return
        if place.is_dir():
            self._names[place] = {entry.name: entry.inode() for entry in os.scandir(place)}
        else:
            self._contents[os.fstat(descriptor).st_ino] = place.read_bytes()

    def after_power_cut(self, image: Path) -> None:
        """Make a folder as the disk would hold it now."""
        shutil.rmtree(image, ignore_errors=True)
        image.mkdir(parents=True)
        self._restore(self.root, image)

    def _restore(self, place: Path, image: Path) -> None:
        for name, inode in self._names.get(place, {}).items():
            if place / name in self._names:
                (image / name).mkdir()
                self._restore(place / name, image / name)
            elif not (place / name).is_dir():
                (image / name).write_bytes(self._contents.get(inode, b""))


def lie_in_wait(root: Path, images: Path, every: int) -> None:
    """Make an image before every so many fsyncs and renames of this process, called 0, 1, 2, …"""
    disk = StrictDisk(root)
    disk.watch()
    count = [0]

    def counted(call: Any) -> Any:
        def instead(*args: Any) -> Any:
            if count[0] % every == 0:
                disk.after_power_cut(images / str(count[0] // every))
            count[0] += 1
            return call(*args)

        return instead

    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
