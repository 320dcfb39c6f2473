"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images, 28×28, ten classes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optbench.boundary.regular_files import read_bytes, read_gzip, reason
from optbench.data.splits import Handling, Labelled, Statistics, labelled
from optbench.data.torchvision import check_md5, fetch, import_datasets
from optbench.errors import MachineError
from optbench.task import Split, Task

CLASSES = 10
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SIZES = {"train": 60_000, "test": 10_000}
MOST_PACKED_BYTES = 2**26  # the largest of the eight published files has 26 MB
# Mean and standard deviation of the published training pixels in [0, 1].
STATISTICS: dict[str, Statistics] = {
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2860,), (0.3530,)),
}


def mnist(seed: int, root: str, verify: bool = True, **handling: Labelled) -> Task:
    """Handwritten digits (LeCun et al., 1998): 55,000 to train, 5,000 to choose, 10,000 to report.

    Args:
        seed: See `optbench.data.splits.Handling`, as for the others.
        root: The folder that holds, or is to receive, `MNIST/raw/`.
        verify: Check the published checksums of the .gz files, and download where one is missing.
            False takes the files as they are, unpacked or not; the record then says so.
        handling: Other label options (train_size, label_noise, imbalance, …).
    """
    return _read_as_task("MNIST", seed, root, verify, handling)


def fashion_mnist(seed: int, root: str, verify: bool = True, **handling: Labelled) -> Task:
    """Articles of clothing, a harder drop-in for MNIST. Xiao et al. (2017), arXiv:1708.07747.

    Args:
        seed: See `optbench.data.splits.Handling`, as for the others.
        root: The folder that holds, or is to receive, `FashionMNIST/raw/`.
        verify: Check the published checksums of the .gz files, and download where one is missing;
            False takes the files as they are, as for `mnist`.
        handling: Other label options (train_size, label_noise, imbalance, …).
    """
    return _read_as_task("FashionMNIST", seed, root, verify, handling)


def _read_as_task(
    dataset: str, seed: int, root: str, verify: bool, handling: Mapping[str, Any]
) -> Task:
    defaults: dict[str, Any] = {"val_size": 5000, "normalise": "standard"}
    options = Handling(seed, **(defaults | dict(handling)))
    options.check_sizes(dataset, SIZES["train"])
    folder = Path(root).expanduser() / dataset / "raw"
    if verify:
        fetch(dataset, _ways_out(folder), lambda: _check(dataset, Path(root).expanduser(), folder))
    pool, test = (Split(*_read_split(folder, split)) for split in ("train", "test"))
    facts: dict[str, object] = {"source": dataset, "checksum_verified": verify}
    return labelled(dataset, pool, test, CLASSES, options, STATISTICS[dataset], facts=facts)


def _ways_out(folder: Path) -> str:
    return (
        f"Looked in {folder.absolute()}. Either run once where there is a network, so that "
        "torchvision downloads it "
        "there, or put the four published files "
        f"({', '.join(name + '.gz' for name in FILES['test'])}, …) there "
        "yourself, or elsewhere and say task.root=DIR, DIR being the folder that holds "
        f"{folder.parent.name}/raw/ (add task.verify=false if they are unpacked or re-encoded)."
    )


def _check(dataset: str, root: Path, folder: Path) -> None:
    """Compare the .gz files with the published checksums, after a download if nothing is there."""
    published = getattr(import_datasets(), dataset)
    if not any(os.path.lexists(_file(folder, name)) for pair in FILES.values() for name in pair):
        published(root, download=True)
    for name, md5 in published.resources:
        # OSError where there is only an unpacked file
        check_md5(folder / name, md5, MOST_PACKED_BYTES)


def _read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images, uint8 of shape (N, 1, 28, 28), and labels, shape (N,).

    Raises:
        MachineError: If a file is missing or corrupt.
    """
    N = SIZES[split]
    images, labels = FILES[split]
    pixels = _read_idx(folder, images, (N, 28, 28))
    classes = _read_idx(folder, labels, (N,)).astype(np.int64)
    if classes.max() >= CLASSES:
        raise MachineError(
            f"{_file(folder, labels)} must hold classes 0-9, got {classes.max()}. "
            f"{_ways_out(folder)}"
        )
    return torch.from_numpy(pixels).reshape(N, 1, 28, 28), torch.from_numpy(classes)


def _file(folder: Path, name: str) -> Path:
    """Return where a file is, or would be: packed, if anything of that name is there."""
    packed = folder / f"{name}.gz"
    return packed if os.path.lexists(packed) else folder / name


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file: 0, 0, 8, number of dimensions, each as big-endian uint32, bytes."""
    file = _file(folder, name)
    head = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
    try:
        size = len(head) + int(np.prod(shape))
        content = (read_gzip if file.suffix == ".gz" else read_bytes)(file, size)
        if content[: len(head)] != head or len(content) != size:
            raise ValueError(
                f"expected {shape} bytes in the IDX format, {size:,} in all, got {len(content):,}"
            )
    except FileNotFoundError as why:
        raise MachineError(
            f"{folder.parent.name} is not here: no {name}. {_ways_out(folder)}"
        ) from why
    except (OSError, ValueError) as why:
        raise MachineError(f"cannot read {file}: {reason(why)}. {_ways_out(folder)}") from why
    return np.frombuffer(content, np.uint8, offset=len(head)).reshape(shape).copy()
