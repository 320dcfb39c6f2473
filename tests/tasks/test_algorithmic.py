import itertools

import pytest
import torch
from optbench.tasks.modular_addition import modular_addition
from optbench.tasks.sparse_parity import sparse_parity

from optbench.errors import UserError


def test_labels_are_the_parity_of_one_set_of_bits_on_every_split() -> None:
    task = sparse_parity(0, bits=10, hidden=3, train_size=300, val_size=100, test_size=200)
    assert [len(split) for split in task.splits.values()] == [300, 100, 200]
    assert set(task.train.inputs.unique().tolist()) == {-1.0, 1.0}
    fitting = [
        bits
        for bits in itertools.combinations(range(10), 3)
        if all(
            torch.equal((split.inputs[:, bits].prod(1) < 0).long(), split.targets)
            for split in task.splits.values()
        )
    ]
    assert len(fitting) == 1
    assert (
        sparse_parity(0).data_hash() == sparse_parity(0).data_hash() != sparse_parity(1).data_hash()
    )


def test_parity_of_one_data_seed_is_the_same_for_every_run() -> None:
    fixed = [sparse_parity(seed, data_seed=3) for seed in (0, 1, 3)]
    assert len({task.data_hash() for task in fixed}) == 1
    assert fixed[0].data_hash() == sparse_parity(3).data_hash()
    noisy = [sparse_parity(seed, data_seed=3, label_noise=0.1) for seed in (0, 1)]
    assert noisy[0].data_hash() != noisy[1].data_hash()


def test_parity_takes_noise_and_imbalance() -> None:
    task = sparse_parity(0, train_size=1000, imbalance=4, label_noise=0.0)
    assert task.train.targets.bincount().tolist() == [800, 200]
    clean, noisy = sparse_parity(0), sparse_parity(0, label_noise=0.1)
    assert int((clean.train.targets != noisy.train.targets).sum()) == 200


@pytest.mark.parametrize("encoding", ["tokens", "one_hot"])
def test_every_pair_is_in_one_split_with_its_sum(encoding: str) -> None:
    p = 7
    task = modular_addition(0, p=p, train_share=0.5, val_size=5, encoding=encoding)
    assert [len(split) for split in task.splits.values()] == [19, 5, 25]
    seen = set()
    for split in task.splits.values():
        for x, y in zip(split.inputs, split.targets, strict=True):
            a, b = (x[:2] if encoding == "tokens" else (x[:p].argmax(), x[p:].argmax())).__iter__()
            assert (int(a) + int(b)) % p == int(y)
            seen.add((int(a), int(b)))
    assert len(seen) == p * p


def test_the_answer_is_read_after_the_last_token() -> None:
    task = modular_addition(0, p=5)
    outputs = torch.zeros(len(task.train), 3, 6)
    outputs[torch.arange(len(task.train)), 2, task.train.targets] = 50.0
    assert task.error is not None
    assert (
        float(task.loss(outputs, task.train.targets)) < 1e-6
        and float(task.error(outputs, task.train.targets)) == 0
    )
    outputs[:, :2] = torch.randn(len(task.train), 2, 6)
    assert float(task.error(outputs, task.train.targets)) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: modular_addition(0, train_share=1.0), "leave pairs on both sides"),
        (lambda: sparse_parity(0, hidden=31), "between 1 and task.bits=30, got 31"),
    ],
)
def test_what_cannot_be_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(UserError, match=message):
        make()
