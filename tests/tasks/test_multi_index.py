import pytest
import torch
from optbench.tasks.multi_index import LINKS, multi_index

from optbench.errors import UserError


@pytest.mark.parametrize("link", LINKS)
def test_every_link_has_mean_0_mean_square_1_and_its_information_exponent(link: str) -> None:
    """By the trapezium rule on a fine grid; the kinks and jumps cost 1e-4."""
    function, exponent = LINKS[link]
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5

    def mean(values: torch.Tensor) -> float:
        return float(torch.trapezoid(values * density, z))

    y = function(z)
    assert mean(y) == pytest.approx(0, abs=1e-4) and mean(y**2) == pytest.approx(1, abs=1e-4)
    hermite = [z, z**2 - 1, z**3 - 3 * z, z**4 - 6 * z**2 + 3]
    first = next(i for i, polynomial in enumerate(hermite, 1) if abs(mean(y * polynomial)) > 1e-3)
    assert first == exponent


@pytest.mark.parametrize("combine", ["sum", "staircase"])
@pytest.mark.parametrize("directions", [1, 3])
def test_predicting_zero_has_loss_one_half(combine: str, directions: int) -> None:
    task = multi_index(0, directions=directions, link="linear", combine=combine, train_size=200_000)
    assert float(task.train.targets.mean()) == pytest.approx(0, abs=0.02)
    assert float(task.loss(torch.zeros(200_000, 1), task.train.targets)) == pytest.approx(
        0.5, abs=0.02
    )


def test_targets_depend_on_the_hidden_directions_only() -> None:
    """A sum of two linear functions is linear, with a weight of norm 1; least squares finds it exactly."""
    task = multi_index(0, directions=2, link="linear")
    solution = torch.linalg.lstsq(task.train.inputs, task.train.targets)
    residual = task.train.inputs @ solution.solution - task.train.targets
    assert float(residual.abs().max()) < 1e-4
    assert float(solution.solution.norm()) == pytest.approx(1, abs=1e-4)
    assert task.test is not None
    torch.testing.assert_close(
        task.test.inputs @ solution.solution, task.test.targets, rtol=0, atol=1e-4
    )


def test_noise_is_in_the_training_targets_only() -> None:
    plain, noisy = multi_index(0), multi_index(0, noise=0.3)
    difference = noisy.train.targets - plain.train.targets
    assert float(difference.std()) == pytest.approx(0.3, rel=0.06)  # 2,000 draws: 4 standard errors
    assert (
        plain.test is not None
        and noisy.test is not None
        and torch.equal(plain.test.targets, noisy.test.targets)
    )


def test_more_examples_generalise_and_few_do_not() -> None:
    """The sample complexity in closed form: polynomial regression of degree 2 needs d(d+3)/2 + 1 = 66 coefficients."""

    def test_loss(N: int) -> float:
        task = multi_index(0, dimension=10, train_size=N)
        assert task.test is not None

        def features(x: torch.Tensor) -> torch.Tensor:
            i, j = torch.triu_indices(10, 10)
            return torch.cat([torch.ones(len(x), 1), x, x[:, i] * x[:, j]], 1).double()

        w = torch.linalg.lstsq(
            features(task.train.inputs), task.train.targets.double(), driver="gelsd"
        ).solution
        return float(task.loss(features(task.test.inputs) @ w, task.test.targets))

    assert test_loss(40) > 0.1 and test_loss(80) < 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"link": "he22"}, r"got he22\. Did you mean he2"),
        ({"directions": 21}, "between 1 and task.dimension=20, got 21"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        multi_index(0, **settings)
