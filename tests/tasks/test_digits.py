import gzip
import os
from pathlib import Path

import pytest
import torch
from optbench.tasks.digits import digits
from sklearn.datasets import load_digits

from optbench.errors import MachineError, UserError


def test_it_is_scikit_learns_digits_split_in_three() -> None:
    task = digits(0)
    assert task.val is not None and task.test is not None
    assert [len(split) for split in task.splits.values()] == [1000, 297, 500]
    everything = torch.cat([split.inputs for split in task.splits.values()]).flatten(1) * 16
    reference = torch.from_numpy(load_digits().data).float()
    assert sorted(map(tuple, everything.tolist())) == sorted(map(tuple, reference.tolist()))


def test_only_label_noise_depends_on_the_seed() -> None:
    assert digits(0).data_hash() == digits(1).data_hash()
    noisy = [digits(seed, label_noise=0.2) for seed in (0, 0, 1)]
    assert noisy[0].data_hash() == noisy[1].data_hash() != noisy[2].data_hash()
    assert (noisy[0].train.targets.argmax(1) != digits(0).train.targets.argmax(1)).sum() == 200


def test_a_smaller_training_set_is_balanced_and_leaves_the_others_alone() -> None:
    small, whole = digits(0, train_size=100, loss="ce"), digits(0, loss="ce")
    assert small.train.targets.bincount().tolist() == [10] * 10
    assert small.test is not None and whole.test is not None
    assert torch.equal(small.test.inputs, whole.test.inputs)
    with pytest.raises(UserError, match="between 1 and 1000 for digits, got 1001"):
        digits(0, train_size=1001)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is a FIFO, not a regular file"),
        (gzip.compress(b"1,2\n", mtime=0), "expected 1,797 rows"),
        (gzip.compress(b"1,2\n", mtime=0)[:-4], "is not whole in gzip's format"),
        (gzip.compress(bytes(2**21), mtime=0), "holds more than 1,048,576 bytes"),
    ],
)
def test_a_damaged_table_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, message: str
) -> None:
    monkeypatch.setattr("optbench.tasks.digits.sklearn_data", lambda: tmp_path)
    file = tmp_path / "digits.csv.gz"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    with pytest.raises(
        MachineError, match=f"cannot read scikit-learn's digits at {file}: .*{message}.*nstall"
    ):
        digits(0)
