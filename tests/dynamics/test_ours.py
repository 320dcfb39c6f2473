"""Our optimizers against references, and their edges."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from optbench.errors import UserError
from optbench.optimizers.by_shape import ByShape
from optbench.optimizers.sam import SAM
from optbench.optimizers.sign import Lion, Signum
from optbench.optimizers.steepest import SteepestDescent
from tests.dynamics.asked import edge, reordered, source


def _train(optimizer: torch.optim.Optimizer, w: nn.Parameter, a: torch.Tensor, steps: int) -> float:
    """Steps on ½ wᵀ diag(a) w; the loss at the end."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (a * w.square()).sum() / 2
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
    return float((a * w.detach().square()).sum() / 2)


def test_sam_is_the_base_with_the_gradient_at_the_top_of_the_ball() -> None:
    a = torch.tensor([3.0, 1.0], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    g = a * w.detach()
    expected = w.detach() - 0.1 * a * (w.detach() + 0.05 * g / g.norm())
    _train(SAM([w], lambda p: SGD(p, 0.1), 0.05), w, a, 1)
    assert torch.allclose(w, expected, rtol=1e-14)


def test_sam_needs_its_closure_and_a_radius() -> None:
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match="closure"):
        SAM([w], lambda p: SGD(p, 0.1)).step()
    with pytest.raises(UserError, match="rho must not be negative, got -1"):
        SAM([w], lambda p: SGD(p, 0.1), -1)


def test_sign_methods_take_the_steps_of_their_definition() -> None:
    a = torch.tensor([2.0], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Lion([w], lr=0.25, betas=(0.5, 0.75), weight_decay=0.4)
    _train(optimizer, w, a, 1)
    assert w.item() == pytest.approx(0.9 - 0.25)
    assert float(optimizer.state[w]["exp_avg"]) == pytest.approx(0.25 * 2)
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    other = Signum([w], lr=0.25, momentum=0.5)
    _train(other, w, a, 2)
    assert w.item() == 0.5
    assert float(other.state[w]["momentum_buffer"]) == pytest.approx(0.5 * (0.5 * 2) + 0.5 * 1.5)


@pytest.mark.parametrize("norm", ["linf", "spectral"])
def test_steepest_descent_of_any_norm_is_gradient_descent_on_one_number(norm: str) -> None:
    a = torch.tensor([2.0], dtype=torch.float64)
    one, other = (nn.Parameter(torch.tensor([1.0], dtype=torch.float64)) for _ in range(2))
    _train(SteepestDescent([one], 0.3, norm), one, a, 5)  # type: ignore[arg-type]
    _train(SGD([other], 0.3), other, a, 5)
    assert one.item() == pytest.approx(other.item(), rel=1e-12)
    here = edge(SteepestDescent([one], 0.3, norm))  # type: ignore[arg-type]
    assert here.threshold == pytest.approx(2 / 0.3) and source(here) == "closed form"


def test_two_l2_parts_of_by_shape_lose_stability_where_their_joint_edge_says() -> None:
    """A matrix under SGD and a vector under momentum, coupled by one Hessian: bisection on its scale."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    H = root @ root.T

    def make() -> tuple[ByShape, list[nn.Parameter]]:
        parameters = [
            nn.Parameter(torch.ones(2, 2, dtype=torch.float64)),
            nn.Parameter(torch.ones(2).double()),
        ]
        return ByShape(
            parameters, lambda p: SGD(p, 0.1), lambda p: SGD(p, 0.3, momentum=0.5)
        ), parameters

    def grows(scale: float) -> bool:
        optimizer, parameters = make()

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            w = torch.cat([p.reshape(-1) for p in parameters])
            loss = scale * (w @ H @ w) / 2
            loss.backward()
            return loss

        losses = [float(optimizer.step(closure) or 0) for _ in range(3000)]
        return not losses[-1] < losses[1500] + 1e-300

    optimizer, parameters = make()
    here = reordered(edge(optimizer), parameters)
    dense = here.operator(lambda v: H @ v)(torch.eye(6, dtype=torch.float64))
    predicted = here.threshold / float(torch.linalg.eigvalsh((dense + dense.T) / 2)[-1])
    assert source(here) == "closed form"
    assert not grows(predicted * 0.997) and grows(predicted * 1.003)


def test_muon_with_adamw_is_a_conjecture_of_the_matrices_and_says_so() -> None:
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3))]
    optimizer = ByShape(parameters, lambda p: torch.optim.Muon(p, 0.1), torch.optim.AdamW)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    here = edge(optimizer)
    assert (source(here), here.quantity) == (
        "conjecture",
        "spectral sharpness",
    ) and "matrices alone" in here.reason
    alone, both = edge(optimizer.parts["matrices"]).at(torch.ones(6)), here.at(torch.ones(9))
    assert both.radii[1] == 0 and both.radii[0] > 0
    assert both.threshold == pytest.approx(alone.threshold)
