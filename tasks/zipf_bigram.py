"""Next tokens whose frequencies fall off as a power of their rank, as those of words do."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from optbench.boundary.kinds import Count, CountFromZero, Share, Size
from optbench.errors import UserError
from optbench.seeds import generator
from optbench.task import Task, classification

AtLeastOne = Annotated[float, Field(ge=1)]


def zipf_bigram(
    seed: int,
    tokens: Size = 50,
    imbalance: AtLeastOne = 50.0,
    noise: Share = 0.1,
    train_size: Count = 5000,
    val_size: CountFromZero = 1000,
    test_size: Count = 1000,
) -> Task:
    """A bigram language: each of C tokens has one token that mostly follows it.

        π_k ∝ k^(−α),  α = log(imbalance)/log(C),  k = 1, …, C
        q(j | k) = (1 − ε) [j = σ(k)] + ε π_j,     σ a random permutation

    The input is the current token k, one-hot, the label the next one. imbalance = C is Zipf's law,
    α = 1; 1 is a uniform language. Training has π_k's share of every token (by largest remainder,
    at least one), and draws what follows; the other splits draw both.

    Args:
        seed: Seed of the run; σ and the examples depend on it.
        tokens: Number C of tokens.
        imbalance: Share of the most frequent token over that of the rarest, π_1/π_C, at least 1.
        noise: Share ε of next tokens that do not depend on the current one. For 0 the classes can
            be told apart, and their losses fall to 0.
        train_size: Training examples, at least C.
        val_size: Examples to choose with.
        test_size: Examples to report on.

    References:
        Kunstner et al. (2024), arXiv:2402.19449, sections 3 and 4.
    """
    if train_size < tokens:
        raise UserError(f"task.train_size must be at least task.tokens={tokens}, got {train_size}")
    shares = token_shares(tokens, imbalance)
    follows = torch.randperm(tokens, generator=generator(seed, "teacher"))

    def pairs(split: str, current: Tensor) -> tuple[Tensor, Tensor]:
        stream = generator(seed, f"next/{split}")
        other = torch.multinomial(shares, len(current), True, generator=stream)
        random = torch.rand(len(current), generator=stream) < noise
        return F.one_hot(current, tokens).float(), torch.where(random, other, follows[current])

    def drawn(split: str, size: int) -> tuple[Tensor, Tensor]:
        stream = generator(seed, f"tokens/{split}")
        return pairs(split, torch.multinomial(shares, size, True, generator=stream))

    every = torch.repeat_interleave(torch.arange(tokens), _counts(shares, train_size))
    parts = {"train": pairs("train", every), "test": drawn("test", test_size)}
    if val_size:
        parts["val"] = drawn("val", val_size)
    return classification(parts, tokens, "ce")


def token_shares(tokens: int, imbalance: float) -> Tensor:
    """π (C,), in float64: k^(−α) over its sum, α = log(imbalance)/log(C)."""
    ranks = torch.arange(1, tokens + 1, dtype=torch.float64)
    weights = imbalance ** (-ranks.log() / math.log(max(tokens, 2)))
    return weights / weights.sum()


def _counts(shares: Tensor, size: int) -> Tensor:
    """Divide `size` by the shares, one for each token and the rest by largest remainder."""
    exact = (size - len(shares)) * shares
    counts = exact.floor().long()
    most = (exact - counts).argsort(descending=True, stable=True)
    counts[most[: size - len(shares) - int(counts.sum())]] += 1
    return counts + 1
