"""The only importer of torchvision: the import needs help beside some builds of torch.

torchvision's compiled operators are built for one build of torch. Beside another (a CPU-only torch,
most often) they do not load, and `import torchvision` then fails with `operator torchvision::nms
does not exist` while it registers shapes for two of them. optbench needs its data sets, not its
operators: where they are missing we declare the two signatures first, and the import goes through.
Calling `nms` would still fail.
"""

import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from optbench.boundary.regular_files import UnreadableFileError, read_bytes
from optbench.errors import MachineError

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a declaration lasts as long as its Library object


def import_datasets() -> Any:
    """Return `torchvision.datasets`."""
    try:
        import torchvision.datasets as datasets
    except RuntimeError as why:
        if "torchvision::nms" not in str(why):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name, schema in _SCHEMAS.items():
            library.define(name + schema)
        _declared.append(library)
        import torchvision.datasets as datasets
    return datasets


def fetch(name: str, way_out: str, check: Callable[[], Any]) -> None:
    """Call what checks and, where it must, downloads a data set; its failures become one line.

    Args:
        name: Of the data set.
        way_out: Where it was looked for, and what the user can do.
        check: Raises RuntimeError for a wrong checksum, OSError for no network.

    Raises:
        MachineError: If it cannot be had, or is not what was published.
    """
    try:
        with _impatient_sockets():
            check()
    except UnreadableFileError as why:
        raise MachineError(f"cannot read {name}: {why}. {way_out}") from why
    except OSError as why:  # includes URLError: no network, no name server, no answer in time
        raise MachineError(f"{name} is not here and cannot be fetched ({why}). {way_out}") from why
    except RuntimeError as why:
        if "Error downloading" in str(why):  # MNIST's word for OSError at every mirror
            line = " ".join(str(why).split())
            raise MachineError(
                f"{name} is not here and cannot be fetched ({line}). {way_out}"
            ) from why
        raise MachineError(
            f"{name} does not have the published checksums: a file is corrupt, or it is a "
            f"re-encoded copy. {way_out}"
        ) from why


def check_md5(file: Path, md5: str, limit: int) -> None:
    """Compare a file of at most so many bytes with its published checksum, for `fetch`.

    Raises:
        RuntimeError: If it has another.
        OSError: If it cannot be read.
    """
    if hashlib.md5(read_bytes(file, limit), usedforsecurity=False).hexdigest() != md5:
        raise RuntimeError(file.name)


@contextmanager
def _impatient_sockets(seconds: float = 5) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
