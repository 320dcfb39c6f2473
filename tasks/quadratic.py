"""A quadratic with a given spectrum: loss, sharpness and threshold are known exactly."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from optbench.boundary.kinds import NotNegative, Size
from optbench.errors import UserError
from optbench.seeds import generator
from optbench.task import Split, Task, half_mse

LARGEST = 10_000  # eigenvalues: their basis is a matrix of this side


def quadratic(
    seed: int,
    spectrum: Sequence[float] | Mapping[str, float],
    rotate: bool = True,
    noise: NotNegative = 0.0,
    copies: Size = 1,
) -> Task:
    """Least squares with given Hessian eigenvalues: L(w) = ½ wᵀHw + ½ noise², minimum at w = 0.

    With P eigenvalues λ_i and `copies` examples x_ij = √(P·λ_i) q_i of each, where q_i are the
    columns of an orthogonal Q (the identity unless `rotate`) and targets are 0, the linear model
    f(x) = w·x has the loss mean ½ f(x)² = ½ Σ_i λ_i (q_i·w)², so H = Q diag(λ) Qᵀ. Gradient descent
    multiplies the component along q_i by (1 − ηλ_i) a step, and diverges if η > 2/λ₁.

    With `noise` σ the targets of each direction are +σ and −σ, as many of each: the full batch
    keeps its loss but for the floor ½σ², and the gradient of a random batch of b of the N =
    P·copies examples has, at w = 0, mean 0 and covariance σ²H (N − b)/(b (N − 1)): noise shaped by
    the Hessian, as in Zhang et al. (2019), arXiv:1907.04164.

    Args:
        seed: Seed of the run; the rotation depends on it.
        spectrum: Eigenvalues, shape (P,), none negative; or a power law {size: P, exponent: a,
            largest: λ₁} for λ_i = λ₁ i^(−a).
        rotate: Draw Q uniformly from the orthogonal group, so that no axis is an eigenvector.
        noise: σ ≥ 0; above 0 it needs an even number of copies.
        copies: Examples of each direction.
    """
    eigenvalues = _eigenvalues(spectrum)
    if noise and copies % 2:
        raise UserError(
            f"task.noise needs as many +σ as −σ: task.copies must be even, got {copies}"
        )
    P = len(eigenvalues)
    Q = (
        random_orthogonal(P, generator(seed, "rotation"))
        if rotate
        else torch.eye(P, dtype=torch.float64)
    )
    inputs = ((P * eigenvalues).sqrt()[:, None] * Q.T).repeat_interleave(copies, 0)
    signs = torch.ones(P * copies, 1)
    signs[1::2] = -1
    train = Split(inputs.float(), noise * signs if noise else torch.zeros(P * copies, 1))
    facts: dict[str, object] = {"sharpness": float(eigenvalues.max()), "optimum": noise**2 / 2}
    return Task(train, None, None, 1, half_mse, facts=facts)


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A matrix drawn uniformly from the orthogonal group, shape (size, size), float64."""
    gaussian = torch.randn(size, size, dtype=torch.float64, generator=generator)
    Q, R = torch.linalg.qr(gaussian)
    uniform: Tensor = Q * R.diagonal().sign()
    return uniform


def _eigenvalues(spectrum: Sequence[float] | Mapping[str, float]) -> Tensor:
    if isinstance(spectrum, Mapping):
        if set(spectrum) != {"size", "exponent", "largest"} or not 1 <= spectrum["size"] <= LARGEST:
            raise UserError(
                f"task.spectrum as a power law needs size (at most {LARGEST}), exponent and "
                "largest, got "
                f"{dict(spectrum)}"
            )
        ranks = torch.arange(1, int(spectrum["size"]) + 1, dtype=torch.float64)
        eigenvalues = spectrum["largest"] * ranks ** -spectrum["exponent"]
    else:
        eigenvalues = torch.tensor([float(x) for x in spectrum], dtype=torch.float64)
    if (
        len(eigenvalues) == 0
        or not bool((eigenvalues >= 0).all())
        or math.isinf(float(eigenvalues.sum()))
    ):
        shown = dict(spectrum) if isinstance(spectrum, Mapping) else list(spectrum)
        raise UserError(f"task.spectrum must be finite numbers, none negative, got {shown}")
    return eigenvalues
