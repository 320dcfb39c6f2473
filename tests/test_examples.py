import pytest
import torch

from optbench.data.splits import Handling, balanced_split, divide, labelled, with_label_noise
from optbench.errors import UserError
from optbench.task import Split

LABELS = torch.arange(1000) % 10
POOL = Split(torch.randint(0, 256, (1000, 3, 2, 2), dtype=torch.uint8), LABELS)
TEST = Split(torch.randint(0, 256, (100, 3, 2, 2), dtype=torch.uint8), LABELS[:100])


def test_balanced_split_is_balanced_disjoint_complete_and_fixed() -> None:
    labels = torch.arange(1000) % 10
    chosen, rest = balanced_split(labels, 105)
    counts = labels[chosen].bincount(minlength=10)
    assert counts.sum() == 105 and counts.max() - counts.min() == 1
    assert torch.equal(torch.cat([chosen, rest]).sort().values, torch.arange(1000))
    assert torch.equal(chosen, balanced_split(labels, 105)[0])


def test_balanced_split_refuses_more_than_a_class_has() -> None:
    with pytest.raises(
        UserError, match=r"cannot take 5 examples of 4: class 1 would need 2 and has 1.*train_size"
    ):
        balanced_split(torch.tensor([0, 0, 0, 1]), 4 + 1)


def test_label_noise_changes_exactly_the_share_asked_for_to_other_labels() -> None:
    labels = torch.arange(1000) % 10
    noisy = with_label_noise(labels, 10, 0.3, torch.Generator().manual_seed(0))
    assert (noisy != labels).sum() == 300
    assert noisy.min() >= 0 and noisy.max() <= 9
    wrong = ((noisy - labels) % 10)[noisy != labels].bincount(minlength=10)
    assert wrong[0] == 0 and wrong[1:].min() > 15  # 33 expected of each of nine shifts, sd 5.5


def test_label_noise_outside_a_share_is_refused() -> None:
    with pytest.raises(UserError, match=r"between 0 and 1, got 1\.5"):
        with_label_noise(torch.zeros(3, dtype=torch.long), 10, 1.5, torch.Generator())


def test_label_noise_reaches_every_token_of_a_sequence() -> None:
    tokens = torch.zeros(10, 8, dtype=torch.long)
    noisy = with_label_noise(tokens, 5, 0.25, torch.Generator().manual_seed(0))
    assert noisy.shape == tokens.shape and (noisy != tokens).sum() == 20


def test_splits_are_disjoint_and_only_the_training_labels_are_noisy() -> None:
    index = Split(torch.arange(1000.0)[:, None], LABELS)
    parts = divide("it", index, TEST, 10, Handling(0, val_size=100, label_noise=0.5))
    train, val = (set(parts[name][0].flatten().tolist()) for name in ("train", "val"))
    assert len(train) == 900 and len(val) == 100 and not train & val
    for name, wrong in (("train", 450), ("val", 0)):
        inputs, labels = parts[name]
        assert int((labels != LABELS[inputs.flatten().long()]).sum()) == wrong
    assert torch.equal(parts["test"][1], TEST.targets)


def test_the_split_depends_on_its_own_seed_and_the_noise_on_the_runs() -> None:
    def data(**settings: int | float) -> str:
        return labelled(
            "it",
            POOL,
            TEST,
            10,
            Handling(**{"seed": 0, "val_size": 100, **settings}),  # type: ignore[arg-type]
        ).data_hash()

    assert data() == data(seed=1) != data(split_seed=1)
    assert data(label_noise=0.1) != data(label_noise=0.1, seed=1)


@pytest.mark.parametrize(("imbalance", "size"), [(10, 300), (100, 150), (10, None)])
def test_imbalance_is_geometric_in_the_class(imbalance: float, size: int | None) -> None:
    labels = divide("it", POOL, TEST, 10, Handling(0, imbalance=imbalance, train_size=size))[
        "train"
    ][1]
    counts = labels.bincount(minlength=10)
    ideal = imbalance ** (-torch.arange(10.0) / 9)
    ideal *= len(labels) / ideal.sum()
    assert float((counts - ideal).abs().max()) < 1  # whole examples
    assert len(labels) == size or (size is None and int(counts[0]) == 100)


def test_impossible_imbalance_says_how_to_go_on() -> None:
    with pytest.raises(UserError, match=r"class 0 would need \d+ and has 100.*imbalance nearer 1"):
        divide("it", POOL, TEST, 10, Handling(0, imbalance=100, train_size=900))
    with pytest.raises(
        UserError, match=r"task\.imbalance must be a finite number, at least 1, got 0\.5"
    ):
        Handling(0, imbalance=0.5)


def test_normalisation_is_by_the_training_examples_channel_by_channel() -> None:
    parts = divide("it", POOL, TEST, 10, Handling(0, val_size=100, normalise="standard"))
    train = parts["train"][0]
    # Float32 sums of 3,600 numbers of size 1: 1e-5.
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.ones(3), rtol=1e-5, atol=0)
    plain = divide("it", POOL, TEST, 10, Handling(0, val_size=100))
    assert float(plain["train"][0].min()) >= 0 and float(plain["train"][0].max()) <= 1
    scale = plain["train"][0].std((0, 2, 3), correction=0).reshape(3, 1, 1)
    torch.testing.assert_close(
        parts["test"][0].diff(dim=0), plain["test"][0].diff(dim=0) / scale, rtol=1e-4, atol=1e-5
    )


def test_published_statistics_are_used_where_there_are_some() -> None:
    parts = divide(
        "it", POOL, TEST, 10, Handling(0, normalise="standard"), ((0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    )
    plain = divide("it", POOL, TEST, 10, Handling(0))
    expected = (plain["test"][0] - torch.tensor([0.5, 0.25, 0.0]).reshape(3, 1, 1)) / torch.tensor(
        [0.5, 1.0, 2.0]
    ).reshape(3, 1, 1)
    torch.testing.assert_close(parts["test"][0], expected)


def test_a_constant_feature_is_left_alone() -> None:
    pool = Split(torch.ones(20, 1), torch.arange(20) % 2)
    assert (
        divide("it", pool, pool, 2, Handling(0, normalise="standard"))["train"][0].abs().max() == 0
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_size": 1001}, "task.train_size must be between 1 and 1000 for it, got 1001"),
        (
            {"train_size": 901, "val_size": 100},
            "task.train_size must be between 1 and 900 for it, got 901",
        ),
        ({"val_size": 1000}, "task.val_size must be between 0 and 999 for it, got 1000"),
    ],
)
def test_impossible_sizes_are_refused_with_the_range(
    settings: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        divide("it", POOL, TEST, 10, Handling(0, **settings))  # type: ignore[arg-type]
