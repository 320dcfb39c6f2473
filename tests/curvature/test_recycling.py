from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from optbench.curvature import Eigenpairs, top_eigenpairs
from optbench.curvature.eigen import solver
from optbench.curvature.eigen.recycling import Recycled
from optbench.curvature.eigen.subspace import Subspace, inner

from .helpers import Matrix, with_spectrum

CROWD = torch.cat([torch.linspace(10, 9, 8), torch.linspace(2, 0, 192)]).double()


def moved(matrix: Tensor, size: float, seed: int = 1) -> Tensor:
    """The matrix and a random symmetric change, with ‖change‖ about `size`."""
    change = torch.randn(
        matrix.shape, generator=torch.Generator().manual_seed(seed), dtype=matrix.dtype
    )
    result: Tensor = matrix + size * (change + change.T) / (8 * len(matrix)) ** 0.5
    return result


def random_rows(count: int, size: int) -> Tensor:
    rows: Tensor = torch.linalg.qr(
        torch.randn(size, count, generator=torch.Generator().manual_seed(3)).double()
    )[0].T
    return rows


def test_a_crowd_is_followed_with_fewer_products() -> None:
    before, after = with_spectrum(CROWD), moved(with_spectrum(CROWD), 0.3)
    start = top_eigenpairs(Matrix(before), accuracy=1e-5)
    warm = top_eigenpairs(Matrix(after), accuracy=1e-5, start=start)
    forgetful = top_eigenpairs(Matrix(after), accuracy=1e-5, start=start.vectors)
    assert warm.hvps < 0.8 * forgetful.hvps
    top = torch.linalg.eigvalsh(after)[-1]
    for pairs in (warm, forgetful):
        assert 0 <= float(top - pairs.values[0]) <= float(pairs.bounds[0])


@pytest.mark.parametrize("seed", range(10))
def test_a_memory_that_is_wrong_does_no_harm(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = with_spectrum(CROWD, seed)
    start = top_eigenpairs(Matrix(matrix), accuracy=1e-5, seed=seed)
    assert start.estimates is not None
    wrong = 30 * torch.randn(start.estimates.shape, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(
        torch.randn(start.basis.shape, generator=generator, dtype=torch.float64)
    )[0]
    for fault in ({"estimates": wrong}, {"basis": basis}, {"basis": basis, "estimates": wrong}):
        found = top_eigenpairs(
            Matrix(matrix), accuracy=1e-5, start=dataclasses.replace(start, **fault)
        )
        assert found.converged
        # rounding of 200 terms
        assert 0 <= float(CROWD[0] - found.values[0]) <= float(found.bounds[0]) + 1e-12


def test_corrections_against_dense_algebra() -> None:
    A = Matrix(moved(with_spectrum(CROWD), 0.3))
    rows, estimates = random_rows(6, A.size), np.linspace(9.5, 1.0, 6)
    space = Subspace(A)
    space.expand(random_rows(9, A.size)[5:])  # its first vectors overlap with the memory
    recycled = Recycled(rows, estimates, space)
    recycled.observe()
    values, coefficients = space.ritz()
    residuals = space.residuals(values[:2], coefficients[:2])
    norms = residuals.norm(dim=1).numpy()
    found = recycled.steered(residuals, norms, values[:2], coefficients[:2], 10.0)
    for row, value, norm, residual in zip(found, values, norms, residuals, strict=False):
        factors = torch.from_numpy(10.0 / np.maximum(value - estimates, norm) - 1)
        expected = residual + rows.T @ (factors * (rows @ residual))
        expected -= space.basis.T @ (space.basis @ expected)
        # Sums of 200 terms below 10, amplified by factors up to 10 / norm.
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-10)


def test_the_memory_kept_is_rayleigh_ritz_on_space_and_memory() -> None:
    """Where the matrix is what the memory holds, and nothing else, all eigenpairs come out."""
    rows, estimates = random_rows(6, 50), torch.linspace(9, 4, 6).double()
    A = Matrix((rows.T * estimates) @ rows)
    space = Subspace(A)
    space.expand(torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).double())
    recycled = Recycled(rows, estimates.numpy(), space)
    recycled.observe()
    values, kept = recycled.merged(6, math.inf)
    torch.testing.assert_close(torch.from_numpy(values), estimates, rtol=0, atol=1e-12)
    torch.testing.assert_close((kept @ rows.T).abs(), torch.eye(6).double(), rtol=0, atol=1e-10)


def test_the_memory_stays_orthonormal_in_single_precision_over_many_measurements() -> None:
    matrix, pairs = with_spectrum(CROWD).float(), None
    for seed in range(60):
        matrix = moved(matrix, 0.1, seed)
        pairs = top_eigenpairs(Matrix(matrix), start=pairs)
    assert isinstance(pairs, Eigenpairs)
    assert pairs.basis.shape == (200, 3 + solver.EXTRA)
    gram = pairs.basis.T @ pairs.basis
    # 1e-6 where it is made, little more
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=2e-5)


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    A = Matrix(with_spectrum(CROWD))
    monkeypatch.setattr(solver, "NUMBERS", 7 * 200)
    assert top_eigenpairs(A, 2).basis.shape == (200, 7)
    monkeypatch.setattr(solver, "NUMBERS", 200)
    assert top_eigenpairs(A, 2).basis.shape == (200, 4)  # the next start needs the block


@pytest.mark.parametrize("size", [100, 20_000, 16_384 + 1])
def test_inner_products_in_pieces(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, size, generator=generator) for n in (3, 5))
    wide = torch.randn(5, 2, size, generator=generator)[:, 0]
    for other in (b, wide):
        exact = (a.double() @ other.double().T).numpy()
        # float32: √size terms of size 1 add up to √size, each sum of 4096 wrong by at most about 64
        # ε of that.
        np.testing.assert_allclose(inner(a, other), exact, rtol=0, atol=64 * 1.2e-7 * size**0.5)


def test_a_memory_of_a_larger_matrix_gives_way_to_what_was_found() -> None:
    """After a fall of the sharpness, memory must not crowd out the pairs of the next start."""
    spectrum = torch.cat([torch.linspace(10, 9, 12), torch.linspace(2, 0, 188)]).double()
    matrix = with_spectrum(spectrum)
    start = top_eigenpairs(Matrix(matrix), accuracy=1e-4)
    fallen = Matrix(0.1 * matrix)
    found = top_eigenpairs(fallen, start=start)
    again = top_eigenpairs(fallen, start=found)
    assert again.hvps <= 5  # the matrix has not moved: 3, or a little more
    assert float((found.basis[:, :1].T @ found.vectors).norm()) > 0.9


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_the_memory_does_not_mind_where_the_bulk_lies(shift: float) -> None:
    spent: list[int] = []
    for remembers in (True, False):
        matrix, pairs = with_spectrum(CROWD - shift), None
        spent.append(0)
        for seed in range(10):
            matrix = moved(matrix, 0.1, seed)
            start: Eigenpairs | Tensor | None = (
                pairs if remembers or pairs is None else pairs.vectors
            )
            pairs = top_eigenpairs(Matrix(matrix), accuracy=1e-4, start=start)
            spent[-1] += pairs.hvps
    assert spent[0] < spent[1]


@pytest.mark.parametrize("start", [torch.ones(200, 1), torch.ones(200, 2)])
def test_starts_that_span_too_little_are_filled_up(start: Tensor) -> None:
    pairs = top_eigenpairs(
        Matrix(with_spectrum(CROWD)), 2, accuracy=1e-6, guards=0, start=start.double()
    )
    assert pairs.converged
    assert pairs.values.shape == (2,)
    assert float((CROWD[:2] - pairs.values).abs().max()) < 1e-5
