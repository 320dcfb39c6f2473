"""CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images, 32×32, ten classes."""

import io
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from optbench.boundary.kinds import CountFromZero
from optbench.boundary.regular_files import read_bytes, reason
from optbench.data.splits import Handling, Labelled, labelled
from optbench.data.torchvision import check_md5, fetch, import_datasets
from optbench.errors import MachineError
from optbench.task import Split, Task

CLASSES = 10
FOLDER = "cifar-10-batches-py"
FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
# a published file has 31 MB; other protocols of pickle take more for the same images
MOST_BYTES = 2**26
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
    """45,000 training, 5,000 class-balanced validation, 10,000 test images; normalised.

    Args:
        seed: See `optbench.data.splits.Handling`, as for the others.
        root: The folder that holds, or is to receive, `cifar-10-batches-py/`.
        verify: Check the published checksums, and download where files are missing. False takes the
            files as they are (a re-encoded copy); the record then says so.
        val_size: Examples to choose with, of the published 50,000 for training.
        normalise: Scaling of pixels: `standard`, by the published statistics of the channels, or
            `none`, pixels in [0, 1].
        augment: Whether training batches get random crops of the zero-padded image and random
            mirroring.
        padding: Pixels of zeros around the image. 2 does better over a few epochs, the usual 4 over
            many.
        handling: Other label options (train_size, label_noise, imbalance, …).
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
        f"Looked in {(folder / FOLDER).absolute()}. Either run once where there is a network, so "
        "that "
        "torchvision downloads it there (170 MB), or unpack a copy yourself and say "
        "task.root=DIR, DIR being "
        f"the folder that holds {FOLDER}/ (add task.verify=false if it is a re-encoded copy)."
    )


def _download_and_verify(folder: Path) -> None:
    fetch("CIFAR-10", _ways_out(folder), lambda: _check(folder))


def _check(folder: Path) -> None:
    """Compare the files with the published checksums, after a download if one is missing.

    torchvision would also unpickle them: it is asked for the list only, and for the download.
    """
    published = import_datasets().CIFAR10
    files = published.train_list + published.test_list
    if not all(os.path.lexists(folder / FOLDER / name) for name, _ in files):
        published(folder, download=True)
    for name, md5 in files:
        check_md5(folder / FOLDER / name, md5, MOST_BYTES)


class _Numbers:
    """Stand-in for a NumPy dtype in a pickle; a real one would take flags from the file."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = str(code), "|"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = str(state[1])


class _Array:
    """Stand-in for a NumPy array in a pickle: shape, type and bytes, checked before use."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = (1, (), None, False, b"")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def __str__(self) -> str:
        _, shape, numbers, *_ = self.state
        return ascii(f"shape {shape} of {getattr(numbers, 'code', 'nothing')}")[1:-1][:80]

    def read(self, shape: tuple[int, ...], codes: tuple[str, ...]) -> np.ndarray:
        """Return the array, if it has this shape and one of these types."""
        _, own_shape, numbers, in_columns, content = self.state
        if own_shape != shape or not isinstance(numbers, _Numbers) or numbers.code not in codes:
            raise ValueError(
                f"expected an array of shape {shape} of {' or '.join(codes)}, got {self}"
            )
        dtype = np.dtype((">" if numbers.order == ">" else "<") + numbers.code)
        # a str where Python 2 wrote it
        raw = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if in_columns else "C")


class _DataUnpickler(pickle.Unpickler):
    """Unpickler of arrays, lists, strings and numbers; it refuses any other import or call.

    Nothing of NumPy is called either: its `ndarray` and `dtype`, called by a hostile file, fill the
    memory.
    """

    _stand_ins: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy", "ndarray"): None,  # only ever an argument of the next
        ("numpy", "dtype"): _Numbers,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
    }

    def find_class(self, module: str, name: str) -> object:
        # how Python 3 writes bytes in the old protocols
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        if (module, name) not in self._stand_ins:
            asked = ascii(f"{module}.{name}")[1:-1][:80]
            raise pickle.UnpicklingError(f"it asks for {asked}, which no image file needs")
        return self._stand_ins[module, name]


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(
            "it asks for another codec than latin1, which no image file needs"
        )
    return text.encode("latin1")


def read_images(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return a split's images, uint8 (N, 3, 32, 32), and labels; no code of the files runs.

    Raises:
        MachineError: If a file is missing or corrupt.
    """
    parts = [_read_file(folder, folder / FOLDER / name) for name in FILES[split]]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return torch.from_numpy(images).reshape(-1, 3, 32, 32), torch.from_numpy(labels)


def _read_file(folder: Path, file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = _DataUnpickler(io.BytesIO(read_bytes(file, MOST_BYTES)), encoding="latin1").load()
        images, labels = _images(content["data"]), _labels(content["labels"])
        if labels.min() < 0 or labels.max() >= CLASSES:
            raise ValueError(f"expected labels 0-9, got {labels.min()} to {labels.max()}")
    except FileNotFoundError as why:
        raise MachineError(f"CIFAR-10 is not here: no {file.name}. {_ways_out(folder)}") from why
    except Exception as why:  # a corrupt pickle can raise nearly anything
        raise MachineError(f"cannot read {file}: {reason(why)}. {_ways_out(folder)}") from why
    return images, labels


def _images(found: object) -> np.ndarray:
    if not isinstance(found, _Array):
        raise ValueError(f"expected an array of images, got {type(found).__name__}")
    return found.read((10_000, 3072), ("u1",))


def _labels(found: object) -> np.ndarray:
    """Labels are a list as published, an array in some copies."""
    if isinstance(found, _Array):
        return found.read((10_000,), ("u1", "i1", "i2", "i4", "i8")).astype(np.int64)
    # Nothing is converted before its size is known: lists in lists can stand for any number of
    # entries.
    if (
        not isinstance(found, list)
        or len(found) != 10_000
        or not all(isinstance(label, int) for label in found)
    ):
        raise ValueError("expected a list of 10,000 whole numbers as labels")
    return np.array(found, dtype=np.int64)
