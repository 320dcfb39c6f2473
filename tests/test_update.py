import pytest
import torch
from pytorch_optimizer import AdaHessian, SophiaH
from torch import Tensor, nn

from optbench.errors import UserError
from optbench.models.vit import vit
from optbench.optimizers.with_graph import WithGraph
from optbench.run.update import Update
from optbench.task import half_mse


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def _batch(n: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(n, 5, generator=generator, dtype=torch.float64),
        torch.randn(n, 3, generator=generator, dtype=torch.float64),
    )


def _gradients(micro_batch_size: int | None) -> list[Tensor]:
    net = _net()
    update = Update(
        net, half_mse, torch.optim.SGD(net.parameters(), 1e-9), micro_batch_size=micro_batch_size
    )
    loss = update(*_batch())
    reference = _net()
    assert float(loss) == pytest.approx(
        half_mse(reference(_batch()[0]), _batch()[1]).item(), rel=1e-14
    )
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("size", [1, 4, 10, 11, 100])
def test_micro_batches_of_any_size_give_the_gradient_of_the_whole_batch(size: int) -> None:
    # 11 examples in float64: sums in another order, an error of at most about 11 eps = 2.4e-15
    # relative.
    for a, b in zip(_gradients(size), _gradients(None), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


def test_micro_batches_are_refused_where_batch_norm_would_see_them() -> None:
    net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))
    update = Update(net, half_mse, torch.optim.SGD(net.parameters(), 0.1), micro_batch_size=4)
    update.check(4)
    with pytest.raises(UserError, match=r"micro_batch_size=4 .* model.norm=group"):
        update.check(11)


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    net = _net()
    before = [p.detach().clone() for p in net.parameters()]
    update = Update(net, half_mse, torch.optim.SGD(net.parameters(), 1.0), clip_norm=0.01)
    update(*_batch())
    moved = torch.cat(
        [(p.detach() - b).flatten() for p, b in zip(net.parameters(), before, strict=True)]
    )
    # clip_grad_norm_ adds 1e-6 to the norm
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-4)


def test_gradients_count_every_call_of_the_closure() -> None:
    net = _net()
    update = Update(net, half_mse, torch.optim.LBFGS(net.parameters(), max_iter=5))
    loss = update(*_batch())
    assert update.gradients > 1
    assert float(loss) == pytest.approx(
        half_mse(_net()(_batch()[0]), _batch()[1]).item(), rel=1e-14
    )


def test_an_optimizer_that_ignores_the_closure_is_refused() -> None:
    class Idle(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            pass

    net = _net()
    with pytest.raises(UserError, match=r"Idle\.step\(\) never called the closure"):
        Update(net, half_mse, Idle(net.parameters(), 0.1))(*_batch())


def test_matches_the_shortest_hand_written_loop_bit_for_bit() -> None:
    ours, theirs = _net(), _net()
    update = Update(ours, half_mse, torch.optim.Adam(ours.parameters(), 1e-2))
    optimizer = torch.optim.Adam(theirs.parameters(), 1e-2)
    x, y = _batch()
    for _ in range(20):
        update(x, y)
        optimizer.zero_grad()
        half_mse(theirs(x), y).backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def _differentiates(net: nn.Module, lr: float = 0.1) -> WithGraph:
    return WithGraph(net.parameters(), lambda p: AdaHessian(p, lr=lr, eps=1e-8))


def test_an_optimizer_that_differentiates_the_gradient_gets_its_graph_and_leaves_none() -> None:
    """With η_H = 1/L for L = ½ Σ h_i w_i² the first step of AdaHessian is w − η g/|h|, whatever the sign drawn."""
    h = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    net = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.eye(3))
    before = net.weight.detach().clone()
    x = (3 * h).sqrt().diag()
    update = Update(net, half_mse, _differentiates(net))
    update(x, torch.zeros(3, 3, dtype=torch.float64))
    # Rows of W are independent and the Hessian of each is diag(h): D = h, g = h w; eps 1e-8
    # relative to h ≥ 1.
    torch.testing.assert_close(net.weight.detach(), before - 0.1 * before, rtol=1e-7, atol=1e-9)
    assert all(p.grad is not None and not p.grad.requires_grad for p in net.parameters())
    assert update.gradients == 2  # the gradient, and the product with the Hessian


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_micro_batches_give_the_same_graph_as_the_whole_batch(clip_norm: float | None) -> None:
    ends = []
    for size in (None, 4):
        net = _net()
        update = Update(
            net, half_mse, _differentiates(net), micro_batch_size=size, clip_norm=clip_norm
        )
        torch.manual_seed(0)
        for _ in range(3):
            update(*_batch())
        ends.append([p.detach().clone() for p in net.parameters()])
    # Sums in another order, 1e-15 relative, over a diagonal estimate that may be 1e-4 of the
    # largest.
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)
    net = vit((3, 8, 8), 3, width=8, depth=1, heads=2)
    update = Update(net, half_mse, _differentiates(net))
    update(torch.randn(4, 3, 8, 8), torch.randn(4, 3))
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_the_graph_is_kept_only_for_the_steps_that_need_it() -> None:
    net = _net()
    base = WithGraph(net.parameters(), lambda p: SophiaH(p, lr=1e-3, update_period=5))
    update = Update(net, half_mse, base)
    for _ in range(10):
        update(*_batch())
    assert update.gradients == 10 + 2
