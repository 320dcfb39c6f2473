"""Product of two signs among many: the parity problem as a regression."""

import torch
from torch import Tensor

from optbench.boundary.kinds import Count, CountFromZero, Size, Whole
from optbench.errors import UserError
from optbench.seeds import generator
from optbench.task import Split, Task, half_mse


def xor(
    seed: int,
    bits: Size = 30,
    train_size: Count = 90,
    val_size: CountFromZero = 0,
    test_size: Count = 4000,
    data_seed: Whole | None = None,
) -> Task:
    """Product of two signs, y = x₁ x₂ with x uniform in {−1, 1}^bits.

    The loss is ½(f − y)²; the error is the share of examples whose sign is wrong.

    Args:
        seed: Seed of the run.
        bits: Number of signs, d.
        train_size: Training examples.
        val_size: Examples to choose with.
        test_size: Examples to report on.
        data_seed: Seed of the examples; None for the seed of the run.

    References:
        Wen, Li & Ma (2023), arXiv:2307.11007.
    """
    if bits < 2:
        raise UserError(f"task.bits must be at least 2, got {bits}")
    drawn = seed if data_seed is None else data_seed

    def draw(split: str, size: int) -> Split:
        bit = torch.randint(0, 2, (size, bits), generator=generator(drawn, f"inputs/{split}"))
        x = 2.0 * bit - 1
        return Split(x, x[:, :1] * x[:, 1:2])

    return Task(
        draw("train", train_size),
        draw("val", val_size) if val_size else None,
        draw("test", test_size),
        1,
        half_mse,
        sign_error,
        facts={"loss_of_zero": 0.5},
    )


def sign_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of examples whose output has not the sign of their target; 0 has no sign."""
    return (outputs * targets <= 0).double().mean()
