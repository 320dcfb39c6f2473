"""The multiplier of the training map, against eigenvalues that are known in closed form."""

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from optbench.curvature.errors import MeasurementError
from optbench.dynamics.critical_rate import critical_rate
from optbench.dynamics.oscillating_eigenvalue import Multiplier, multiplier, orbit_multiplier
from optbench.dynamics.training_map import TrainingMap
from optbench.optimizers.by_shape import ByShape
from optbench.optimizers.lookahead import Lookahead
from optbench.optimizers.sam import SAM
from optbench.optimizers.sign import Lion, Signum
from optbench.task import half_mse

Make = Callable[[Iterable[nn.Parameter]], Optimizer]
CURVATURES = torch.tensor([1.0, 0.5, 0.2, 0.05], dtype=torch.float64)
START = torch.tensor([1.0, 2.0, 3.0, -1.0], dtype=torch.float64)
NOTHING = torch.zeros(1), torch.zeros(1)


class Point(nn.Module):
    """A model whose output is its weights."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.w


def _quadratic(outputs: Tensor, targets: Any) -> Tensor:
    return 0.5 * (CURVATURES * outputs**2).sum()


def _trained(
    make: Make, steps: int = 30, loss: Callable[[Tensor, Any], Tensor] = _quadratic
) -> tuple[Point, Optimizer]:
    point = Point(START)
    optimizer = make([point.w])

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = loss(point.w, None)
            value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
    return point, optimizer


def _found(make: Make, steps: int = 30) -> tuple[Multiplier, TrainingMap]:
    point, optimizer = _trained(make, steps)
    map_ = TrainingMap(point, _quadratic, NOTHING, optimizer)
    found = multiplier(map_.product, map_.size, check=partial(map_.product, step=2e-4))
    assert found.residual < 1e-3 and found.disagreement < 1e-6
    return found, map_


def _matrix(map_: TrainingMap) -> np.ndarray[Any, Any]:
    columns = [map_.product(e) for e in torch.eye(map_.size, dtype=torch.float64)]
    return torch.stack(columns, 1).numpy()


def _same_spectrum(map_: TrainingMap, blocks: Iterable[Any]) -> None:
    """Every eigenvalue to 1e-6: differences err by h² = 1e-8 and rounding/h = 1e-10, relatively."""
    expected = np.sort_complex(np.concatenate([np.linalg.eigvals(np.array(b)) for b in blocks]))
    found = np.sort_complex(np.linalg.eigvals(_matrix(map_)).astype(complex))
    for value in expected:
        assert np.abs(found - value).min() < 1e-6
    assert len(found) == len(expected)


@pytest.mark.parametrize("lr", [0.5, 1.9, 2.0, 2.1])
def test_gradient_descent_is_one_minus_eta_lambda(lr: float) -> None:
    found, map_ = _found(lambda p: torch.optim.SGD(p, lr, weight_decay=0.01))
    _same_spectrum(map_, [[[1 - lr * (a + 0.01)]] for a in CURVATURES.tolist()])
    assert found.value == pytest.approx(min(1 - lr * (a + 0.01) for a in CURVATURES.tolist()))


@pytest.mark.parametrize("lr", [0.5, 1.0, 3.7, 3.8, 3.9])
def test_heavy_ball_has_complex_pairs_below_its_edge_and_minus_one_at_it(lr: float) -> None:
    beta = 0.9
    found, map_ = _found(lambda p: torch.optim.SGD(p, lr, momentum=beta))
    # m' = βm + λw, w' = w − ηm'
    _same_spectrum(map_, [[[1 - lr * a, -lr * beta], [a, beta]] for a in CURVATURES.tolist()])
    roots = [z for a in CURVATURES.tolist() for z in np.roots([1, -(1 + beta - lr * a), beta])]
    turning = [abs(z) for z in roots if abs(np.angle(z)) >= math.pi / 6]
    assert found.growth == pytest.approx(max(turning), abs=1e-6)
    assert (found.growth >= 1 - 1e-9) == (lr >= 2 * (1 + beta))
    assert (found.value.imag > 0.01) == (lr < 3.75)  # z² − (1+β−ηλ)z + β turns real at ηλ = (1+√β)²


def test_nesterov() -> None:
    lr, beta = 1.3, 0.9
    found, map_ = _found(lambda p: torch.optim.SGD(p, lr, momentum=beta, nesterov=True), 5)
    # m' = βm + λw, w' = w − η(λw + βm')
    _same_spectrum(
        map_,
        [[[1 - lr * a * (1 + beta), -lr * beta**2], [a, beta]] for a in CURVATURES.tolist()],
    )
    edge = (2 + 2 * beta) / (1 + 2 * beta)
    assert (found.growth > 1) == (lr > edge)


@pytest.mark.parametrize(("lr", "decay"), [(0.01, 0.0), (2.0, 0.0), (8.0, 0.02)])
def test_adam_with_its_second_moment(lr: float, decay: float) -> None:
    beta1, beta2, eps = 0.9, 0.99, 1e-8
    make = partial(torch.optim.AdamW, lr=lr, betas=(beta1, beta2), weight_decay=decay)
    point, optimizer = _trained(make)
    state = optimizer.state[point.w]
    t = float(state["step"]) + 1
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    blocks = []
    for a, w, m, v in zip(
        CURVATURES.tolist(),
        point.w.tolist(),
        state["exp_avg"].tolist(),
        state["exp_avg_sq"].tolist(),
        strict=True,
    ):
        m, v = beta1 * m + (1 - beta1) * a * w, beta2 * v + (1 - beta2) * (a * w) ** 2
        root = math.sqrt(v / c2)
        dm = np.array([(1 - beta1) * a, beta1, 0.0])
        dv = np.array([2 * (1 - beta2) * a * a * w, 0.0, beta2])
        # w' = (1−ηλ)w − η (m/c₁)/(√(v/c₂) + ε)
        dw = np.array([1 - lr * decay, 0.0, 0.0]) - lr / c1 * (
            dm / (root + eps) - m / (root + eps) ** 2 * dv / (2 * c2 * root)
        )
        blocks.append([dw, dm, dv])
    map_ = TrainingMap(point, _quadratic, NOTHING, optimizer)
    _same_spectrum(map_, blocks)


def test_rmsprop_with_its_second_moment() -> None:
    lr, alpha, eps = 0.5, 0.99, 1e-8
    point, optimizer = _trained(partial(torch.optim.RMSprop, lr=lr, alpha=alpha), 3)
    squares = optimizer.state[point.w]["square_avg"].tolist()
    blocks = []
    for a, w, v in zip(CURVATURES.tolist(), point.w.tolist(), squares, strict=True):
        v = alpha * v + (1 - alpha) * (a * w) ** 2
        root = math.sqrt(v)
        dv = np.array([2 * (1 - alpha) * a * a * w, alpha])
        change = np.array([a, 0.0]) / (root + eps) - a * w / (root + eps) ** 2 * dv / (2 * root)
        blocks.append([np.array([1.0, 0.0]) - lr * change, dv])
    _same_spectrum(TrainingMap(point, _quadratic, NOTHING, optimizer), blocks)


def test_sam_differentiates_its_ascent() -> None:
    lr, rho = 1.7, 0.3
    point, optimizer = _trained(lambda p: SAM(p, lambda q: torch.optim.SGD(q, lr), rho))

    def step(w: Tensor) -> Tensor:
        g = CURVATURES * w
        after: Tensor = w - lr * CURVATURES * (w + rho * g / g.norm())
        return after

    jacobian = torch.autograd.functional.jacobian(step, point.w.detach())
    _same_spectrum(TrainingMap(point, _quadratic, NOTHING, optimizer), [jacobian.numpy()])


def test_steps_of_one_size_have_no_response() -> None:
    assert _found(lambda p: Signum(p, 0.01, momentum=0))[0].value == pytest.approx(1)
    _, map_ = _found(lambda p: Signum(p, 0.01, momentum=0.9))
    _same_spectrum(map_, [[[1.0, 0.0], [0.1 * a, 0.9]] for a in CURVATURES.tolist()])
    _, map_ = _found(lambda p: Lion(p, 0.01, betas=(0.9, 0.99)))
    _same_spectrum(map_, [[[1.0, 0.0], [0.01 * a, 0.99]] for a in CURVATURES.tolist()])


def test_lookahead_pulls_back_in_its_last_step_only() -> None:
    def make(params: Iterable[nn.Parameter]) -> Optimizer:
        return Lookahead(params, lambda q: torch.optim.SGD(q, 1.9), k=3, alpha=0.5)

    for steps, pulls in ((3, False), (5, True)):
        _, map_ = _found(make, steps)
        rates = (1 - 1.9 * CURVATURES).tolist()
        # slow' = w' = slow + α(w − ηλw − slow), where it pulls
        pulled = [[[0.5 * r, 0.5], [0.5 * r, 0.5]] for r in rates]
        _same_spectrum(map_, pulled if pulls else [[[r]] for r in rates])


def test_the_map_of_a_network_is_one_minus_eta_h() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))  # in float32
    x, y = torch.randn(9, 3), torch.randn(9, 2)
    lr = 2.0
    map_ = TrainingMap(net, half_mse, (x, y), torch.optim.SGD(net.parameters(), lr))
    twin = copy.deepcopy(net).double()
    names, sizes = [n for n, _ in twin.named_parameters()], [p.numel() for p in twin.parameters()]
    shapes = [p.shape for p in twin.parameters()]

    def loss(flat: Tensor) -> Tensor:
        pieces = [p.reshape(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]
        weights = dict(zip(names, pieces, strict=True))
        return half_mse(torch.func.functional_call(twin, weights, (x.double(),)), y.double())

    flat = nn.utils.parameters_to_vector(twin.parameters()).detach()
    hessian = torch.autograd.functional.hessian(loss, flat)
    assert np.abs(_matrix(map_) - (torch.eye(len(flat)) - lr * hessian).numpy()).max() < 1e-6


def _conv() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    return net, torch.randn(5, 1, 4, 4), torch.randn(5, 2)


MAKES: dict[str, Make] = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "sam": lambda p: SAM(p, lambda q: torch.optim.SGD(q, 0.1, momentum=0.9)),
    "muon": lambda p: ByShape(p, lambda q: torch.optim.Muon(q, 0.02), torch.optim.AdamW),
    "lookahead": lambda p: Lookahead(p, torch.optim.AdamW, k=2),
}


@pytest.mark.parametrize("name", MAKES)
def test_the_copy_steps_as_the_run_does_and_the_run_is_left_alone(name: str) -> None:
    """In float32 the run itself; a view of a convolution moves the convolution of the copy."""
    net, x, y = _conv()
    optimizer = MAKES[name](net.parameters())
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))  # replaces `step`

    def step() -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = half_mse(net(x), y)
                loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]

    for _ in range(5):
        step()
        schedule.step()
    before = copy.deepcopy([net.state_dict(), optimizer.state_dict()])
    rng = torch.get_rng_state()
    map_ = TrainingMap(net, half_mse, (x, y), optimizer)
    start, image = (t.clone() for t in (map_._origin, map_._image))
    map_.product(torch.ones(map_.size, dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.get_default_dtype() == torch.float32
    assert str(before) == str([net.state_dict(), optimizer.state_dict()])
    weights = sum(p.numel() for p in net.parameters())
    assert torch.equal(start[:weights].float(), nn.utils.parameters_to_vector(net.parameters()))
    step()
    true = nn.utils.parameters_to_vector(net.parameters()).detach().double()
    moved = float((true - start[:weights]).norm())
    # Muon's own bfloat16 is 3 digits, the run's float32 seven
    error = (0.02 if name == "muon" else 1e-4) * moved + 1e-7 * float(true.norm())
    assert float((image[:weights] - true).norm()) < error


def test_an_optimizer_that_reaches_out_of_its_copy_is_refused() -> None:
    point, optimizer = _trained(lambda p: torch.optim.SGD(p, 0.1))
    handle = optimizer.register_step_post_hook(lambda *_: None)
    with pytest.raises(MeasurementError, match="hook"):
        TrainingMap(point, _quadratic, NOTHING, optimizer)
    handle.remove()
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign, assignment]
    with pytest.raises(MeasurementError, match="replaced"):
        TrainingMap(point, _quadratic, NOTHING, optimizer)


@pytest.mark.parametrize("of", ["dropout", "muon"])
def test_differences_survive_random_masks_and_a_step_in_bfloat16(of: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))
    x, y = torch.randn(9, 3), torch.randn(9, 2)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    optimizer = sgd if of == "dropout" else MAKES["muon"](net.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        half_mse(net(x), y).backward()
        optimizer.step()
    map_ = TrainingMap(net, half_mse, (x, y), optimizer)
    v = torch.randn(map_.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, two = (map_.product(v, step=h) for h in (1e-4, 2e-4))
    assert float((one - two).norm()) < 1e-5 * float(one.norm())


class Refuses(torch.optim.SGD):
    """Takes no float64, as MPS does not."""

    def step(self, closure: Any = None) -> Any:
        closure()
        if self.param_groups[0]["params"][0].dtype == torch.float64:
            raise TypeError("no float64 here")


def test_a_step_that_fails_in_float64_says_so() -> None:
    net = nn.Linear(2, 1)
    with pytest.raises(MeasurementError, match="no float64 here"):
        TrainingMap(net, half_mse, (torch.ones(1, 2), torch.ones(1, 1)), Refuses(net.parameters()))


def test_arnoldi_finds_what_oscillates_most_among_drifts_and_slow_modes() -> None:
    g = torch.Generator().manual_seed(0)
    n = 200
    values = torch.linspace(0.2, 1.05, n, dtype=torch.float64)  # drifts beyond +1 included
    values[0] = -1.02
    skew = torch.eye(n) + 0.2 * torch.randn(n, n, generator=g, dtype=torch.float64) / math.sqrt(n)
    matrix = skew @ torch.diag(values) @ torch.linalg.inv(skew)
    found = multiplier(lambda y: matrix @ y, n)
    assert found.converged and found.products < 20
    assert found.value.imag == 0 and found.value.real == pytest.approx(-1.02, abs=2e-3)
    assert found.residual < 2e-3
    again = multiplier(lambda y: matrix @ y, n, found.vector)
    assert again.products <= found.products
    matrix[:2] = matrix[:, :2].T.mul_(0)  # a pair 1.1 e^{±i 60°} of its own
    matrix[0, 0] = matrix[1, 1] = 0.55
    matrix[0, 1], matrix[1, 0] = -1.1 * math.sin(math.pi / 3), 1.1 * math.sin(math.pi / 3)
    pair = multiplier(lambda y: matrix @ y, n, tolerance=1e-6)
    assert pair.growth == pytest.approx(1.1, abs=1e-5) and pair.angle == pytest.approx(1 / 3)


def test_what_does_not_oscillate_is_the_leftmost() -> None:
    found, _ = _found(lambda p: torch.optim.SGD(p, 0.3))
    assert found.value == pytest.approx(0.7)


def test_an_oscillation_of_period_two_is_judged_over_both_of_its_steps() -> None:
    """GD on ¼w⁴ − ½w²: one side of its cycle is beyond −1, and the product says whether it lasts."""
    lr = 1.1

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        u = outputs[0] - 0.1
        hump = u**4 / 4 - u**2 / 2
        return hump + 0.5 * (torch.tensor([0.0, 0.01, -0.01, 0.1]) * outputs**2).sum()

    point, optimizer = _trained(lambda p: torch.optim.SGD(p, lr), 400, loss)
    a = float(point.w.detach()[0]) - 0.1
    b = a - lr * (a**3 - a)
    rates = [1 - lr * (3 * w * w - 1) for w in (a, b)]
    assert abs(b - lr * (b**3 - b) - a) < 1e-9  # a cycle
    assert min(rates) < -1 < max(rates) and abs(rates[0] * rates[1]) < 1
    map_ = TrainingMap(point, loss, NOTHING, optimizer)
    # by dense matrices, the mode being the first axis whichever side it is on
    axis = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    two = orbit_multiplier(partial(map_.product, updates=2), map_.size, axis)
    assert two.value.real == pytest.approx(rates[0] * rates[1], abs=1e-6)


@pytest.mark.parametrize(
    ("make", "threshold"),
    [
        (lambda p, lr: torch.optim.SGD(p, lr), 2.0),
        (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), 3.8),
        (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True), 3.8 / 2.8),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.95, 1.2])
def test_the_distance_is_eta_lambda_over_the_threshold(
    make: Callable[..., Optimizer], threshold: float, share: float
) -> None:
    found, map_ = _found(lambda p: make(p, share * threshold), 4)
    assert critical_rate(map_, found).distance == pytest.approx(share, rel=6e-3)


def test_copies_hold_the_state_that_is_asked_for_and_the_map_goes_on_from_it() -> None:
    model, optimizer = _trained(lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9))
    step = TrainingMap(model, _quadratic, NOTHING, optimizer)
    x = step.image(step.origin) + 0.25
    held, copied = step.copies(x)
    (w,), (buffer,) = held.parameters(), [s["momentum_buffer"] for s in copied.state.values()]
    torch.testing.assert_close(torch.cat([w.detach(), buffer]), x, rtol=0, atol=0)
    again = TrainingMap(held, _quadratic, NOTHING, copied)
    torch.testing.assert_close(again.image(again.origin), step.image(x), rtol=0, atol=0)
    assert not torch.equal(model.w, w), "the run is only read"
