"""Measures against closed forms in float64, and against rescaling that leaves the function.

Tolerances: closed forms are exact but for rounding (1e-9 relative); eigenvalues have the accuracy
that they are asked for, 1e-3; traces from Hutchinson's estimator have their own error.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optbench import lab
from optbench.errors import UserError
from optbench.lab import Point
from optbench.lab.comparisons import along, function_displacement
from optbench.lab.measures import chosen, known
from optbench.task import Split, Task, cross_entropy, error_of_classes, half_mse

N, D, H, C = 60, 5, 7, 3


@pytest.fixture(autouse=True)
def _float64() -> None:
    torch.manual_seed(0)


def _task(loss: str = "ce", inputs: Tensor | None = None, classes: Tensor | None = None) -> Task:
    x = torch.randn(N, D, dtype=torch.float64) if inputs is None else inputs
    y = torch.arange(len(x)) % C if classes is None else classes
    targets = y if loss == "ce" else F.one_hot(y, C).double()
    splits = Split(x, targets), Split(x + 0.1, targets)
    criterion = cross_entropy if loss == "ce" else half_mse
    return Task(
        splits[0], None, splits[1], C, criterion, error_of_classes if loss == "ce" else None
    )


def _mlp(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, H, bias=bias), nn.ReLU(), nn.Linear(H, C, bias=bias)).double()


def _layer(model: nn.Sequential, place: int = 0) -> nn.Linear:
    layer = model[place]
    assert isinstance(layer, nn.Linear)
    return layer


def _linear(bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, C, bias=bias)).double()


def _value(point: Point, name: str) -> float:
    reading = lab.measure(point, [name])[name]
    assert reading.reason is None, reading.reason
    return reading.value


def _dense(model: nn.Module, task: Task, scale: float = 1.0) -> Tensor:
    """Hessian of the training loss, by torch's own derivatives of a function of one vector."""
    shapes = [p.shape for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    def loss(w: Tensor) -> Tensor:
        parts = w.split([s.numel() for s in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        outputs = torch.func.functional_call(model, weights, (task.train.inputs,))
        return task.loss(outputs / scale, task.train.targets)

    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    found: Tensor = torch.func.hessian(loss)(w)
    return found


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_curvatures_are_those_of_the_dense_hessian(loss: str) -> None:
    model, task = _mlp(), _task(loss)
    point = Point(model, task)
    w = point.weights
    dense = _dense(model, task)
    scaled = w.abs()[:, None] * dense * w.abs()
    scale = float(model(task.train.inputs).detach().square().mean().sqrt())
    at_scale = _dense(model, task, scale)
    expected = {
        "sharpness": torch.linalg.eigvalsh(dense)[-1],
        "adaptive_sharpness": torch.linalg.eigvalsh(scaled)[-1],
        "logit_normalized_sharpness": torch.linalg.eigvalsh(at_scale)[-1],
        "logit_normalized_adaptive_sharpness": torch.linalg.eigvalsh(
            w.abs()[:, None] * at_scale * w.abs()
        )[-1],
    }
    for name, value in expected.items():
        assert _value(point, name) == pytest.approx(float(value), rel=1e-3), name
    for name, matrix in (
        ("trace", dense),
        ("adaptive_trace", scaled),
        ("logit_normalized_trace", at_scale),
    ):
        # one sample has variance 2(‖A‖² − Σ a_ii²), without what deflation takes off it
        spread = 2 * (matrix.square().sum() - matrix.diagonal().square().sum())
        error = 4 * float((spread / 30).sqrt())
        assert _value(point, name) == pytest.approx(float(matrix.trace()), abs=error), name


def test_rates_of_its_own_for_each_layer() -> None:
    model, task = _mlp(), _task()
    groups: list[dict[str, Any]] = [
        {"params": _layer(model, 0).parameters(), "lr": 0.1},
        {"params": _layer(model, 2).parameters()},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.4)
    factors = torch.cat(
        [
            torch.full((p.numel(),), 0.25 if name.startswith("0") else 1.0, dtype=torch.float64)
            for name, p in model.named_parameters()
        ]
    )
    dense = _dense(model, task)
    expected = torch.linalg.eigvalsh(factors.sqrt()[:, None] * dense * factors.sqrt())[-1]
    point = Point(model, task, optimizer)
    assert _value(point, "lr_preconditioned_sharpness") == pytest.approx(float(expected), rel=1e-3)
    equal = Point(model, task, torch.optim.SGD(model.parameters(), 0.1))
    assert _value(equal, "lr_preconditioned_sharpness") == pytest.approx(
        _value(equal, "sharpness"), rel=1e-3
    )


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_relative_flatness_is_the_sum_over_the_blocks_of_the_last_layer(loss: str) -> None:
    model, task = _mlp(), _task(loss)
    dense = _dense(model, task)
    start = sum(p.numel() for p in _layer(model, 0).parameters())
    block = dense[start : start + C * H, start : start + C * H].view(C, H, C, H)
    weight = _layer(model, 2).weight.detach()
    expected = sum(
        float(weight[s] @ weight[t]) * float(block[s, :, t].trace())
        for s in range(C)
        for t in range(C)
    )
    assert _value(Point(model, task), "relative_flatness") == pytest.approx(expected, rel=1e-9)


def test_a_linear_model_has_its_weight_as_jacobian_and_its_products_as_paths() -> None:
    model, task = _linear(), _task()
    weight = _layer(model, 0).weight.detach()
    point = Point(model, task)
    for name in ("input_jacobian_train", "input_jacobian_test"):
        assert _value(point, name) == pytest.approx(float(weight.square().sum()), rel=1e-9)
    assert _value(point, "path_norm") == pytest.approx(float(weight.norm()), rel=1e-9)
    # AGOP is WᵀW itself
    assert _value(point, "agop_alignment") == pytest.approx(1, rel=1e-9)
    assert _value(point, "weight_norm") == pytest.approx(float(weight.norm()), rel=1e-12)


def test_paths_of_a_deep_linear_network_with_positive_weights() -> None:
    """All squared products of paths are the entries of the product of the squared matrices."""
    model = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, C)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.abs_()
    a, b = _layer(model, 0), _layer(model, 2)
    first = a.weight.square() @ torch.ones(D, dtype=torch.float64) + a.bias.square()
    expected = float((b.weight.square() @ first + b.bias.square()).sum().sqrt())
    assert _value(Point(model, _task()), "path_norm") == pytest.approx(expected, rel=1e-9)


def test_the_fisher_rao_norm_of_a_homogeneous_network_is_its_definition() -> None:
    """‖w‖²_F = E⟨w, ∇_w ℓ⟩², which for a homogeneous network is (L+1)² E⟨f, ∂ℓ/∂f⟩²."""
    model, task = _mlp(bias=False), _task()
    squares = []
    for x, y in zip(task.train.inputs, task.train.targets, strict=True):
        loss = task.loss(model(x[None]), y[None])
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        squares.append(
            sum(float((p * g).sum()) for p, g in zip(model.parameters(), slopes, strict=True)) ** 2
        )
    expected = sum(squares) / len(squares)
    assert _value(Point(model, task), "fisher_rao_norm") == pytest.approx(expected, rel=1e-9)


def test_the_margin_of_a_separable_line() -> None:
    """Outputs ±a x for x from 1 to 10: margins 2ax, tenth percentile 1.9·2a, scale a·rms(x)."""
    x = torch.arange(1.0, 11.0, dtype=torch.float64)
    inputs = torch.cat([x, -x])[:, None]
    classes = torch.cat([torch.zeros(10), torch.ones(10)]).long()
    model = nn.Sequential(nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        _layer(model, 0).weight.copy_(torch.tensor([[3.0], [-3.0]]))
    split = Split(inputs, classes)
    point = Point(model, Task(split, None, split, 2, cross_entropy, error_of_classes))
    margins = torch.cat([6 * x, 6 * x])
    expected = float(margins.quantile(0.1)) / (3 * float(x.square().mean().sqrt()))
    assert _value(point, "margin") == pytest.approx(expected, rel=1e-12)


class _Passing(nn.Sequential):
    """Features are the inputs themselves."""


@pytest.mark.parametrize("k", [1, 2, 5])
def test_k_equal_singular_values_have_rank_k(k: int) -> None:
    rows = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0][:k]
    inputs = rows.repeat(12, 1)
    task = _task(inputs=inputs, classes=torch.arange(len(inputs)) % C)
    point = Point(_linear(), task)
    assert _value(point, "effective_rank") == pytest.approx(k, rel=1e-9)
    assert _value(point, "participation_ratio") == pytest.approx(k, rel=1e-9)


def test_a_simplex_is_collapsed_and_noise_is_not() -> None:
    means = 2 * (torch.eye(C, dtype=torch.float64) - 1 / C)
    classes = torch.arange(N) % C
    model = nn.Sequential(nn.Linear(C, C, bias=False)).double()
    with torch.no_grad():
        _layer(model, 0).weight.copy_(5 * means)
    collapsed = Point(model, _task(inputs=means[classes], classes=classes))
    for name in ("nc1", "nc2", "nc3", "nc4"):
        assert _value(collapsed, name) == pytest.approx(0, abs=1e-9), name
    noise = 0.5 * torch.randn(N, C, dtype=torch.float64)
    for c in range(C):  # centred in each class, so that the means stay a simplex
        noise[classes == c] -= noise[classes == c].mean(0)
    spread = Point(model, _task(inputs=means[classes] + noise, classes=classes))
    sigma_w = noise.T @ noise / N
    sigma_b = means.T @ means / C
    expected = float((sigma_w @ torch.linalg.pinv(sigma_b)).trace()) / C
    assert _value(spread, "nc1") == pytest.approx(expected, rel=1e-9)
    assert _value(spread, "nc2") == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        _layer(model, 0).weight.mul_(-1)
    assert _value(Point(model, _task(inputs=means[classes], classes=classes)), "nc3") == (
        pytest.approx(4, rel=1e-9)
    )


def test_the_kernel_of_a_linear_model_is_that_of_its_inputs() -> None:
    model, task = _linear(), _task()
    x, y = task.train.inputs, F.one_hot(task.train.targets, C).double()
    centring = torch.eye(N, dtype=torch.float64) - 1 / N
    a, b = (centring @ (m @ m.T) @ centring for m in (x, y))
    expected = float((a * b).sum() / (a.norm() * b.norm()))
    assert _value(Point(model, task), "ntk_alignment") == pytest.approx(expected, rel=1e-9)


def test_gradients_of_a_linear_regression() -> None:
    """g_i = (f(x_i) − y_i) x_iᵀ."""
    model, task = _linear(), _task("mse")
    residual = (model(task.train.inputs) - task.train.targets).detach()
    each = (residual[:, :, None] * task.train.inputs[:, None, :]).flatten(1)
    mean, variance = each.mean(0), each.var(0, unbiased=False)
    point = Point(model, task)
    assert _value(point, "gsnr") == pytest.approx(float((mean**2 / variance).mean()), rel=1e-9)
    batches = each.view(10, N // 10, -1).mean(1)
    apart = [
        float((batches[i] - batches[j]).norm()) for i in range(10) for j in range(10) if i != j
    ]
    expected = sum(apart) / len(apart)
    assert _value(point, "gradient_disparity") == pytest.approx(expected, rel=1e-9)
    assert _value(point, "gradient_norm") == pytest.approx(float(mean.norm()), rel=1e-9)


def test_an_index_model_has_one_direction() -> None:
    """f(x) = v max(0, aᵀx + 10): every input gradient is along a, and so is W₁ᵀW₁."""
    a = torch.randn(D, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(D, 1), nn.ReLU(), nn.Linear(1, C)).double()
    with torch.no_grad():
        _layer(model, 0).weight.copy_(a[None])
        _layer(model, 0).bias.fill_(100)
    assert _value(Point(model, _task()), "agop_alignment") == pytest.approx(1, rel=1e-9)


ALPHA = 10.0


def _rescaled(model: nn.Sequential) -> nn.Sequential:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in _layer(twin, 0).parameters():
            p.mul_(ALPHA)
        _layer(twin, 2).weight.div_(ALPHA)
    return twin


@pytest.mark.parametrize("name", sorted(m.name for m in known().values() if not m.dear))
def test_rescaling_adjacent_relu_layers_moves_what_says_so(name: str) -> None:
    """α = 10 leaves the function. What claims invariance keeps to 1e-4 relative."""
    model, task = _mlp(), _task()
    before, after = (
        _value(Point(m, task, kernel_examples=20), name) for m in (model, _rescaled(model))
    )
    of = known()[name]
    if of.invariant in ("yes", "global scale only"):  # each layer is scaled as a whole
        # two solves, each good to 1e-3 of λ₁ at the worst and to its square in practice
        assert after == pytest.approx(before, rel=1e-4, abs=1e-9), name
    else:
        assert abs(after - before) > 0.005 * abs(before), name


def test_what_is_measured_is_only_read() -> None:
    model, task = _mlp().train(), _task()
    optimizer = torch.optim.Adam(model.parameters())
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    lab.measure(Point(model, task, optimizer, kernel_examples=10))
    assert torch.equal(torch.rand(2), expected)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def _batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(D, H), nn.BatchNorm1d(H), nn.ReLU(), nn.Linear(H, C)).double()


@pytest.mark.parametrize(
    ("name", "make", "loss", "why"),
    [
        ("path_norm", lambda: nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, C)), "ce",
         "a path norm is of linear layers and ReLUs, and this is Tanh"),
        ("fisher_rao_norm", _batch_norm, "ce", "not homogeneous"),
        ("test_error", _mlp, "mse", "the task has a loss and no error"),
        ("agop_alignment", lambda: nn.Sequential(nn.Unflatten(1, (1, D)), nn.Conv1d(1, 2, D),
                                                 nn.Flatten(), nn.Linear(2, C)), "ce",
         "the first layer is not linear in the whole input"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_absent_with_the_reason(
    name: str, make: Callable[[], nn.Module], loss: str, why: str
) -> None:
    reading = lab.measure(Point(make().double(), _task(loss)), [name])[name]
    assert math.isnan(reading.value) and reading.reason is not None and why in reading.reason


def test_a_regression_has_no_classes() -> None:
    split = Split(torch.randn(9, D).double(), torch.randn(9, C).double())
    point = Point(_linear(), Task(split, None, None, C, half_mse))
    readings = lab.measure(point)
    assert "targets are numbers" in str(readings["margin"].reason)
    assert "no test split" in str(readings["input_jacobian_test"].reason)
    assert readings["sharpness"].reason is None


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"no measure called sharpnes. Did you mean sharpness"):
        chosen(["sharpnes"])
    assert {m.name for m in chosen("all")} < {m.name for m in chosen("everything")} | {"x"}


def test_every_measure_says_what_it_is() -> None:
    for name, of in known().items():
        assert of.name == name and of.meaning and of.equation and of.source and of.unit
        assert of.function.__doc__ and len(of.meaning) < 100


def test_displacement_of_a_linear_model_is_in_closed_form() -> None:
    """Two classes, outputs (z, 0): the shares are σ(z), and both move alike."""
    model, twin = (nn.Sequential(nn.Linear(D, 2, bias=False)).double() for _ in range(2))
    x = torch.randn(N, D, dtype=torch.float64)
    split = Split(x, torch.arange(N) % 2)
    task = Task(split, None, split, 2, cross_entropy, error_of_classes)
    shares = [
        torch.sigmoid((_layer(m).weight[0] - _layer(m).weight[1]) @ x.T).detach()
        for m in (model, twin)
    ]
    expected = float((shares[0] - shares[1]).square().mean().sqrt())
    assert function_displacement(Point(model, task), Point(twin, task)) == pytest.approx(
        expected, rel=1e-9
    )
    assert function_displacement(Point(model, task), Point(model, task)) == 0


def test_a_step_on_a_quadratic_is_exact() -> None:
    model, task = _linear(), _task("mse")
    point = Point(model, task)
    value, gradient = point.value_and_gradient
    step = -0.3 * gradient + 0.1 * torch.randn_like(gradient)
    found = along(point, step)
    # L(w + td) at the best t, from three values of a parabola
    losses = []
    for t in (0.0, 1.0, 2.0):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            _layer(twin, 0).weight.add_(t * step.view(C, D))
        losses.append(float(task.loss(twin(task.train.inputs), task.train.targets)))
    bend = losses[2] - 2 * losses[1] + losses[0]
    slope = losses[1] - losses[0] - bend / 2
    assert losses[0] == pytest.approx(value, rel=1e-12)
    assert found.curvature * float(step @ step) == pytest.approx(bend, rel=1e-7)
    assert found.best_gain == pytest.approx(slope**2 / (2 * bend), rel=1e-7)
    identity = (
        2 * math.log(found.alignment)
        - math.log(found.curvature)
        + 2 * math.log(float(gradient.norm()))
        - math.log(2)
    )
    assert math.log(found.best_gain) == pytest.approx(identity, abs=1e-9)
