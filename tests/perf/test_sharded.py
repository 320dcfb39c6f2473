"""What sharded vectors cost, on paper and as counted in a search by 2 and by 4 processes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from optbench.curvature import Hessian, top_eigenpairs
from optbench.curvature.trace import rademacher
from optbench.ranks import Ranks
from perf.cases import mlp
from perf.sharded import (
    MADE,
    Seen,
    inner_sent,
    product_held,
    product_sent,
    rows,
    shard,
    simulate,
    space_held,
)
from perf.timing import peak_bytes
from tests.ranks.processes import answers

N, K, SAMPLES = 21, 2, 3


def _problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return mlp(5, 8, 3).double(), torch.randn(N, 5, dtype=torch.float64), torch.arange(N) % 3


def _seen(ranks: Ranks) -> Seen:
    model, x, y = _problem()
    return simulate(ranks, model, cross_entropy, (x, y), K, SAMPLES)


@pytest.mark.parametrize("R", [2, 4])
def test_the_formulas_are_what_a_search_on_shards_holds_and_sends(R: int, tmp_path: Path) -> None:
    model, x, y = _problem()
    H = Hessian(model, cross_entropy, (x, y))
    P = H.size  # 75: no multiple of 2 or 4
    exact = top_eigenpairs(H, K, accuracy=1e-9)
    # z of the trace, as the processes drew their shards of it
    generators = [torch.Generator().manual_seed(rank) for rank in range(R)]
    estimate = 0.0
    for _ in range(SAMPLES):
        shards = [
            rademacher(_Sized(shard(P, R)), generator)  # type: ignore[arg-type]
            for generator in generators
        ]
        z = torch.cat(shards)[:P]
        estimate += float(z @ (H @ z)) / SAMPLES
    for seen in answers(R, tmp_path, _seen):
        torch.testing.assert_close(seen.values, exact.values, rtol=5e-3, atol=0)
        assert seen.trace == pytest.approx(estimate, rel=1e-10)
        assert seen.vectors == seen.products * product_sent(P, R)
        assert seen.trace_vectors == SAMPLES * product_sent(P, R)
        block = K + 2
        most = sum(inner_sent(R, n, m, block) for n, m in seen.expansions)
        assert 0.3 * most < seen.small <= most
        largest = max(n + m for n, m in seen.expansions)
        assert seen.held <= space_held(P, R, largest, 0)
        assert seen.held >= space_held(P, R, largest - block, 0)


class _Sized:
    """What `rademacher` asks of an operator."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, size: int) -> None:
        self.size = size


def test_a_product_holds_what_is_said() -> None:
    torch.manual_seed(0)
    model = mlp(200, 300, 200, 10)
    H = Hessian(model, cross_entropy, (torch.randn(4, 200), torch.arange(4)), strategy="cached")
    v = torch.randn(H.size)
    H @ v
    peak = peak_bytes(lambda: H @ v) / 4 / H.size
    assert MADE <= peak <= MADE + 0.05  # 4 examples are the rest
    assert H._witness is not None
    kept = H.size + v.numel() + H._witness.vector.numel() + H._witness.image.numel()
    assert product_held(H.size, 1) == kept + MADE * H.size


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    assert "\n".join(rows()) in page, "python -m perf.sharded prints it"
