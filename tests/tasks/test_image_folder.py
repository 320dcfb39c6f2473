import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from optbench.tasks.image_folder import FORMATS, SUFFIXES, image_folder
from PIL import Image

from optbench.errors import MachineError, UserError


def _write(
    folder: Path, classes: dict[str, int], shape: tuple[int, ...] = (12, 10, 3), seed: int = 0
) -> Path:
    generator = np.random.default_rng(seed)
    for label, count in classes.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(
                folder / label / f"{i:03}.png"
            )
    return folder


def test_one_folder_is_split_class_by_class(tmp_path: Path) -> None:
    task = image_folder(0, str(_write(tmp_path, {"cat": 40, "dog": 20})), normalise="none")
    assert task.input_shape == (3, 12, 10) and task.output_width == 2
    assert [split.targets.bincount().tolist() for split in task.splits.values()] == [
        [29, 14],
        [3, 2],
        [8, 4],
    ]
    pixels = [
        x.tobytes()
        for split in task.splits.values()
        for x in (split.inputs * 255).round().byte().numpy()
    ]
    written = [
        np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes()
        for file in tmp_path.rglob("*.png")
    ]
    assert sorted(pixels) == sorted(written)
    assert task.data_hash() == image_folder(7, str(tmp_path), normalise="none").data_hash()
    assert task.facts["classes"] == ["cat", "dog"]


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    _write(tmp_path / "train", {"a": 10, "b": 10})
    _write(tmp_path / "test", {"a": 3, "b": 4}, seed=1)
    task = image_folder(0, str(tmp_path))
    assert [len(split) for split in task.splits.values()] == [18, 2, 7]
    assert float(task.train.inputs.mean()) == pytest.approx(0, abs=1e-5)


def test_nothing_is_resized_or_recoloured_unasked(tmp_path: Path) -> None:
    _write(tmp_path, {"a": 5, "b": 5})
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "b" / "odd.png")
    with pytest.raises(
        UserError,
        match=r"odd\.png is 8×8 pixels in 3 channels, and others 12×10.*task\.size=PIXELS",
    ):
        image_folder(0, str(tmp_path))
    assert image_folder(0, str(tmp_path), size=16).input_shape == (3, 16, 16)
    Image.fromarray(np.zeros((12, 10), np.uint8)).save(tmp_path / "b" / "odd.png")
    with pytest.raises(UserError, match=r"12×10 pixels in 1 channels.*task\.mode=RGB or L"):
        image_folder(0, str(tmp_path))
    assert image_folder(0, str(tmp_path), mode="L").input_shape == (1, 12, 10)
    Image.fromarray(np.zeros((12, 10, 4), np.uint8)).save(tmp_path / "b" / "odd.png")
    with pytest.raises(UserError, match=r"odd\.png is in mode RGBA: say task\.mode=RGB"):
        image_folder(0, str(tmp_path))


def test_what_is_no_folder_of_images_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        MachineError, match=r"cannot read .*absent \(No such file.*task\.folder=DIR"
    ):
        image_folder(0, str(tmp_path / "absent"))
    with pytest.raises(UserError, match="one folder a class, at least two, got"):
        image_folder(0, str(tmp_path))
    _write(tmp_path, {"a": 3, "b": 0})
    with pytest.raises(UserError, match=r"b holds no image"):
        image_folder(0, str(tmp_path))
    (tmp_path / "b" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(MachineError, match=r"cannot read .*broken\.png"):
        image_folder(0, str(tmp_path))


def test_the_formats_are_those_of_the_suffixes() -> None:
    Image.init()
    formats = {
        format_ for suffix, format_ in Image.registered_extensions().items() if suffix in SUFFIXES
    }
    assert formats == set(FORMATS)


def test_postscript_in_the_name_of_an_image_reaches_no_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interpret(*_: object, **__: object) -> None:
        pytest.fail("PostScript was interpreted")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", interpret)
    _write(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 12\n%%EndComments\n%%EOF\n"
    )
    with pytest.raises(
        MachineError, match=r"cannot read .*x\.png: not an image in one of the formats PNG, JPEG"
    ):
        image_folder(0, str(tmp_path))


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2")]
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_of_sixteen_bits_the_upper_eight_are_kept(
    tmp_path: Path, suffix: str, dtype: str, mode: str
) -> None:
    levels = np.random.default_rng(0).integers(0, 2**16, (20, 12, 10)).astype(dtype)
    for i, pixels in enumerate(levels):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "ab"[i % 2] / f"{i:02}.{suffix}")
    with pytest.raises(
        UserError,
        match=r"in mode I.*task\.mode=L to convert all, which keeps the upper 8 of its 16",
    ):
        image_folder(0, str(tmp_path))
    task = image_folder(0, str(tmp_path), mode=mode, normalise="none")
    read = [
        x.tobytes()
        for split in task.splits.values()
        for x in (split.inputs * 255).round().byte().numpy()
    ]
    grey = (levels.astype(int) // 256).astype(np.uint8)
    assert sorted(read) == sorted(
        np.stack([image] * (1 if mode == "L" else 3)).tobytes() for image in grey
    )


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, dtype: type) -> None:
    _write(tmp_path, {"a": 1, "b": 1})
    Image.fromarray(np.full((12, 10), 1000, dtype)).save(tmp_path / "a" / "deep.tif")
    with pytest.raises(
        UserError, match=r"deep\.tif is in mode [IF], 32 bits of unknown range: convert it"
    ):
        image_folder(0, str(tmp_path), mode="L")


def test_a_folder_that_would_not_be_read_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "train", {"a": 3, "b": 3})
    _write(tmp_path / "test", {"a": 1, "b": 1, "c": 1})
    with pytest.raises(
        UserError, match=f"c is a class in {tmp_path / 'test'} only: train/ and test/ must hold"
    ):
        image_folder(0, str(tmp_path))
    _write(tmp_path / "train", {"c": 3, "d": 3})
    with pytest.raises(UserError, match=f"d is a class in {tmp_path / 'train'} only"):
        image_folder(0, str(tmp_path))
    _write(tmp_path / "test", {"d": 1})
    (tmp_path / ".cache").mkdir()
    assert image_folder(0, str(tmp_path)).output_width == 4
    _write(tmp_path / "val", {"a": 1})
    with pytest.raises(
        UserError, match=r"holds train/ and test/, and val would not be read: move it"
    ):
        image_folder(0, str(tmp_path))


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "side", [9_500, 14_000, 60_000]
)  # below and above where Pillow itself goes from warning to error
def test_a_decompression_bomb_is_one_line(tmp_path: Path, side: int) -> None:
    _write(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "bomb.png").write_bytes(_png(side, side))
    with pytest.raises(
        MachineError, match=r"bomb\.png: it unpacks to more than 89,478,485 pixels: make it smaller"
    ):
        image_folder(0, str(tmp_path))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "ppm", "tif"])
def test_a_damaged_image_is_one_line(tmp_path: Path, suffix: str) -> None:
    _write(tmp_path, {"a": 1, "b": 1})
    file = tmp_path / "a" / f"x.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(
        file
    )
    whole = file.read_bytes()
    for keep in (0, 1, 10, 30, len(whole) // 2):
        file.write_bytes(whole[:keep])
        with pytest.raises((MachineError, UserError), match=rf"x\.{suffix}"):
            image_folder(0, str(tmp_path), mode="RGB")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    _write(tmp_path, {"a": 1, "b": 1})
    os.mkfifo(tmp_path / "a" / "x.png")
    with pytest.raises(
        MachineError, match=r"cannot read .*x\.png is a FIFO, not a regular file: take it out"
    ):
        image_folder(0, str(tmp_path))
    (tmp_path / "a" / "x.png").unlink()
    (tmp_path / "a" / "x.png").mkdir()
    with pytest.raises(MachineError, match=r"cannot read .*x\.png is a folder, not a regular file"):
        image_folder(0, str(tmp_path))
