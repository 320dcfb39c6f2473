"""Your own images: a folder with one folder a class."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from rich.progress import track
from torch import Tensor

from optbench.boundary.kinds import BelowOne
from optbench.errors import MachineError, UserError
from optbench.examples import Handling, Labelled, labelled
from optbench.task import Split, Task

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
CHANNELS = {"L": 1, "RGB": 3}
Mode = Literal["L", "RGB"]
Side = Annotated[int, Field(ge=1, le=4096)]  # pixels


def image_folder(
    seed: int,
    folder: str,
    size: Side | None = None,
    mode: Mode | None = None,
    test_share: BelowOne = 0.2,
    val_share: BelowOne = 0.1,
    normalise: Literal["standard", "none"] = "standard",
    **handling: Labelled,
) -> Task:
    """Classify the images in DIR/CLASS/, or in DIR/train/CLASS/ and DIR/test/CLASS/.

    Nothing is resized, cropped or recoloured unless you say so: images of unequal size or colour mode are an error.

    Args:
        seed: See `optbench.examples.Handling`, as for the others.
        folder: DIR.
        size: Resize every image to size × size pixels (bicubic); None to take them as they are, all the same.
        mode: Convert every image to `L` (grey) or `RGB`; None to take them as they are, all the same.
        test_share: Share of each class to report on, where there is no folder DIR/test.
        val_share: Share of each class, of those that remain, to choose with.
        normalise: `standard` by mean and standard deviation of the training images' channels, or `none`.
        handling: The rest of them, but for `val_size`, which `val_share` says.
    """
    where = Path(folder).expanduser()
    apart = (where / "test").is_dir() and (where / "train").is_dir()
    classes = _classes(where / "train" if apart else where)
    everything = _read(where / "train" if apart else where, classes, size, mode)
    if apart:
        pool, test = everything, _read(where / "test", classes, size, mode)
        if test.inputs.shape[1:] != pool.inputs.shape[1:]:
            raise UserError(_unequal(f"{where / 'test'} holds", test.inputs, pool.inputs))
    else:
        test, pool = _stratified(everything, test_share)
        if not len(test):
            raise UserError(f"task.test_share={test_share} of {len(everything)} images leaves none to report on")
    val, rest = _stratified(pool, val_share)
    options = Handling(seed, val_size=0, normalise=normalise, **handling)
    facts: dict[str, object] = {"source": "task.folder", "classes": classes, "resized": size, "mode": mode}
    return labelled("image_folder", rest, test, len(classes), options, facts=facts, val=val)


def _classes(folder: Path) -> list[str]:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError as why:
        raise MachineError(f"cannot read {folder.absolute()} ({why.strerror}): say task.folder=DIR") from why
    if len(names) < 2:
        raise UserError(f"{folder.absolute()} must hold one folder a class, at least two, got {names}")
    return names


def _read(folder: Path, classes: list[str], size: int | None, mode: Mode | None) -> Split:
    """All images, uint8 of shape (N, C, H, W), in the order of classes and file names, and labels."""
    files = [(file, label) for label, name in enumerate(classes) for file in _files(folder / name)]
    images: list[Tensor] = []
    for file, _ in track(files, "reading images", transient=True, disable=len(files) < 1000):
        image = _open(file, size, mode)
        if images and image.shape != images[0].shape:
            raise UserError(_unequal(f"{file} is", image[None], images[0][None]))
        images.append(image)
    return Split(torch.stack(images), torch.tensor([label for _, label in files]))


def _files(folder: Path) -> Iterable[Path]:
    try:
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError as why:
        raise MachineError(f"cannot read {folder.absolute()} ({why.strerror})") from why
    if not found:
        raise UserError(f"{folder.absolute()} holds no image ({', '.join(sorted(SUFFIXES))})")
    return found


def _open(file: Path, size: int | None, mode: Mode | None) -> Tensor:
    try:
        with Image.open(file) as image:
            if mode is None and image.mode not in CHANNELS:
                raise UserError(f"{file} is in mode {image.mode}: say task.mode=RGB or task.mode=L to convert all")
            picture = image if mode is None else image.convert(mode)
            if size is not None:
                picture = picture.resize((size, size), Image.Resampling.BICUBIC)
            pixels = np.asarray(picture)
    except (OSError, UnidentifiedImageError) as why:
        raise MachineError(f"cannot read {file}: {why}") from why
    return torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


def _unequal(what: str, images: Tensor, others: Tensor) -> str:
    (c, h, w), (channels, height, width) = images.shape[1:], others.shape[1:]
    return (
        f"{what} {h}×{w} pixels in {c} channels, and others {height}×{width} in {channels}: "
        "say task.size=PIXELS to resize all, or task.mode=RGB or L to convert all"
    )


def _stratified(split: Split, share: float) -> tuple[Split, Split]:
    """Take this share of each class, rounded, at random but always the same, and return (taken, the rest)."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    taken = torch.zeros(len(split), dtype=torch.bool)
    for label in split.targets.unique().tolist():
        members = order[split.targets[order] == label]
        taken[members[: round(share * len(members))]] = True
    return tuple(Split(split.inputs[i], split.targets[i]) for i in (order[taken[order]], order[~taken[order]]))  # type: ignore[return-value]
