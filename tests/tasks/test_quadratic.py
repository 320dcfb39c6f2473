import pytest
import torch
from optbench.tasks.quadratic import quadratic

from optbench.errors import UserError
from optbench.models.mlp import mlp

SPECTRUM = [7.0, 3.0, 1.0, 0.0]


@pytest.mark.parametrize("rotate", [True, False])
def test_the_hessian_has_the_given_spectrum(rotate: bool) -> None:
    task = quadratic(0, SPECTRUM, rotate)
    model = mlp(task.input_shape, task.output_width, widths=[], bias=False).double()
    x, y = task.train.inputs.double(), task.train.targets.double()
    w = next(model.parameters())

    def loss(v: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = task.loss(x @ v.T, y)
        return value

    H = torch.autograd.functional.hessian(loss, w.detach()).reshape(4, 4)
    # The inputs are float32: √λ is off by 6e-8, λ by twice that, relative to the largest.
    torch.testing.assert_close(
        torch.linalg.eigvalsh(H).flip(0),
        torch.tensor(SPECTRUM, dtype=torch.float64),
        rtol=0,
        atol=7 * 4e-7,
    )
    assert (
        (H - H.diag().diag()).abs().max() > 0.1
        if rotate
        else (H - H.diag().diag()).abs().max() < 1e-6
    )


@pytest.mark.parametrize("spectrum", [[], [1.0, -1.0], [float("inf")], [float("nan")]])
def test_what_is_no_spectrum_is_refused(spectrum: list[float]) -> None:
    with pytest.raises(UserError, match="finite numbers, none negative"):
        quadratic(0, spectrum)


def test_a_power_law_is_a_spectrum() -> None:
    law = quadratic(0, {"size": 4, "exponent": 2, "largest": 8})
    assert torch.equal(law.train.inputs, quadratic(0, [8, 2, 8 / 9, 0.5]).train.inputs)
    with pytest.raises(UserError, match=r"needs size \(at most 10000\), exponent and largest"):
        quadratic(0, {"size": 4})


def test_noise_adds_a_floor_and_gradient_noise_shaped_by_the_hessian() -> None:
    """At w = 0 the gradients −y_i x_i of the examples have mean 0 and covariance σ²H."""
    task = quadratic(0, SPECTRUM, noise=0.5, copies=4)
    x, y = task.train.inputs.double(), task.train.targets.double()
    H = x.T @ x / len(x)
    w = torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Inputs are float32, so that H is off by 1.2e-7 of its largest eigenvalue.
    assert float(task.loss(x @ w, y)) == pytest.approx(
        float(w.T @ H @ w / 2 + 0.5**2 / 2), rel=1e-6
    )
    assert task.facts["optimum"] == 0.5**2 / 2
    gradients = -y * x
    torch.testing.assert_close(
        gradients.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(gradients.T @ gradients / len(x), 0.25 * H, rtol=0, atol=1e-6)


def test_the_noise_of_random_batches_is_as_large_as_stated() -> None:
    """Covariance σ²H (N − b)/(b(N − 1)) of the mean of b gradients without replacement: its trace, from 4,000 draws."""
    task = quadratic(0, SPECTRUM, noise=0.5, copies=4)
    N, b = len(task.train), 5
    gradients = -task.train.targets * task.train.inputs
    generator = torch.Generator().manual_seed(0)
    means = torch.stack(
        [gradients[torch.randperm(N, generator=generator)[:b]].mean(0) for _ in range(4000)]
    )
    expected = 0.25 * sum(SPECTRUM) * (N - b) / (b * (N - 1))
    # about 4 standard errors
    assert float(means.square().sum(1).mean()) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": 1.0}, "copies must be even, got 1"),
    ],
)
def test_impossible_noise_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        quadratic(0, SPECTRUM, **settings)
