"""Parity of a few hidden bits among many: long nothing, then all at once."""

import torch

from optbench.boundary.kinds import Count, CountFromZero, Size, Whole
from optbench.data.splits import Handling, Labelled, labelled
from optbench.errors import UserError
from optbench.seeds import generator
from optbench.task import Split, Task


def sparse_parity(
    seed: int,
    bits: Size = 30,
    hidden: Count = 3,
    train_size: Count = 2000,
    val_size: CountFromZero = 500,
    test_size: Count = 2000,
    data_seed: Whole | None = None,
    **handling: Labelled,
) -> Task:
    """Parity of `hidden` fixed bits; inputs uniform in {−1, 1}^bits.

    No smaller set of bits tells anything about the label, so error stays at ½ until the right ones
    are found, after about bits^O(hidden) updates; then it falls to 0. With few examples the
    training set is learnt by heart first.

    Args:
        seed: Seed of the run; the label noise depends on it.
        bits: Number of bits.
        hidden: Number of bits that count.
        train_size: Training examples.
        val_size: Examples to choose with.
        test_size: Examples to report on.
        data_seed: Seed of the hidden bits and the examples; None for the seed of the run.
        handling: See `optbench.data.splits.Handling`.

    References:
        Barak et al. (2022), arXiv:2207.08799.
    """
    if not 1 <= hidden <= bits:
        raise UserError(f"task.hidden must be between 1 and task.bits={bits}, got {hidden}")
    drawn = seed if data_seed is None else data_seed
    chosen = torch.randperm(bits, generator=generator(drawn, "teacher"))[:hidden]

    def draw(split: str, size: int) -> Split:
        signs = torch.randint(
            0, 2, (size, bits), generator=generator(drawn, f"inputs/{split}"), dtype=torch.int8
        )
        return Split(2.0 * signs - 1, (hidden - signs[:, chosen].sum(1)) % 2)

    # Enough that each class has what a balanced or an imbalanced choice of this size asks for.
    pool = draw("train", 2 * (train_size + val_size) + 100)
    options = Handling(seed, train_size=train_size, val_size=val_size, **handling)
    return labelled("sparse_parity", pool, draw("test", test_size), 2, options)
