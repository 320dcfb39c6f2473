from pathlib import Path

import numpy as np
import pytest
from optbench.tasks.image_folder import image_folder
from PIL import Image

from optbench.errors import MachineError, UserError


def _write(folder: Path, classes: dict[str, int], shape: tuple[int, ...] = (12, 10, 3), seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    for label, count in classes.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / label / f"{i:03}.png")
    return folder


def test_one_folder_is_split_class_by_class(tmp_path: Path) -> None:
    task = image_folder(0, str(_write(tmp_path, {"cat": 40, "dog": 20})), normalise="none")
    assert task.input_shape == (3, 12, 10) and task.output_width == 2
    assert [split.targets.bincount().tolist() for split in task.splits.values()] == [[29, 14], [3, 2], [8, 4]]
    pixels = [x.tobytes() for split in task.splits.values() for x in (split.inputs * 255).round().byte().numpy()]
    written = [np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes() for file in tmp_path.rglob("*.png")]
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
    with pytest.raises(UserError, match=r"odd\.png is 8×8 pixels in 3 channels, and others 12×10.*task\.size=PIXELS"):
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
    with pytest.raises(MachineError, match=r"cannot read .*absent \(No such file.*task\.folder=DIR"):
        image_folder(0, str(tmp_path / "absent"))
    with pytest.raises(UserError, match="one folder a class, at least two, got"):
        image_folder(0, str(tmp_path))
    _write(tmp_path, {"a": 3, "b": 0})
    with pytest.raises(UserError, match=r"b holds no image"):
        image_folder(0, str(tmp_path))
    (tmp_path / "b" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(MachineError, match=r"cannot read .*broken\.png"):
        image_folder(0, str(tmp_path))
