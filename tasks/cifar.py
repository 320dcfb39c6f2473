"""CIFAR-10: 50,000 training and 10,000 test images of 32×32 pixels in ten classes (Krizhevsky, 2009)."""

import pickle
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from optbench.boundary.kinds import CountFromZero
from optbench.errors import MachineError
from optbench.examples import Handling, Labelled, labelled
from optbench.task import Split, Task
from optbench.torchvision import fetch, import_datasets

CLASSES = 10
FOLDER = "cifar-10-batches-py"
FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
# Per-channel mean and standard deviation of the published training set, of pixels in [0, 1].
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def cifar(
    seed: int,
    root: str,
    verify: bool = True,
    val_size: CountFromZero = 5000,
    normalise: Literal["standard", "none"] = "standard",
    augment: bool = True,
    padding: Annotated[int, Field(ge=0, le=32)] = 2,
    **handling: Labelled,
) -> Task:
    """45,000 images to train, 5,000 class-balanced ones to choose, 10,000 to report; normalised per channel.

    Args:
        seed: See `optbench.examples.Handling`, as for the others.
        root: The folder that holds, or is to receive, `cifar-10-batches-py/`.
        verify: Check the published checksums, and download where files are missing. False takes the files
            as they are (a re-encoded copy); the record then says so.
        val_size: How many of the published 50,000.
        normalise: `standard` by the published statistics of the channels, or `none`.
        augment: Random crops of the zero-padded image and random mirroring of training batches.
        padding: Pixels of zeros around the image. 2 does better over a few epochs, the usual 4 over many.
        handling: The rest of them.
    """
    options = Handling(seed, val_size=val_size, normalise=normalise, **handling)
    options.check_sizes("cifar", 50_000)
    folder = Path(root).expanduser()
    if verify:
        _download_and_verify(folder)
    pool, test = (Split(*read_images(folder, split)) for split in ("train", "test"))
    return labelled(
        "cifar",
        pool,
        test,
        CLASSES,
        options,
        (MEAN, STD),
        partial(crop_and_mirror, padding=padding) if augment else None,
        {"source": "CIFAR-10", "checksum_verified": verify},
    )


def crop_and_mirror(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """Crop each image at a random place of its zero padding, then mirror it with probability ½.

    One gather for the whole batch; shape (B, C, H, W) in and out, memory channels_last.
    """
    B, _, H, W = images.shape
    places = torch.randint(0, 2 * padding + 1, (2, B, 1), generator=generator).to(images.device)
    mirrored = torch.rand(B, 1, generator=generator).to(images.device) < 0.5
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    columns = torch.arange(W, device=images.device)
    rows = places[0] + torch.arange(H, device=images.device)
    columns = places[1] + torch.where(mirrored, W - 1 - columns, columns)
    batch = torch.arange(B, device=images.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _ways_out(folder: Path) -> str:
    return (
        f"Looked in {(folder / FOLDER).absolute()}. Either run once where there is a network, so that "
        f"torchvision downloads it there (170 MB), or unpack a copy yourself and say task.root=DIR, DIR being "
        f"the folder that holds {FOLDER}/ (add task.verify=false if it is a re-encoded copy)."
    )


def _download_and_verify(folder: Path) -> None:
    missing = any(not (folder / FOLDER / name).is_file() for names in FILES.values() for name in names)

    def check() -> None:
        try:
            import_datasets().CIFAR10(folder, download=missing)
        except pickle.UnpicklingError as why:
            raise RuntimeError(str(why)) from why

    fetch("CIFAR-10", _ways_out(folder), check)


class _DataUnpickler(pickle.Unpickler):
    """Reads arrays, lists, strings and numbers, and refuses whatever would call or import anything else."""

    _allowed = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in the old protocols
            return _encode_latin1
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no image file needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}, which no image file needs")
    return text.encode("latin1")


def read_images(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return a split's images, uint8 of shape (N, 3, 32, 32), and labels, executing nothing of the files.

    Raises:
        MachineError: If a file is missing or corrupt.
    """
    parts = [_read_file(folder, folder / FOLDER / name) for name in FILES[split]]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return torch.from_numpy(images).reshape(-1, 3, 32, 32), torch.from_numpy(labels)


def _read_file(folder: Path, file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with file.open("rb") as stream:
            content = _DataUnpickler(stream, encoding="latin1").load()
        images = np.asarray(content["data"])
        labels = np.asarray(content["labels"], dtype=np.int64)
        shape_is_right = images.dtype == np.uint8 and images.shape == (len(labels), 3072)
        if not shape_is_right or len(labels) != 10_000 or labels.min() < 0 or labels.max() >= CLASSES:
            raise ValueError(f"expected 10,000 images of 3,072 bytes and labels 0-9, got shape {images.shape}")
    except FileNotFoundError as why:
        raise MachineError(f"CIFAR-10 is not here: no {file.name}. {_ways_out(folder)}") from why
    except Exception as why:  # a corrupt pickle can raise nearly anything
        raise MachineError(f"cannot read {file}: {why}. {_ways_out(folder)}") from why
    return images, labels
