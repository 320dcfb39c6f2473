import pytest
import torch

from optbench.errors import UserError
from optbench.run.batches import Batches
from optbench.task import Split, Task, half_mse


def _task(N: int = 10, noise: bool = False) -> Task:
    def jitter(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x + torch.rand(x.shape, generator=generator)

    x = torch.arange(float(N))[:, None]
    return Task(Split(x, x), None, None, 1, half_mse, augment=jitter if noise else None)


def test_an_epoch_is_whole_batches_without_repetition_in_a_new_order_each_time() -> None:
    batches = Batches(_task(10), 3, seed=0)
    epochs = [torch.cat([batches.next()[0] for _ in range(3)]).flatten().tolist() for _ in range(4)]
    assert batches.per_epoch == 3
    for epoch in epochs:
        assert len(set(epoch)) == 9
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # what one epoch leaves out, another has
    assert len({x for epoch in epochs for x in epoch}) == 10


def test_order_does_not_depend_on_augmentation() -> None:
    plain, augmented = Batches(_task(), 5, seed=1), Batches(_task(noise=True), 5, seed=1)
    for _ in range(5):
        assert torch.equal(plain.next()[1], augmented.next()[1])


def test_full_batch_keeps_its_order_and_is_not_copied() -> None:
    task = _task()
    batches = Batches(task, "full", seed=0)
    assert batches.full and batches.per_epoch == 1
    assert batches.next()[0].data_ptr() == task.train.inputs.data_ptr()


@pytest.mark.parametrize("served", [0, 1, 3, 4, 7])
def test_resumed_anywhere_the_sequence_goes_on_bit_for_bit(served: int) -> None:
    one = Batches(_task(10, noise=True), 3, seed=0)
    for _ in range(served):
        one.next()
    other = Batches(_task(10, noise=True), 3, seed=99)
    other.load_state_dict(one.state_dict())
    for _ in range(8):
        for a, b in zip(one.next(), other.next(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("size", [0, -1, 11, "half", 2.5, True])
def test_impossible_batch_sizes_are_refused_with_the_range(size: object) -> None:
    with pytest.raises(UserError, match=f"between 1 and the 10 training examples, got {size}"):
        Batches(_task(), size, seed=0)  # type: ignore[arg-type]
