"""SAM less what it does to the input Jacobian, and the reducer less what flattens, in closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from optbench.errors import UserError
from optbench.optimizers.input_jacobian import JacobianReducer, SAMWithoutJacobian, without
from optbench.optimizers.sam import SAM
from optbench.run.update import Update
from optbench.task import half_mse

LR, RHO, MU = 0.1, 0.3, 0.05


def _problem() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(3)
    model = nn.Linear(4, 2, bias=False).double()
    return model, torch.randn(9, 4).double(), torch.randn(9, 2).double()


def _step(make: Callable[[list[nn.Parameter]], Optimizer]) -> Tensor:
    model, x, y = _problem()
    before = model.weight.detach().clone()
    Update(model, half_mse, make(list(model.parameters())))(x, y)
    return (model.weight.detach() - before).flatten()


def _base(params: object) -> SGD:
    return SGD(params, LR)  # type: ignore[arg-type]


def _closed_forms() -> tuple[Tensor, Tensor, Tensor]:
    """g, e and r of f = Wx and half_mse: e = ρ W̃ Σ with W̃ = g/‖g‖ and Σ = XᵀX/n; r = 2W."""
    model, x, y = _problem()
    W = model.weight.detach()
    sigma = x.T @ x / len(x)
    g = W @ sigma - y.T @ x / len(x)
    e = RHO * (g / g.norm()) @ sigma
    return g.flatten(), e.flatten(), 2 * W.flatten()


def _less(part: Tensor, other: Tensor) -> Tensor:
    rest = part - max(0.0, float(part @ other)) / float(other @ other) * other
    scale: Tensor = part.norm() / rest.norm()
    return rest * scale


def test_sam_without_jacobian_is_the_projected_step_at_sams_length() -> None:
    g, e, r = _closed_forms()
    if e @ r <= 0:  # so that there is a part to take out
        pytest.fail("the problem of this test has nothing to project: take another seed")
    whole = g + _less(e, r)
    expected = -LR * whole * (g + e).norm() / whole.norm()
    found = _step(lambda p: SAMWithoutJacobian(p, _base, RHO))
    # float64, entries of about 1, a few dozen roundings
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    sam = _step(lambda p: SAM(p, _base, RHO))
    assert float(found.norm()) == pytest.approx(float(sam.norm()), rel=1e-13)
    assert float((found - sam).norm()) > 1e-3 * float(sam.norm())


def test_the_sham_turns_the_extra_by_the_same_angle_another_way() -> None:
    g, e, _ = _closed_forms()
    sham = _step(lambda p: SAMWithoutJacobian(p, _base, RHO, sham=True))
    own = _step(lambda p: SAMWithoutJacobian(p, _base, RHO))
    sam = _step(lambda p: SAM(p, _base, RHO))
    assert float(sham.norm()) == pytest.approx(float(sam.norm()), rel=1e-13)
    cosines = [_extra(step, g, e) @ e / (e @ e) for step in (sham, own)]
    assert float(cosines[0]) == pytest.approx(float(cosines[1]), rel=1e-9)
    assert float((sham - own).norm()) > 1e-3 * float(sam.norm())


def _extra(step: Tensor, g: Tensor, e: Tensor) -> Tensor:
    """The e' of a step -LR s (g + e') with ‖e'‖ = ‖e‖ and s = ‖g + e‖/‖g + e'‖."""
    way = -step / step.norm()
    # g + e' = t way with ‖t way − g‖ = ‖e‖; the larger root, since e turns g by less than a half
    b = float(way @ g)
    t = b + (b**2 - float(g @ g - e @ e)) ** 0.5
    extra: Tensor = t * way - g
    return extra


def test_the_sham_draws_another_direction_at_each_step_and_remembers_how_many() -> None:
    model, x, y = _problem()
    optimizer = SAMWithoutJacobian(model.parameters(), _base, RHO, sham=True)
    update = Update(model, half_mse, optimizer)
    update(x, y)
    update(x, y)
    (own,) = optimizer.state_dict()["own"].values()
    assert int(own["drawn"]) == 2


def test_the_reducer_is_the_gradient_of_loss_and_penalty() -> None:
    g, _, r = _closed_forms()
    found = _step(lambda p: JacobianReducer(p, _base, MU))
    torch.testing.assert_close(found, -LR * (g + MU * r), rtol=0, atol=1e-14)


def test_the_reducer_without_flattening_is_projected_at_the_same_length() -> None:
    g, e, r = _closed_forms()
    whole = g + _less(MU * r, e)
    expected = -LR * whole * (g + MU * r).norm() / whole.norm()
    found = _step(lambda p: JacobianReducer(p, _base, MU, flattens=False, rho=RHO))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_a_projection_keeps_the_length_and_leaves_what_disagrees() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(20, generator=rng, dtype=torch.float64) for _ in range(2))
    b = b if a @ b > 0 else -b
    (less,) = without([a], [b])
    assert float(less @ b) == pytest.approx(0, abs=1e-14 * 400)  # 20 products of a few units
    assert float(less.norm()) == pytest.approx(float(a.norm()), rel=1e-14)
    (same,) = without([a], [-b])
    torch.testing.assert_close(same, a, rtol=1e-14, atol=0)
    (same,) = without([a], [torch.zeros_like(a)])
    torch.testing.assert_close(same, a, rtol=1e-14, atol=0)


def test_what_it_cannot_look_at_is_refused() -> None:
    model, x, y = _problem()
    optimizer = SAMWithoutJacobian(model.parameters(), _base)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = half_mse(model(x), y)
        loss.backward()
        return loss

    with pytest.raises(UserError, match=r"say optimizer\.look_at\(model, inputs\) before each"):
        optimizer.step(closure)
    optimizer.look_at(model, x)
    optimizer.step(closure)
    with pytest.raises(UserError, match="look_at"):  # a look serves one step
        optimizer.step(closure)
    optimizer.look_at(model, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(UserError, match="inputs that are tokens have none"):
        optimizer.step(closure)
    with pytest.raises(UserError, match="needs a closure"):
        optimizer.step()
    with pytest.raises(UserError, match=r"optimizer\.mu must not be negative, got -1"):
        JacobianReducer(model.parameters(), _base, mu=-1.0)
