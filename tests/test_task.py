import pytest
import torch
from torch.nn.functional import mse_loss

from optbench.errors import UserError
from optbench.task import Split, classification, half_mse


def test_half_mse_is_half_the_squared_norm_averaged_over_examples() -> None:
    outputs, targets = (
        torch.tensor([[1.0, 2.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [3.0, 4.0]]),
    )
    assert half_mse(outputs, targets) == (5 + 25) / 2 / 2
    # nn.MSELoss averages over the C outputs too: a factor of 2/C.
    assert mse_loss(outputs, targets) == half_mse(outputs, targets) * 2 / 2


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_error_counts_wrong_classes(loss: str) -> None:
    labels = torch.tensor([0, 1, 2, 2])
    task = classification({"train": (torch.zeros(4, 1), labels)}, 3, loss)
    outputs = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    assert task.error is not None
    assert task.error(outputs, task.train.targets) == 0.25


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(UserError, match="ce or mse, got hinge"):
        classification({}, 3, "hinge")


def test_data_hash_sees_a_single_flipped_label() -> None:
    inputs, labels = torch.rand(10, 3), torch.arange(10) % 2
    first = classification({"train": (inputs, labels)}, 2, "ce").data_hash()
    assert first == classification({"train": (inputs.clone(), labels.clone())}, 2, "ce").data_hash()
    labels[3] = 1 - labels[3]
    assert first != classification({"train": (inputs, labels)}, 2, "ce").data_hash()


def test_chunks_cover_a_split_in_order() -> None:
    split = Split(torch.arange(10.0), torch.arange(10))
    chunks = list(split.chunks(4))
    assert [len(x) for x, _ in chunks] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in chunks]), split.inputs)


def test_tokens_keep_their_type_and_a_sequence_is_averaged_over_its_tokens() -> None:
    tokens = torch.tensor([[0, 1, 2], [2, 1, 0]])
    task = classification({"train": (tokens, tokens)}, 3, "ce").to(
        torch.device("cpu"), torch.float64
    )
    assert task.train.inputs.dtype == torch.int64 and task.input_shape == (3,)
    outputs = torch.randn(2, 3, 3, dtype=torch.float64)
    each = [-outputs[i, j].log_softmax(0)[tokens[i, j]] for i in range(2) for j in range(3)]
    torch.testing.assert_close(task.loss(outputs, tokens), torch.stack(each).mean())
    assert task.error is not None
    assert task.error(torch.nn.functional.one_hot(tokens.flip(1), 3), tokens) == pytest.approx(
        4 / 6
    )
