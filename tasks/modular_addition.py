"""a + b mod p from a share of all pairs: memorised long before it is understood (grokking)."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from optbench.boundary.kinds import CountFromZero
from optbench.data.splits import Handling, Labelled, divide
from optbench.errors import UserError
from optbench.seeds import generator
from optbench.task import Split, Task, cross_entropy


def modular_addition(
    seed: int,
    p: Annotated[int, Field(ge=2, le=1000)] = 31,
    train_share: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    val_size: CountFromZero = 0,
    encoding: Literal["tokens", "one_hot"] = "tokens",
    **handling: Labelled,
) -> Task:
    """Classify pairs (a, b) by a + b mod p; a random share of the p² pairs is trained on.

    With strong weight decay (`optimizer=adamw optimizer.weight_decay=1`) the training error is 0
    long before the test error falls.

    Args:
        seed: Seed of the run; which pairs are trained on depends on it.
        p: Modulus.
        train_share: Share of the pairs that are not for reporting, between 0 and 1.
        val_size: Pairs to choose with, of those that are not for reporting.
        encoding: Form of the inputs: `tokens` gives the three integers a, b, p ("="), shape (N, 3),
            to `model=gpt`, and reads the answer after the last; `one_hot` gives 2p numbers, to any
            model.
        handling: See `optbench.data.splits.Handling`; the loss is the cross-entropy.

    References:
        Power et al. (2022), arXiv:2201.02177; Nanda et al. (2023), arXiv:2301.05217.
    """
    size = round(train_share * p * p)
    if not 0 < size < p * p:
        raise UserError(
            f"task.train_share must leave pairs on both sides, got {train_share} of {p * p}"
        )
    pairs = torch.arange(p * p)
    a, b = pairs // p, pairs % p
    if encoding == "tokens":
        inputs = torch.stack([a, b, torch.full_like(a, p)], 1)
    else:
        inputs = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], 1).float()
    everything = Split(inputs, (a + b) % p)
    order = torch.randperm(p * p, generator=generator(seed, "pairs"))
    pool, test = (
        Split(everything.inputs[i], everything.targets[i]) for i in (order[:size], order[size:])
    )
    parts = divide("modular_addition", pool, test, p, Handling(seed, val_size=val_size, **handling))
    splits = {name: Split(*part) for name, part in parts.items()}
    width = p + 1 if encoding == "tokens" else p
    return Task(splits["train"], splits.get("val"), splits["test"], width, _loss, _error)


def _answer(outputs: Tensor) -> Tensor:
    return outputs[:, -1] if outputs.ndim == 3 else outputs


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(_answer(outputs), targets)


def _error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (_answer(outputs).argmax(-1) != targets).double().mean()
