import numpy as np
import pytest
import torch
from numpy.random import RandomState
from optbench.tasks.mnist1d import draw, mnist1d

from optbench.configuration.compose import compose_config
from optbench.configuration.keys import check
from optbench.errors import UserError
from optbench.seeds import global_stream

LABELS = [2, 6, 4, 5, 6, 6, 6, 0, 3, 1]  # of the first ten of the published training examples
FIRST = [-0.33200567, -0.47191037, -0.77869708]  # points of the first
LAST = [0.65987565, 0.87773435, 1.19315184]  # of the last published test example


def test_it_is_the_published_data_set() -> None:
    """Made by the package mnist1d 0.0.2, and in the file that its repository holds."""
    inputs, labels = draw(5000, RandomState(42))
    standardised = (inputs - inputs.mean()) / inputs.std()
    assert labels[:10].tolist() == LABELS
    np.testing.assert_allclose(standardised[0, :3], FIRST, atol=1e-8)
    np.testing.assert_allclose(standardised[-1, -3:], LAST, atol=1e-8)


def test_it_agrees_with_the_package_on_every_number() -> None:
    package = pytest.importorskip("mnist1d.data")
    with global_stream(0, "test"):  # the package seeds the global generators
        theirs = package.make_dataset()
    task = mnist1d(0, val_size=0, train_size=None, test_size=None)
    assert task.test is not None
    expected = torch.from_numpy(theirs["x_test"]).float()
    torch.testing.assert_close(task.test.inputs[:, 0], expected, rtol=0, atol=1e-6)
    assert task.test.targets.tolist() == theirs["y_test"].tolist()
    ours = sorted(map(tuple, task.train.inputs[:, 0].tolist()))
    wanted = sorted(map(tuple, torch.from_numpy(theirs["x"]).float().tolist()))
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)


def test_the_test_set_is_large_balanced_and_of_the_same_law() -> None:
    task, published = mnist1d(0), mnist1d(0, test_size=None)
    assert task.test is not None and task.val is not None and published.test is not None
    assert [len(split) for split in task.splits.values()] == [3500, 500, 10_000]
    assert task.test.targets.bincount().tolist() == [1000] * 10
    # Points of an example are correlated: 10,000 examples are worth at least as many numbers.
    assert abs(float(task.test.inputs.mean())) < 4 / 10_000**0.5
    assert float(task.test.inputs.std()) == pytest.approx(1, abs=4 / 10_000**0.5)
    seen = {tuple(x) for x in task.train.inputs[:, 0].tolist()}
    assert not seen & {tuple(x) for x in task.test.inputs[:, 0].tolist()}
    assert len(published.test) == 1000 and len(mnist1d(0, test_size=25).splits["test"]) == 25


def test_only_label_noise_depends_on_the_seed_of_the_run() -> None:
    assert mnist1d(0).data_hash() == mnist1d(1).data_hash() != mnist1d(0, data_seed=1).data_hash()
    noisy = [mnist1d(seed, train_size=1000, label_noise=0.2) for seed in (0, 1)]
    assert noisy[0].data_hash() != noisy[1].data_hash()
    clean = mnist1d(0, train_size=1000)
    assert int((noisy[0].train.targets != clean.train.targets).sum()) == 200
    assert clean.train.targets.bincount().tolist() == [100] * 10


def test_no_task_shares_memory_with_the_next() -> None:
    first = mnist1d(0).data_hash()
    for split in mnist1d(0).splits.values():
        split.inputs.zero_()
        split.targets.zero_()
    assert mnist1d(0).data_hash() == first


def test_a_signal_without_noise_or_shear_is_its_stretched_template() -> None:
    """Draws of ½ and 0: padding 48 of 36 to 60, factor 1, no rotation, no noise, no slope."""

    class Middle(RandomState):
        def rand(self) -> float:  # type: ignore[override]
            return 0.5

        def randint(self, high: int) -> int:  # type: ignore[override]
            return 0

        def randn(self, *shape: int) -> np.ndarray:  # type: ignore[override]
            return np.zeros(shape)

        def permutation(self, n: int) -> np.ndarray:  # type: ignore[override]
            return np.arange(n)

    signals, labels = draw(10, Middle(0))
    assert labels.tolist() == list(range(10))
    # 12 of 60 points are the template, which begins and ends at 0 (1e-8 is added to it).
    end = int(12 / 60 * 40) + 1
    np.testing.assert_allclose(signals[:, [0, *range(end, 40)]], 0, atol=1e-7)
    assert signals[0].max() > 0.2 and signals[4].min() < -0.2  # 0 is a hill, 4 begins with a valley


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("task.data_seed=4294967296", "at least 0 and below 4294967296, got 4294967296"),
        ("task.test_size=0", "task.test_size must be a whole number, at least 1 or null, got 0"),
    ],
)
def test_what_cannot_be_is_told_before_it_is_drawn(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(compose_config(["task=mnist1d", word]))


def test_samples_fill_the_classes() -> None:
    with pytest.raises(UserError, match=r"task\.samples must be a multiple of 10, got 25"):
        mnist1d(0, samples=25)
