from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from optbench.curvature import Hessian, Operator, audit, rayleigh, top_eigenpairs, trace
from optbench.curvature.eigen import solver
from optbench.curvature.eigen.bounds import error_bounds
from optbench.data.torchvision import import_datasets
from perf.cases import digits, digits_run, half_mse, mlp

from .helpers import EPS, Matrix, dense_hessian, small, with_spectrum


def scipy_top(operator: Operator, k: int) -> Tensor:
    def matvec(v: object) -> object:
        return (operator @ torch.from_numpy(np.asarray(v).ravel())).numpy()

    linear = LinearOperator(operator.shape, matvec=matvec, dtype=np.float64)
    values = eigsh(linear, k=k, which="LA", tol=1e-11, return_eigenvectors=False)
    return torch.from_numpy(np.sort(values)[::-1].copy())


@example(values=[0.0, 5.2478750400612765e-279], k=1, guards=1, seed=0)
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=1, max_size=30),
    k=st.integers(1, 5),
    guards=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_any_spectrum(values: list[float], k: int, guards: int, seed: int) -> None:
    spectrum = torch.tensor(values, dtype=torch.float64).sort(descending=True).values
    k = min(k, len(values))
    A = Matrix(with_spectrum(spectrum, seed))
    pairs = top_eigenpairs(A, k, accuracy=1e-8, guards=guards, seed=seed)
    # Rounding of a product: ~P·ε·‖A‖ ≤ 30·2.2e-16·10, amplified little by Rayleigh-Ritz.
    rounding = 1e-12
    assert pairs.converged
    assert (pairs.values <= spectrum[:k] + rounding).all()
    distance = (pairs.values.unsqueeze(1) - spectrum).abs().min(1).values
    assert (distance <= pairs.residuals + rounding).all()
    gram = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(k).double(), rtol=0, atol=1e-12)
    image = A @ pairs.vectors
    seen = (image - pairs.vectors * pairs.values).norm(dim=0)
    torch.testing.assert_close(seen, pairs.residuals, rtol=0, atol=rounding)


@pytest.mark.parametrize("accuracy", [5e-3, 1e-4, 1e-6, 1e-9])
def test_bounds_hold_where_a_block_comes_three_times_over(accuracy: float) -> None:
    """Nearly equal copies of a spectrum, one per output, as a layer's Hessian under ½-MSE has."""
    block = torch.tensor([59.0, 30.4, 20.0, 12.0, 7.0, 4.0, 2.0, 1.0, *[0.1] * 12]).double()
    spectrum = (
        torch.cat([block * (1 + 1e-5 * copy) for copy in range(3)]).sort(descending=True).values
    )
    for seed in range(20):
        pairs = top_eigenpairs(Matrix(with_spectrum(spectrum, seed)), accuracy=accuracy, seed=seed)
        assert pairs.converged
        # rounding, as above
        assert float(spectrum[0] - pairs.values[0]) <= float(pairs.bounds[0]) + 1e-12


@pytest.mark.parametrize("k", [1, 4])
def test_multiple_and_negative_eigenvalues(k: int) -> None:
    spectrum = torch.tensor([2.0, 2.0, 2.0, 1.99, 1.0, *[0.0] * 30, -5.0]).double()
    A = Matrix(with_spectrum(spectrum))
    pairs = top_eigenpairs(A, k, accuracy=1e-10)
    torch.testing.assert_close(pairs.values, spectrum[:k], rtol=0, atol=2e-10)
    lowest = top_eigenpairs(-A, 1, accuracy=1e-10)
    torch.testing.assert_close(-lowest.values, spectrum[-1:], rtol=0, atol=5e-10)


def test_zero_and_definite_matrices() -> None:
    assert top_eigenpairs(Matrix(torch.zeros(5, 5).double())).values.tolist() == [0.0]
    below = top_eigenpairs(Matrix(with_spectrum(-torch.arange(1.0, 20).double())), accuracy=1e-9)
    assert abs(float(below.values[0]) + 1) <= 1e-8


def test_against_scipy_and_curvlinops() -> None:
    import_datasets()
    from curvlinops import HessianLinearOperator, hutchinson_trace

    model, data, run = digits_run(0, steps=400)
    for _ in run:
        pass
    H = Hessian(model, half_mse, data, dtype=torch.float64, strategy="cached")
    pairs = top_eigenpairs(H, 4, accuracy=1e-9)
    expected = scipy_top(H, 4)
    torch.testing.assert_close(pairs.values, expected, rtol=0, atol=1e-8)
    assert (expected - pairs.values <= pairs.bounds + 1e-11).all()
    double = mlp(64, 32, 32, 10).double()
    double.load_state_dict(model.state_dict())
    inputs, targets = (t.double() for t in data)

    class Loss(torch.nn.MSELoss):
        """curvlinops asks for a torch loss: MSELoss is 2/C of ours."""

    theirs = HessianLinearOperator(double, Loss(), list(double.parameters()), [(inputs, targets)])
    v = torch.randn(H.size, dtype=torch.float64)
    torch.testing.assert_close(5 * (theirs @ v), H @ v, rtol=1e-12, atol=1e-12)
    linear = LinearOperator(
        H.shape, matvec=lambda v: (theirs @ torch.from_numpy(v.ravel())).numpy(), dtype=np.float64
    )
    top = eigsh(linear, k=1, which="LA", tol=1e-11, return_eigenvectors=False)[0]
    assert float(pairs.values[0]) == pytest.approx(5 * top, abs=1e-8)
    torch.manual_seed(0)  # theirs draws from the global generator
    other = 5 * float(hutchinson_trace(theirs, 300, "rademacher"))
    wide = trace(H, 300)
    narrow = trace(H, 300, deflate=pairs)
    # Two estimates with one standard error each, five of the two together; and ours with the pairs
    # taken out.
    assert abs(wide.value - other) < 5 * math.sqrt(2) * wide.stderr
    assert abs(narrow.value - other) < 5 * math.hypot(wide.stderr, narrow.stderr)


def test_small_hessian_against_dense() -> None:
    model, data = small()
    values = torch.linalg.eigvalsh(dense_hessian(model, half_mse, data)).flip(0)
    pairs = top_eigenpairs(Hessian(model, half_mse, data), 5, accuracy=1e-12)
    torch.testing.assert_close(pairs.values, values[:5], rtol=0, atol=1e-11)


def test_warm_start_costs_k_plus_guards_where_nothing_moved() -> None:
    A = Matrix(with_spectrum(torch.linspace(10, 0, 200).double() ** 2))
    cold = top_eigenpairs(A, 2, accuracy=1e-6, guards=2)
    warm = top_eigenpairs(A, 2, accuracy=1e-6, guards=2, start=cold)
    assert warm.hvps == 4
    assert cold.hvps > 20


def test_same_arguments_same_bits_and_no_global_rng() -> None:
    A = Matrix(with_spectrum(torch.linspace(3, 0, 80).double()))
    before = torch.get_rng_state()
    first, second = top_eigenpairs(A, 2, seed=5), top_eigenpairs(A, 2, seed=5)
    assert torch.equal(first.basis, second.basis)
    assert first.hvps == second.hvps
    drawn = top_eigenpairs(A, 2, seed=torch.Generator().manual_seed(5))
    assert torch.equal(first.basis, drawn.basis)
    audit(A, first)
    assert torch.equal(before, torch.get_rng_state())


def test_a_window_of_the_least_size_still_converges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "WINDOW", 8)  # LOBPCG's three blocks, about
    spectrum = torch.linspace(1, 0, 300).double()
    A = Matrix(with_spectrum(spectrum))
    pairs = top_eigenpairs(A, 2, accuracy=1e-6)
    torch.testing.assert_close(pairs.values, spectrum[:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [9])
def test_crossing_is_followed(steps: int) -> None:
    """λ_2 overtakes λ_1 between measurements; the value stays the largest and the bounds hold."""
    tail = torch.linspace(2.5, 0, 100).double()
    start = None
    for t in torch.linspace(0, 1, steps):
        spectrum = torch.cat([torch.tensor([4.0 - 0.4 * t, 3.6 + 0.4 * t]).double(), tail])
        pairs = top_eigenpairs(Matrix(with_spectrum(spectrum)), 1, start=start)
        error = float(spectrum[:2].max() - pairs.values[0])
        assert -1e-12 <= error <= float(pairs.bounds[0]) + 1e-12
        assert error <= 0.005 * 4
        start = pairs


def test_audit_finds_a_lost_eigenvalue() -> None:
    basis = torch.linalg.qr(
        torch.randn(100, 100, generator=torch.Generator().manual_seed(0)).double()
    )[0]
    spectrum = torch.cat([torch.tensor([5.0, 4.0, 3.9, 3.8]), torch.linspace(1, 0, 96)]).double()
    A = Matrix((basis * spectrum) @ basis.T)
    lost = top_eigenpairs(A, start=basis[:, 1:4], accuracy=1e-3)  # exactly orthogonal to u_1
    assert abs(float(lost.values[0]) - 4) < 1e-9
    found = audit(A, lost)
    assert found.lost
    assert found.hvps == 41  # 4 vectors, 10 steps, and one to see that the pairs are of A
    assert abs(found.value - 5) < 1e-6
    again = top_eigenpairs(A, start=found.basis, accuracy=1e-6)
    assert not audit(A, again).lost


def test_rayleigh_update_is_a_lower_bound() -> None:
    spectrum = torch.linspace(3, 0, 40).double()
    A = Matrix(with_spectrum(spectrum))
    u = torch.randn(40, generator=torch.Generator().manual_seed(1)).double()
    value, residual = rayleigh(A, u)
    assert value <= 3
    assert float((spectrum - value).abs().min()) <= residual
    assert A.hvps == 1


def test_bounds_on_a_worked_example() -> None:
    # A = [[2, r], [r, 0]] with u = e1: θ = 2, residual r, λ = 1 + √(1 + r²).
    r = 0.1
    residuals = np.array([[0, r], [r, 0]])
    bound = float(error_bounds(np.array([2.0, 0.0]), residuals @ residuals.T)[0])
    error = 1 + (1 + r * r) ** 0.5 - 2
    assert error <= bound
    assert abs(bound - r * r / (2 - r)) < 10 * EPS


def test_a_bound_with_the_rest_known_from_elsewhere() -> None:
    r = 0.1  # as above, with u alone: on its complement A is 0
    bound = float(error_bounds(np.array([2.0]), np.array([[r * r]]), rest=0.0)[0])
    assert 1 + (1 + r * r) ** 0.5 - 2 <= bound
    assert abs(bound - r * r / 2) < 10 * EPS
    # an eigenvalue, no more
    assert float(error_bounds(np.array([2.0]), np.array([[r * r]]))[0]) == pytest.approx(r)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_held_at_a_product_or_two_each_while_their_gap_is_worth_it(
    k: int, seed: int
) -> None:
    spectrum = torch.cat([torch.tensor([10.0, 9.8, 9.7][:k]), torch.linspace(8, 0, 60)]).double()
    dense = with_spectrum(spectrum, seed)
    noise = torch.randn(
        dense.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    first = top_eigenpairs(Matrix(dense), k)
    assert not first.held and first.rest >= 8 - 1e-12
    for size, held in ((1e-2, True), (0.3, False)):
        changed = dense + size * (noise + noise.T)
        pairs = top_eigenpairs(Matrix(changed), k, start=first, trust=1.0)
        truth = torch.linalg.eigvalsh(changed).flip(0)[:k]
        assert pairs.held == held and pairs.converged
        assert (pairs.hvps <= 2 * k) == held
        assert (pairs.values <= truth + 1e-12).all() and (
            truth <= pairs.values + pairs.bounds
        ).all()
        assert (pairs.bounds <= 5e-3 * pairs.values[0]).all()
        # what is not looked at is trusted less each time
        assert pairs.rest > first.rest or not held


def test_refusals() -> None:
    A = Matrix(torch.eye(4).double())
    for kwargs, message in [
        ({"k": 0}, "k must be between 1 and P = 4, got 0"),
        ({"tol": 0.0}, "tol must be positive, got 0.0"),
        ({"accuracy": -1.0}, "accuracy must be positive, got -1.0"),
        ({"guards": -1}, "guards must not be negative, got -1"),
        ({"max_hvps": 2}, "max_hvps must be at least k"),
        ({"start": torch.ones(3, 1)}, r"start must have shape \(4, any\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            top_eigenpairs(A, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="not finite"):
        top_eigenpairs(Matrix(torch.full((4, 4), float("nan")).double()))
    few = top_eigenpairs(
        Matrix(with_spectrum(torch.linspace(1, 0, 50).double())), accuracy=1e-9, max_hvps=5
    )
    assert not few.converged
    assert few.hvps <= 5


def test_loss_scale_of_digits() -> None:
    """The ½-MSE is 5 times MSELoss for 10 classes, and so is its curvature."""
    torch.manual_seed(0)
    model, data = mlp(64, 32, 32, 10), digits(100)
    ours = top_eigenpairs(Hessian(model, half_mse, data), accuracy=1e-4)
    theirs = top_eigenpairs(Hessian(model, torch.nn.MSELoss(), data), accuracy=1e-4)
    assert abs(float(ours.values[0] / theirs.values[0]) - 5) < 1e-3
