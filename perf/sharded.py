"""Curvature with sharded vectors, on paper and simulated: `python -m perf.sharded` prints the table.

Of P parameters each of R processes owns s = ⌈P/R⌉, of the weights and of every vector. A product
gathers weights and v, multiplies with the Hessian of the process's own examples, and scatters the
sum of the images; all else happens on shards, with inner products added up. Numbers per process:

| what | held | sent |
|---|---|---|
| weights, gathered for the graph | P | (R − 1) s, once for each new weights |
| product H v | 8 P beside them: v, H v, and 6 P for the check that H is symmetric | 2 (R − 1) s |
| space of a search: n vectors with images, b residuals | (2 n + b) s | inner products alone |
| trace, M vectors | 2 s | M products, and M numbers |

An all-gather or reduce-scatter of shards of s numbers sends (R − 1) s from each process, a sum of m
numbers 2 (R − 1) m / R, as ring algorithms do. Activations are the model's, and not counted.

`simulate` is a real search on shards, whose collectives are counted: tests/perf/test_sharded.py
holds these formulas against it.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from optbench.curvature import Eigenpairs, Hessian, top_eigenpairs, trace
from optbench.curvature.chunk_loss import Criterion
from optbench.curvature.chunks import Pair
from optbench.curvature.eigen import recycling, solver, subspace
from optbench.curvature.eigen.solver import WINDOW
from optbench.curvature.operators import Operator
from optbench.ranks import Ranks

# Vectors of P numbers at the peak of a product. `Witness`, which checks that products are symmetric,
# keeps a random vector and its image, and multiplies them with H v and v, once more in double.
KEPT = 2 + 2  # weights and v; a random vector and its image
MADE = 1 + 2 + 2  # H v; both sides of the comparison; one of them in double precision
SAMPLES = 30  # of a trace


def shard(P: int, R: int) -> int:
    """Numbers of a vector that a process owns, s = ⌈P/R⌉."""
    return math.ceil(P / R)


def product_sent(P: int, R: int) -> int:
    """Numbers that a process sends for one product: an all-gather and a reduce-scatter."""
    return 2 * (R - 1) * shard(P, R)


def weights_sent(P: int, R: int) -> int:
    """Numbers that a process sends for new weights: an all-gather."""
    return (R - 1) * shard(P, R)


def product_held(P: int, R: int) -> int:
    """Numbers that a process holds at the peak of a product, with its shards of weights and v."""
    return (KEPT + MADE) * P + 2 * shard(P, R) * (R > 1)


def space_held(P: int, R: int, n: int = WINDOW, b: int = 3) -> int:
    """Numbers of a search's space: n vectors with their images, and b residuals."""
    return (2 * n + b) * shard(P, R)


def inner_sent(R: int, n: int, m: int, b: int) -> float:
    """Most numbers that a process sends for inner products when m vectors join n.

    Two passes of orthogonalization, m n + m² each; the new columns of T, m (n + m); and the Gram
    matrix of b residuals.
    """
    return 2 * (R - 1) / R * (2 * (m * n + m * m) + m * (n + m) + b * b)


@dataclass
class Wire:
    """Collectives of equal shards, which count what this process sends.

    Attributes:
        vectors: Numbers sent in all-gathers and reduce-scatters.
        small: Numbers sent in sums.
    """

    ranks: Ranks
    vectors: int = field(default=0, init=False)
    small: float = field(default=0.0, init=False)

    def gather(self, mine: Tensor) -> Tensor:
        """Shards of all processes, end to end."""
        R = self.ranks.size
        whole = [torch.empty_like(mine) for _ in range(R)]
        dist.all_gather(whole, mine.contiguous())
        self.vectors += (R - 1) * mine.numel()
        return torch.cat(whole)

    def scatter(self, whole: Tensor) -> Tensor:
        """This process's shard of the sum over processes."""
        R, s = self.ranks.size, len(whole) // self.ranks.size
        mine = torch.empty(s, dtype=whole.dtype)
        dist.reduce_scatter(mine, [part.contiguous() for part in whole.split(s)])
        self.vectors += (R - 1) * s
        return mine

    def add_up(self, numbers: np.ndarray) -> np.ndarray:
        """Sum of small matrices over processes."""
        R, total = self.ranks.size, torch.from_numpy(numbers.copy())
        self.ranks.add_up([total])
        self.small += 2 * (R - 1) * numbers.size / R
        summed: np.ndarray = total.numpy()
        return summed


class Sharded(Operator):
    """H on shards: `size` is s, and a vector is this process's part of one, zeros at the end.

    Args:
        local: Hessian of this process's examples.
        share: Their part of all examples.
        wire: Collectives.
    """

    def __init__(self, local: Hessian, share: float, wire: Wire) -> None:
        self.local, self.share, self.wire = local, share, wire
        self.size, self.dtype, self.device = (
            shard(local.size, wire.ranks.size),
            local.dtype,
            local.device,
        )

    def _apply(self, vectors: Tensor) -> Tensor:
        images = [self._image(v) for v in vectors.T]
        return torch.stack(images, 1)

    def _image(self, v: Tensor) -> Tensor:
        P, padding = self.local.size, self.size * self.wire.ranks.size - self.local.size
        whole = (self.local @ self.wire.gather(v)[:P]).mul_(self.share)
        return self.wire.scatter(torch.nn.functional.pad(whole, (0, padding)))


@dataclass(frozen=True)
class Seen:
    """What a simulation found and counted.

    Attributes:
        values: Eigenvalues.
        trace: Estimate of the trace.
        products: Products of the search.
        vectors: Numbers sent for these products.
        small: Numbers sent for inner products of the search.
        expansions: (n, m) of each time that m vectors joined n of the space.
        held: Numbers of the space, images with them, at its largest.
        trace_vectors: Numbers sent for the products of the trace.
    """

    values: Tensor
    trace: float
    products: int
    vectors: int
    small: float
    expansions: list[tuple[int, int]]
    held: int
    trace_vectors: int


def simulate(
    ranks: Ranks, model: nn.Module, criterion: Criterion, data: Pair, k: int, samples: int
) -> Seen:
    """A search for k eigenvalues and a trace on shards, in one of several processes."""
    mine, N = ranks.shard(len(data[0])), len(data[0])
    wire = Wire(ranks)
    local = Hessian(model, criterion, (data[0][mine], data[1][mine]))
    H = Sharded(local, (mine.stop - mine.start) / N, wire)
    expansions, held = list[tuple[int, int]](), [0]
    plain, expand = subspace.inner, subspace.Subspace.expand

    def inner(a: Tensor, b: Tensor) -> np.ndarray:
        return wire.add_up(plain(a, b))

    def watched(self: subspace.Subspace, rows: Tensor) -> int:
        before = len(self)
        grown = expand(self, rows)
        expansions.append((before, len(rows)))
        held[0] = max(held[0], self.pairs().numel())
        return grown

    with ExitStack() as stack:
        for module in (subspace, solver, recycling):
            stack.enter_context(patch.object(module, "inner", inner))
        stack.enter_context(patch.object(subspace.Subspace, "expand", watched))
        pairs: Eigenpairs = top_eigenpairs(H, k, seed=ranks.rank)
    vectors, small = wire.vectors, wire.small
    (estimate,) = ranks.sums(trace(H, samples, seed=ranks.rank).value)
    return Seen(
        pairs.values, estimate, pairs.hvps, vectors, small, expansions, held[0],
        wire.vectors - vectors,
    )  # fmt: skip


def gigabytes(numbers: float) -> str:
    """Size of numbers in float32."""
    size = 4 * numbers / 1e9
    return f"{size:.2g}" if size < 100 else f"{size:.0f}"


def rows() -> list[str]:
    """The table of docs/scale.md, in gigabytes of float32 a process."""
    lines = [
        "| P | R | a product holds | a product sends | LOBPCG's space holds | a trace of 30 sends |",
        "|---|---|---|---|---|---|",
    ]
    for exponent in (6, 8, 9):
        for R in (1, 2, 8, 64):
            P = 10**exponent
            cells = (
                product_held(P, R),
                product_sent(P, R),
                space_held(P, R),
                SAMPLES * product_sent(P, R) + weights_sent(P, R),
            )
            said = " | ".join(gigabytes(cell) for cell in cells)
            lines.append(f"| 10{'⁶⁷⁸⁹'[exponent - 6]} | {R} | {said} |")
    return lines


def main() -> None:
    """Print the table."""
    print("\n".join(rows()))


if __name__ == "__main__":
    main()
