from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from optbench.curvature import GaussNewton, Hessian, Preconditioned, per_block, per_layer
from optbench.curvature.product_strategy import Strategy
from perf.cases import half_mse

from .helpers import EPS, Matrix, dense, dense_hessian, differenced_hessian, small

STRATEGIES: list[Strategy] = ["auto", "cached", "recomputed"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layers", ["fast", "torch"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_hessian_is_the_dense_one(
    strategy: Strategy, layers: Literal["fast", "torch"], chunk: int | None
) -> None:
    model, data = small()
    H = Hessian(model, half_mse, data, strategy=strategy, layers=layers, chunk=chunk)
    assert H.layers == layers
    # Two routes in float64, sums of 20 terms of size ~1: 100 ε leaves a factor of 3 above what is
    # seen.
    torch.testing.assert_close(
        dense(H), dense_hessian(model, half_mse, data), rtol=0, atol=100 * EPS
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gauss_newton_is_the_dense_one(strategy: Strategy) -> None:
    model, (inputs, _) = small()
    labels = torch.arange(20) % 3
    G = GaussNewton(model, cross_entropy, (inputs, labels), strategy=strategy, chunk=8)
    jacobian = torch.stack(
        [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(model(inputs)[i, c], list(model.parameters()))
                ]
            )
            for i in range(20)
            for c in range(3)
        ]
    ).view(20, 3, -1)
    p = model(inputs).softmax(1)
    inner = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    expected = torch.einsum("icp,icd,idq->pq", jacobian, inner, jacobian) / 20
    torch.testing.assert_close(dense(G), expected, rtol=0, atol=100 * EPS)


def test_quadratic() -> None:
    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.w.expand(len(x), -1)

    A = torch.diag(torch.tensor([3.0, -1.0, 0.5, 0.0]).double())
    H = Hessian(
        Point(),
        lambda w, _: 0.5 * ((w @ A) * w).sum(1).mean(),
        (torch.zeros(5, 1), torch.zeros(5, 1)),
    )
    torch.testing.assert_close(dense(H), A, rtol=0, atol=10 * EPS)


def test_linear_regression() -> None:
    x = torch.randn(30, 4).double()
    model = nn.Linear(4, 1, bias=False).double()
    data = (x, torch.randn(30, 1).double())
    H, G = Hessian(model, half_mse, data), GaussNewton(model, half_mse, data)
    torch.testing.assert_close(dense(H), x.T @ x / 30, rtol=0, atol=30 * EPS)
    torch.testing.assert_close(dense(G), dense(H), rtol=0, atol=30 * EPS)


def test_softmax_regression() -> None:
    x, labels = torch.randn(30, 4).double(), torch.arange(30) % 3
    model = nn.Linear(4, 3, bias=False).double()
    p = model(x).softmax(1)
    inner = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    expected = torch.einsum("nij,na,nb->iajb", inner, x, x).reshape(12, 12) / 30
    torch.testing.assert_close(
        dense(Hessian(model, cross_entropy, (x, labels))), expected, rtol=0, atol=30 * EPS
    )


def test_deep_linear_network_of_scalars() -> None:
    # f = w1·w2·w3·x at x = 1, y: H = (∇f)(∇f)ᵀ + (f − y)∇²f.
    model = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(3)]).double()
    a, b, c = (float(p.detach()) for p in model.parameters())
    y = 0.7
    slope = torch.tensor([b * c, a * c, a * b], dtype=torch.float64)
    bend = torch.tensor([[0, c, b], [c, 0, a], [b, a, 0]], dtype=torch.float64)
    H = Hessian(model, half_mse, (torch.ones(4, 1), torch.full((4, 1), y)))
    expected = torch.outer(slope, slope) + (a * b * c - y) * bend
    # y is rounded to float32 on its way
    torch.testing.assert_close(dense(H), expected, rtol=0, atol=1e-7)
    G = GaussNewton(model, half_mse, (torch.ones(4, 1), torch.full((4, 1), y)))
    torch.testing.assert_close(dense(G), torch.outer(slope, slope), rtol=0, atol=20 * EPS)


def test_relu_rescaling_transforms_as_a_congruence() -> None:
    # w ↦ Dw with W1·α, b1·α, W2/α keeps f, so H(Dw) = D⁻¹ H(w) D⁻¹ away from kinks.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    data = (torch.randn(20, 6).double(), torch.randn(20, 3).double())
    H = Hessian(model, half_mse, data)
    before = dense(H)
    alpha = 8.0  # a power of two: the rescaling itself does not round
    scale = torch.cat(
        [torch.full((35,), alpha), torch.full((15,), 1 / alpha), torch.ones(3)]
    ).double()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(alpha)
        model.get_parameter("0.bias").mul_(alpha)
        model.get_parameter("2.weight").div_(alpha)
    after = dense(H)  # the operator notices the new weights
    torch.testing.assert_close(scale[:, None] * after * scale, before, rtol=0, atol=1000 * EPS)


def test_algebra_and_counts() -> None:
    model, data = small()
    H, G = Hessian(model, half_mse, data), GaussNewton(model, half_mse, data)
    v = torch.randn(H.size, 3).double()
    torch.testing.assert_close((2 * (H - G) + G) @ v, 2 * (H @ v) - G @ v, rtol=0, atol=100 * EPS)
    assert torch.equal((-H) @ v, -(H @ v))
    assert (H.hvps, G.hvps) == (12, 9)
    assert H.shape == (53, 53)
    with pytest.raises(ValueError, match=r"agree in shape"):
        H + Matrix(torch.eye(3).double())
    with pytest.raises(ValueError, match=r"v must have shape"):
        H @ torch.zeros(52).double()
    with pytest.raises(ValueError, match=r"v must be torch.float64"):
        H @ torch.zeros(53)


def test_preconditioned() -> None:
    model, data = small()
    H = Hessian(model, half_mse, data)
    P = torch.rand(H.size).double() + 0.1
    A = Preconditioned(H, P)
    expected = dense(H) / torch.outer(P, P).sqrt()
    torch.testing.assert_close(dense(A), expected, rtol=1e-13, atol=100 * EPS)
    values, vectors = torch.linalg.eigh(expected)
    w = A.to_parameters(vectors[:, -1])
    torch.testing.assert_close((H @ w) / P, values[-1] * w, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"positive and finite, got 0.0"):
        Preconditioned(H, torch.zeros(H.size))


def test_subsets_are_diagonal_blocks() -> None:
    model, data = small()
    whole = dense_hessian(model, half_mse, data)
    assert per_layer(model) == {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
    assert per_block(nn.Sequential(model, nn.Linear(1, 1))).keys() == {"0", "1"}
    first = Hessian(model, half_mse, data, params=per_layer(model)["0"])
    biases = Hessian(model, half_mse, data, params=lambda name, p: p.ndim == 1)
    torch.testing.assert_close(dense(first), whole[:35, :35], rtol=0, atol=100 * EPS)
    index = [*range(30, 35), *range(50, 53)]
    torch.testing.assert_close(dense(biases), whole[index][:, index], rtol=0, atol=100 * EPS)
    assert list(biases.split(torch.arange(8.0))) == ["0.bias", "2.bias"]
    with pytest.raises(ValueError, match=r"got 'nope'"):
        Hessian(model, half_mse, data, params=["nope"])
    with pytest.raises(ValueError, match=r"at least one"):
        Hessian(model, half_mse, data, params=lambda name, p: False)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    chunk=st.integers(1, 25),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_properties(seed: int, chunk: int, sizes: list[int]) -> None:
    """Symmetric, linear, and the same however the data is cut and however unequal the batches."""
    model, data = small(seed)
    total = min(sum(sizes), 20)
    inputs, targets = data[0][:total], data[1][:total]
    batches = list(zip(inputs.split(sizes[0]), targets.split(sizes[0]), strict=True))
    H = Hessian(model, half_mse, (inputs, targets), strategy="cached")
    C = Hessian(model, half_mse, batches, chunk=chunk, strategy="recomputed")
    u, v = torch.randn(2, H.size).double()
    Hu, Hv = H @ u, H @ v
    # A mean of n terms summed in another order: |difference| ≤ 2nε·(mean of the terms' norms); the
    # terms' norms are bounded here by 100·‖v‖.
    bound = 2 * total * EPS * 100 * float(v.norm())
    assert float((C @ v - Hv).norm()) <= bound
    assert abs(float(u @ Hv - v @ Hu)) <= bound * float(u.norm())
    torch.testing.assert_close(H @ (2 * u - v), 2 * Hu - Hv, rtol=0, atol=3 * bound)


def test_float32_model_measured_in_float64() -> None:
    model, data = small()
    expected = dense_hessian(model.float().double(), half_mse, data)
    H = Hessian(model.float(), half_mse, data, dtype=torch.float64)
    torch.testing.assert_close(dense(H), expected, rtol=0, atol=100 * EPS)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_current_weights_without_refresh() -> None:
    model, data = small()
    H = Hessian(model, half_mse, data, strategy="cached")
    v = torch.randn(H.size).double()
    before = H @ v
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half_mse(model(data[0]), data[1]).backward()
    optimizer.step()
    after = H @ v
    assert not torch.equal(before, after)
    torch.testing.assert_close(
        after, dense_hessian(model, half_mse, data) @ v, rtol=0, atol=1000 * EPS
    )
    for p in model.parameters():
        p.data.mul_(1.5)  # out of torch's sight
    H.refresh()
    torch.testing.assert_close(
        H @ v, dense_hessian(model, half_mse, data) @ v, rtol=0, atol=1000 * EPS
    )


def test_graph_is_freed() -> None:
    model, data = small()
    with Hessian(model, half_mse, data, strategy="cached") as H:
        H @ torch.zeros(H.size).double()
        assert H._products
    assert not H._products


def test_memory_bound_turns_to_chunks() -> None:
    model, (inputs, targets) = small()
    H = Hessian(model, half_mse, (inputs, targets), memory=2000)
    v = torch.randn(H.size).double()
    Hv = H @ v
    assert H.strategy == "recomputed"
    assert H._plan is not None
    assert H._plan.chunks > 1
    torch.testing.assert_close(
        Hv, dense_hessian(model, half_mse, (inputs, targets)) @ v, rtol=0, atol=1000 * EPS
    )


def test_a_recomputed_chunk_is_taken_in_parts_unless_that_is_another_loss() -> None:
    model, data = small()
    normed = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    dropping = nn.Sequential(model, nn.Dropout(0.5))
    for net, mode, parts in (
        (model, None, 4),
        (normed, None, 1),
        (normed, "train", 1),
        (normed, "eval", 4),
        (dropping, "train", 1),
        (dropping, "eval", 4),
    ):
        H = Hessian(net, half_mse, data, strategy="recomputed", mode=mode)  # type: ignore[arg-type]
        H.prepare()
        assert H._plan is not None
        assert H._plan.chunks == parts


def test_a_large_kept_graph_is_in_parts_and_gives_the_same_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = small()
    v = torch.randn(53).double()
    whole = Hessian(model, half_mse, data)
    expected = whole @ v
    # bytes; this graph is many times larger
    monkeypatch.setattr("optbench.curvature.product_strategy.GRAIN", 100)
    parted = Hessian(model, half_mse, data)
    torch.testing.assert_close(parted @ v, expected, rtol=0, atol=1000 * EPS)
    assert (parted.strategy, len(parted._products), len(whole._products)) == ("cached", 4, 1)


def test_refusals() -> None:
    model, data = small()
    labels = one_hot(torch.arange(20) % 3, 3).double()
    for kwargs, message in [
        ({"chunk": 0}, "chunk must be positive, got 0"),
        ({"memory": 0}, "memory must be positive, got 0"),
        ({"mode": "test"}, "mode must be"),
        ({"strategy": "best"}, "strategy must be one of"),
        ({"dtype": torch.float16}, "dtype must be float32 or float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            Hessian(model, half_mse, data, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduce by 'mean', got 'sum'"):
        Hessian(model, nn.MSELoss(reduction="sum"), data)
    with pytest.raises(ValueError, match="re-iterable"):
        Hessian(model, half_mse, iter([data]))
    v = torch.zeros(53).double()
    with pytest.raises(ValueError, match="scalar mean"):
        Hessian(model, lambda o, t: (o - t).square(), data) @ v
    with pytest.raises(ValueError, match="inputs must be a tensor"):
        Hessian(model, half_mse, [({"x": data[0]}, labels)]) @ v  # type: ignore[list-item]
    with pytest.raises(
        ValueError, match="batches must hold at least one, got a list that is empty"
    ):
        Hessian(model, half_mse, []) @ v
    with pytest.raises(ValueError, match="as many examples"):
        Hessian(model, half_mse, (data[0], labels[:3])) @ v


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_unused_and_scalar_parameters(kind: type[Hessian | GaussNewton]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.unused = nn.Linear(4, 2), nn.Parameter(torch.randn(3))
            self.gain = nn.Parameter(torch.tensor(0.7))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.gain * torch.tanh(self.layer(x))
            return out

    torch.manual_seed(0)
    model, data = Net().double(), (torch.randn(8, 4).double(), torch.randn(8, 2).double())
    A = kind(model, half_mse, data)
    matrix = dense(A)
    assert A.size == 8 + 2 + 3 + 1
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-14)
    unused = [
        i
        for name, place in A.split(torch.arange(A.size)).items()
        if name == "unused"
        for i in place.tolist()
    ]
    assert not matrix[unused].any()
    if kind is Hessian:
        del model.unused  # by it no loss can be differentiated
        rest = [i for i in range(A.size) if i not in unused]
        expected = differenced_hessian(model, half_mse, data)  # its error is about 1e-7
        torch.testing.assert_close(matrix[rest][:, rest], expected, rtol=0, atol=1e-6)
