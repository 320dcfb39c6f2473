import os
import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from optbench.tasks.cifar import FILES, FOLDER, _read_file, cifar, crop_and_mirror

from optbench.errors import MachineError, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random files in the published layout; their checksums are of course not the published ones."""
    folder = tmp_path_factory.mktemp("cifar")
    (folder / FOLDER).mkdir()
    generator = np.random.default_rng(0)
    for name in [*FILES["train"], *FILES["test"]]:
        data = generator.integers(0, 256, (10_000, 3072), dtype=np.uint8)
        content = {"data": data, "labels": (np.arange(10_000) % 10).tolist()}
        (folder / FOLDER / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def _replace(root: Path, target: Path, name: str, content: bytes) -> Path:
    """Link to `root`'s files but for one, which gets `content`."""
    (target / FOLDER).mkdir()
    for file in (root / FOLDER).iterdir():
        if file.name != name:
            (target / FOLDER / file.name).symlink_to(file)
    (target / FOLDER / name).write_bytes(content)
    return target


def test_splits_are_disjoint_balanced_and_normalised(root: Path) -> None:
    task = cifar(0, str(root), verify=False, train_size=5000)
    assert task.val is not None and task.test is not None
    assert [len(split) for split in task.splits.values()] == [5000, 5000, 10_000]
    assert task.train.targets.bincount().tolist() == [500] * 10
    assert task.facts["checksum_verified"] is False
    # Uniform bytes: mean 255/2 and variance (256² − 1)/12; 5 million pixels a channel, so 3 digits
    # hold.
    assert float(task.train.inputs[:, 0].mean()) == pytest.approx((0.5 - 0.4914) / 0.2470, abs=2e-3)
    assert float(task.train.inputs[:, 2].std()) == pytest.approx(
        ((256**2 - 1) / 12) ** 0.5 / 255 / 0.2616, abs=2e-3
    )
    train, val = ({x.tobytes() for x in split.inputs.numpy()} for split in (task.train, task.val))
    assert len(train) == 5000 and not train & val


def test_unverified_files_are_refused_by_default(root: Path) -> None:
    with pytest.raises(
        MachineError, match=r"published checksums.*task\.root=DIR.*task\.verify=false"
    ):
        cifar(0, str(root))


def test_without_data_and_network_it_fails_in_seconds_and_says_where_it_looked(
    tmp_path: Path, no_network: None
) -> None:
    start = time.monotonic()
    with pytest.raises(
        MachineError, match=f"{tmp_path / 'empty' / FOLDER}.*downloads it there.*task.root=DIR"
    ):
        cifar(0, str(tmp_path / "empty"))
    assert time.monotonic() - start < 10


def test_missing_unverified_file_is_named(root: Path, tmp_path: Path) -> None:
    _replace(root, tmp_path, "data_batch_3", b"")
    (tmp_path / FOLDER / "data_batch_3").unlink()
    with pytest.raises(MachineError, match=r"no data_batch_3\. Looked in"):
        cifar(0, str(tmp_path), verify=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": [0] * 10}),
        pickle.dumps({"data": np.zeros((10_000, 3072), np.float32), "labels": [0] * 10_000}),
        pickle.dumps({"data": np.zeros((10_000, 3072), np.uint8), "labels": [10] * 10_000}),
        pickle.dumps([1, 2]),
    ],
)
def test_corrupt_files_are_one_clear_line(root: Path, tmp_path: Path, content: bytes) -> None:
    _replace(root, tmp_path, "data_batch_2", content)
    with pytest.raises(MachineError, match=r"cannot read .*data_batch_2"):
        cifar(0, str(tmp_path), verify=False)


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def test_an_unverified_pickle_never_executes_code(root: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    _replace(root, tmp_path, "data_batch_1", pickle.dumps(_Hostile(marker)))
    with pytest.raises(MachineError, match=r"it asks for (posix|nt)\.system"):
        cifar(0, str(tmp_path), verify=False)
    assert not marker.exists()


class _Calls:
    """Calls a function with arguments when it is unpickled."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.call = (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def _boxes(depth: int) -> list[object]:
    box: list[object] = [0]
    for _ in range(depth):
        box = [box, box]
    return box


HUGE = 10**11
LABELS = [0] * 10_000
BOMBS = {
    "object array": _Calls(np.ndarray, (HUGE,), np.dtype("O")),
    "reconstructed": _Calls(np.zeros(0).__reduce__()[0], np.ndarray, (HUGE,), "O"),
    "lists in lists": _boxes(40),
    "other shape": np.zeros((3, 3), np.uint8),
    "objects": np.array([None]),
    "not an array": [1],
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_pickle_fills_no_memory(tmp_path: Path, name: str) -> None:
    file = tmp_path / "data_batch_1"
    for content in (
        {"data": BOMBS[name], "labels": LABELS},
        {"data": np.zeros((10_000, 3072), "u1"), "labels": BOMBS[name]},
    ):
        file.write_bytes(pickle.dumps(content, protocol=2))
        tracemalloc.start()
        with pytest.raises(MachineError, match=r"cannot read .*data_batch_1: .*task\.root=DIR"):
            _read_file(tmp_path, file)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 2**28


def test_terminal_escapes_in_a_pickle_are_not_printed(tmp_path: Path) -> None:
    file = tmp_path / "data_batch_1"
    file.write_bytes(b"cevil\x1b[2J\nname\n.")
    with pytest.raises(
        MachineError, match=r"it asks for evil\\x1b\[2J\.name, which no image file needs"
    ):
        _read_file(tmp_path, file)


def test_labels_may_be_an_array_and_images_in_columns(tmp_path: Path) -> None:
    images = np.resize(np.arange(251, dtype=np.uint8), (3072, 10_000)).T
    labels = np.arange(10_000) % 10
    file = tmp_path / "data_batch_1"
    file.write_bytes(pickle.dumps({"data": images, "labels": labels}, protocol=4))
    read, classes = _read_file(tmp_path, file)
    assert (
        np.array_equal(read, images)
        and np.array_equal(classes, labels)
        and classes.dtype == np.int64
    )


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, verify: bool, no_network: None
) -> None:
    (tmp_path / FOLDER).mkdir()
    for names in FILES.values():
        for name in names:
            os.mkfifo(tmp_path / FOLDER / name)
    with pytest.raises(
        MachineError, match=r"data_batch_1:? is a FIFO, not a regular file.*task\.root=DIR"
    ):
        cifar(0, str(tmp_path), verify=verify)


def test_a_file_is_read_no_further_than_expected(tmp_path: Path) -> None:
    file = tmp_path / "data_batch_1"
    with file.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(MachineError, match=r"data_batch_1: holds more than 67,108,864 bytes"):
        _read_file(tmp_path, file)


def test_train_size_is_checked_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="between 1 and 45000 for cifar, got 45001"):
        cifar(0, "/nowhere", train_size=45_001)


def _crop(padded: torch.Tensor, y: int, x: int, flip: bool) -> torch.Tensor:
    crop = padded[:, y : y + 32, x : x + 32]
    return crop.flip(-1) if flip else crop


def test_augmentation_is_a_crop_of_the_padded_image_mirrored_or_not() -> None:
    images = torch.rand(64, 3, 32, 32) + 1
    out = crop_and_mirror(images, torch.Generator().manual_seed(0), padding=4)
    assert out.shape == images.shape
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    places, mirrored = set(), 0
    for i in range(64):
        matches = [
            (y, x, flip)
            for y in range(9)
            for x in range(9)
            for flip in (False, True)
            if torch.equal(out[i], _crop(padded[i], y, x, flip))
        ]
        assert len(matches) == 1
        places.add(matches[0][:2])
        mirrored += matches[0][2]
    assert len(places) > 30 and 16 < mirrored < 48  # of 81 places; binomial(64, ½) has sd 4
