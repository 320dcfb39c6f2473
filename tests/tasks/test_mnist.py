import gzip
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from optbench.tasks.mnist import FILES, SIZES, _read_split, fashion_mnist, mnist

from optbench.errors import MachineError, UserError


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random files in the published format, packed for MNIST, unpacked for Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("mnist")
    generator = np.random.default_rng(0)
    for dataset in ("MNIST", "FashionMNIST"):
        (folder / dataset / "raw").mkdir(parents=True)
        for split, (images, labels) in FILES.items():
            N = SIZES[split]
            pixels = generator.integers(0, 256, (N, 28, 28), dtype=np.uint8)
            for name, content in ((images, pixels), (labels, (np.arange(N) % 10).astype(np.uint8))):
                file = folder / dataset / "raw" / name
                if dataset == "MNIST":
                    file.with_name(f"{name}.gz").write_bytes(gzip.compress(_idx(content), 1))
                else:
                    file.write_bytes(_idx(content))
    return folder


@pytest.mark.parametrize("make", [mnist, fashion_mnist])
def test_splits_are_disjoint_balanced_and_normalised(root: Path, make: object) -> None:
    assert callable(make)
    task = make(0, str(root), verify=False, train_size=2000)
    assert [len(split) for split in task.splits.values()] == [2000, 5000, 10_000]
    assert task.input_shape == (1, 28, 28)
    assert task.train.targets.bincount().tolist() == [200] * 10
    assert task.facts["checksum_verified"] is False
    mean, std = (0.1307, 0.3081) if make is mnist else (0.2860, 0.3530)
    # Uniform bytes, 1.6 million pixels: three digits hold.
    assert float(task.train.inputs.mean()) == pytest.approx((0.5 - mean) / std, abs=3e-3)
    train, val = ({x.tobytes() for x in split.inputs.numpy()} for split in (task.train, task.val))
    assert len(train) == 2000 and not train & val


def test_unverified_files_are_refused_by_default(root: Path) -> None:
    with pytest.raises(
        MachineError, match=r"published checksums.*task\.root=DIR.*task\.verify=false"
    ):
        mnist(0, str(root))
    with pytest.raises(
        MachineError, match=r"train-images-idx3-ubyte\.gz.*task\.verify=false if they are unpacked"
    ):
        fashion_mnist(0, str(root))


def test_without_data_and_network_it_fails_in_seconds_and_names_folder_and_ways(
    tmp_path: Path, no_network: None
) -> None:
    start = time.monotonic()
    with pytest.raises(
        MachineError, match=f"{tmp_path / 'MNIST/raw'}.*downloads it there.*task.root=DIR"
    ):
        mnist(0, str(tmp_path))
    assert time.monotonic() - start < 20
    with pytest.raises(MachineError, match="FashionMNIST is not here: no train-images-idx3-ubyte"):
        fashion_mnist(0, str(tmp_path), verify=False)


@pytest.mark.parametrize("content", [b"", b"not an image", _idx(np.zeros((10, 28, 28), np.uint8))])
def test_corrupt_files_are_one_clear_line(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(
        MachineError,
        match=r"cannot read .*train-images-idx3-ubyte: expected \(60000, 28, 28\) bytes",
    ):
        mnist(0, str(tmp_path), verify=False)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(MachineError, match=r"cannot read .*\.gz"):
        mnist(0, str(tmp_path), verify=False)


def test_sizes_are_checked_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="between 1 and 55000 for MNIST, got 55001"):
        mnist(0, "/nowhere", train_size=55_001)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hundred training images, all of zeros, and their labels."""
    monkeypatch.setitem(SIZES, "train", 100)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, shape in zip(FILES["train"], ((100, 28, 28), (100,)), strict=True):
        (folder / f"{name}.gz").write_bytes(gzip.compress(_idx(np.zeros(shape, np.uint8))))
    assert len(_read_split(folder, "train")[1]) == 100
    return folder


IMAGES, LABELS = (f"{name}.gz" for name in FILES["train"])
WAY_OUT = r".*Looked in .*task\.root=DIR"


def test_a_bomb_is_not_unpacked(raw: Path) -> None:
    (raw / IMAGES).write_bytes(
        gzip.compress(_idx(np.zeros((100, 28, 28), np.uint8)) + bytes(2**26), 1)
    )
    tracemalloc.start()
    with pytest.raises(
        MachineError,
        match=rf"{IMAGES}: holds more than 78,416 bytes, the most expected of it{WAY_OUT}",
    ):
        _read_split(raw, "train")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20


def test_what_is_wrong_with_a_file_is_said(raw: Path) -> None:
    packed = (raw / LABELS).read_bytes()
    wrong = {
        packed[:-9]: "is not whole in gzip's format",
        packed[:-8] + bytes(8): "is not whole in gzip's format",
        b"no gzip": "is not whole in gzip's format",
        gzip.compress(
            _idx(np.zeros((99,), np.uint8))
        ): r"expected \(100,\) bytes in the IDX format, 108 in all, got 107",
        gzip.compress(
            _idx(np.zeros((100,), np.uint8))[1:] + b"0"
        ): r"expected \(100,\) bytes in the IDX format",
        gzip.compress(_idx(np.full((100,), 10, np.uint8))): "must hold classes 0-9, got 10",
    }
    for content, message in wrong.items():
        (raw / LABELS).write_bytes(content)
        with pytest.raises(MachineError, match=f"{LABELS}.*{message}{WAY_OUT}"):
            _read_split(raw, "train")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, verify: bool, suffix: str, no_network: None
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for names in FILES.values():
        for name in names:
            os.mkfifo(folder / f"{name}{suffix}")
    # verified ones are packed
    message = "is a FIFO, not a regular file" if suffix or not verify else "No such file"
    with pytest.raises(MachineError, match=f"{message}.*task\\.root=DIR"):
        mnist(0, str(tmp_path), verify=verify)
