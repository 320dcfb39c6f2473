import math

import pytest
import torch
from optbench.tasks.deep_linear import deep_linear
from torch import Tensor, nn

from optbench.curvature import Hessian, top_eigenpairs
from optbench.errors import UserError
from optbench.models.deep_linear import deep_linear as network
from optbench.task import Task


def _map(task: Task) -> Tensor:
    x, y = task.train.inputs.double(), task.train.targets.double()
    return y.T @ x / len(x)


def _aligned(task: Task, strengths: Tensor, depth: int) -> nn.Module:
    """Balanced weights whose product has the singular vectors of A and these strengths, in float64."""
    U, _, Vt = torch.linalg.svd(_map(task), full_matrices=False)
    root = strengths.double() ** (1 / depth)
    k = len(strengths)
    model = network(task.input_shape, task.output_width, width=k, depth=depth).double()
    with torch.no_grad():
        layers = [layer for layer in model if isinstance(layer, nn.Linear)]  # type: ignore[attr-defined]
        for i, layer in enumerate(layers):
            left = U[:, :k] if i == depth - 1 else torch.eye(k, dtype=torch.float64)
            right = Vt[:k] if i == 0 else torch.eye(k, dtype=torch.float64)
            layer.weight.copy_(left @ root.diag() @ right)
    return model


def test_inputs_are_white_and_the_map_has_the_given_singular_values() -> None:
    task = deep_linear(0, modes=[4, 2, 1, 0.5])
    x = task.train.inputs.double()
    torch.testing.assert_close(
        x.T @ x / len(x), torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        torch.linalg.svdvals(_map(task))[:4],
        torch.tensor([4, 2, 1, 0.5], dtype=torch.float64),
        rtol=0,
        atol=1e-6,
    )
    assert task.facts["plateaus"] == pytest.approx([10.625, 2.625, 0.625, 0.125, 0])
    assert float(task.loss(torch.zeros(16, 4), task.train.targets)) == pytest.approx(
        10.625, rel=1e-6
    )


def test_modes_grow_as_the_closed_form_says() -> None:
    """Gradient descent with step η follows a(t) = s/(1 + (s/a₀ − 1)e^(−2st)), t = ηk, to O(η) of its size."""
    task, s, start, lr = deep_linear(0), torch.tensor([2, 1, 0.5, 0.25]), 1e-3, 1e-3
    task = task.to(torch.device("cpu"), torch.float64)
    model = _aligned(task, torch.full((4,), start), depth=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    worst = 0.0
    for step in range(8001):
        if step % 500 == 0:
            weights = [p.detach() for p in model.parameters()]
            measured = torch.linalg.svdvals(weights[1] @ weights[0])
            exact = s.double() / (1 + (s / start - 1) * torch.exp(-2 * s.double() * lr * step))
            worst = max(worst, float((measured - exact).abs().max()))
        optimizer.zero_grad()
        task.loss(model(task.train.inputs), task.train.targets).backward()
        optimizer.step()
    assert float((measured[:2] - s[:2]).abs().max()) < 1e-2  # the two strongest are learnt by then
    assert worst < 0.01  # an error of ηs = 2e-3 relative in the growth rate, times s·ln(s/a₀)/2


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_sharpness_of_the_balanced_minimum_is_that_of_the_flattest(depth: int) -> None:
    task = deep_linear(0).to(torch.device("cpu"), torch.float64)
    model = _aligned(task, torch.tensor([2, 1, 0.5, 0.25]), depth)
    data = (task.train.inputs, task.train.targets)
    sharpness = float(top_eigenpairs(Hessian(model, task.loss, data), accuracy=1e-8).values[0])
    # inputs are float32: 1e-7
    assert sharpness == pytest.approx(depth * 2 ** (2 - 2 / depth), rel=1e-6)


def test_from_small_weights_it_goes_from_saddle_to_saddle() -> None:
    """The loss lingers at each plateau ½ Σ_{i>k} s_i² of the task: it spends its time near them, not between."""
    task = deep_linear(0)
    torch.manual_seed(0)
    model = network(task.input_shape, task.output_width, scale=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(1500):
        optimizer.zero_grad()
        loss = task.loss(model(task.train.inputs), task.train.targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    plateaus = task.facts["plateaus"]
    assert isinstance(plateaus, list)
    for plateau in plateaus[:-1]:
        assert sum(abs(loss - plateau) < 0.05 * plateau for loss in losses) >= 20, plateau
    assert losses[-1] < 1e-4 and not math.isnan(losses[-1])


@pytest.mark.parametrize("modes", [[], [1, 2], [1, 0], [1] * 5])
def test_impossible_modes_are_refused(modes: list[float]) -> None:
    with pytest.raises(UserError, match="between 1 and 4 positive numbers, descending"):
        deep_linear(0, modes=modes)
