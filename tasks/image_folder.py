"""Your own images: a folder with one folder a class."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from rich.progress import track
from torch import Tensor

from optbench.boundary.kinds import BelowOne
from optbench.boundary.regular_files import UnreadableFileError, open_regular
from optbench.data.splits import Handling, Labelled, labelled
from optbench.errors import MachineError, UserError
from optbench.task import Split, Task

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
)
# Pillow's names of the formats of these suffixes; it would try all it knows, PostScript's
# interpreter among them.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
CHANNELS = {"L": 1, "RGB": 3}
SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
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

    Nothing is resized, cropped or recoloured unless you say so: images of unequal size or colour
    mode are an error. Of 16 bits a channel the upper eight are kept, of grey only where `mode` asks
    for a conversion.

    Args:
        seed: See `optbench.data.splits.Handling`, as for the others.
        folder: Folder DIR of the images.
        size: Resize every image to size × size pixels (bicubic); None to take them as they are, all
            the same.
        mode: Convert every image to `L` (grey) or `RGB`; None to take them as they are, all the
            same.
        test_share: Share of each class to report on, where there is no folder DIR/test.
        val_share: Share of each class, of those that remain, to choose with.
        normalise: Scaling of pixels: `standard`, by mean and standard deviation of the training
            images' channels, or `none`, pixels in [0, 1].
        handling: Other label options, but for `val_size`, which `val_share` says.
    """
    where = Path(folder).expanduser()
    apart = (where / "test").is_dir() and (where / "train").is_dir()
    classes = _classes(where / "train" if apart else where)
    if apart:
        _check_apart(where, classes)
    everything = _read(where / "train" if apart else where, classes, size, mode)
    if apart:
        pool, test = everything, _read(where / "test", classes, size, mode)
        if test.inputs.shape[1:] != pool.inputs.shape[1:]:
            raise UserError(_unequal(f"{where / 'test'} holds", test.inputs, pool.inputs))
    else:
        test, pool = _stratified(everything, test_share)
        if not len(test):
            raise UserError(
                f"task.test_share={test_share} of {len(everything)} images leaves none to report on"
            )
    val, rest = _stratified(pool, val_share)
    options = Handling(seed, val_size=0, normalise=normalise, **handling)
    facts: dict[str, object] = {
        "source": "task.folder",
        "classes": classes,
        "resized": size,
        "mode": mode,
    }
    return labelled("image_folder", rest, test, len(classes), options, facts=facts, val=val)


def _classes(folder: Path) -> list[str]:
    names = _folders(folder)
    if len(names) < 2:
        raise UserError(
            f"{folder.absolute()} must hold one folder a class, at least two, got {names}"
        )
    return names


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError as why:
        raise MachineError(
            f"cannot read {folder.absolute()} ({why.strerror}): say task.folder=DIR"
        ) from why


def _check_apart(where: Path, classes: list[str]) -> None:
    """Raise a UserError if a class's folder would not be read, or exists for one split only."""
    others = [
        name
        for name in _folders(where)
        if name not in ("train", "test") and not name.startswith(".")
    ]
    if others:
        raise UserError(
            f"{where.absolute()} holds train/ and test/, and {_named(others)} would not be read: "
            "move it away, or "
            "its classes into train/"
        )
    in_test = set(_folders(where / "test"))
    for name, here, there in (("test", in_test, set(classes)), ("train", set(classes), in_test)):
        if here - there:
            raise UserError(
                f"{_named(sorted(here - there))} is a class in {where.absolute() / name} only: "
                "train/ and test/ must hold the same classes"
            )


def _named(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read(folder: Path, classes: list[str], size: int | None, mode: Mode | None) -> Split:
    """All images, uint8 (N, C, H, W), in the order of classes and file names, and labels."""
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
        with warnings.catch_warnings(), open_regular(file) as stream:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream, formats=FORMATS) as image:
                picture = _converted(file, image, mode)
                if size is not None:
                    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
                pixels = np.asarray(picture)
    except UserError:
        raise
    except UnreadableFileError as why:
        raise MachineError(f"cannot read {why}: take it out of the folder") from why
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as why:
        raise MachineError(
            f"cannot read {file}: it unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels: make "
            "it smaller first"
        ) from why
    except Exception as why:  # a corrupt image can raise nearly anything
        said = (
            "not an image in one of the formats " + ", ".join(FORMATS)
            if "cannot identify" in str(why)
            else str(why)
        )
        raise MachineError(
            f"cannot read {file}: {said}. Mend it, or take it out of the folder"
        ) from why
    return torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


def _converted(file: Path, image: Image.Image, mode: str | None) -> Image.Image:
    """Return the image as it is, or in another mode.

    Pillow's conversion of integers wider than a byte cuts them off at 255, which leaves a white
    image. Of 16 bits the upper eight are kept, as Pillow does for colour; the range of 32 bits and
    of floats is not known.
    """
    # Pillow scales PPM to 16 bits
    deep = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format == "PPM")
    if image.mode in ("I", "F") and not deep:
        raise UserError(
            f"{file} is in mode {image.mode}, 32 bits of unknown range: convert it to 8 or 16 bits "
            "first"
        )
    if mode is None:
        if image.mode not in CHANNELS:
            kept = ", which keeps the upper 8 of its 16 bits" if deep else ""
            raise UserError(
                f"{file} is in mode {image.mode}: say task.mode=RGB or task.mode=L to convert "
                f"all{kept}"
            )
        return image
    if deep:
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    return image.convert(mode)


def _unequal(what: str, images: Tensor, others: Tensor) -> str:
    (c, h, w), (channels, height, width) = images.shape[1:], others.shape[1:]
    return (
        f"{what} {h}×{w} pixels in {c} channels, and others {height}×{width} in {channels}: "
        "say task.size=PIXELS to resize all, or task.mode=RGB or L to convert all"
    )


def _stratified(split: Split, share: float) -> tuple[Split, Split]:
    """Take a share of each class at random, always the same one; return (taken, rest)."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    taken = torch.zeros(len(split), dtype=torch.bool)
    for label in split.targets.unique().tolist():
        members = order[split.targets[order] == label]
        taken[members[: round(share * len(members))]] = True
    return tuple(
        Split(split.inputs[i], split.targets[i])
        for i in (order[taken[order]], order[~taken[order]])
    )  # type: ignore[return-value]
