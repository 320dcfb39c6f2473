"""Trace and diagonal of an operator by Hutchinson's estimator, with optional deflation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.curvature.eigen.pairs import Eigenpairs, Seed, seeded
from optbench.curvature.operators import Operator, check_operator, check_real, check_whole
from optbench.intervals import Interval, t_quantile
from optbench.record.progress import work


@dataclass(frozen=True)
class TraceEstimate(Interval):
    """An estimate of tr A and its confidence interval; unit: loss per parameter².

    Attributes:
        stderr: Standard error of the estimate.
        hvps: Matrix-vector products spent.
    """

    stderr: float
    hvps: int


@dataclass(frozen=True)
class DiagonalEstimate:
    """An unbiased estimate of A's diagonal.

    Attributes:
        values: Estimates, shape (P,).
        stderr: Their standard errors, shape (P,).
        hvps: Matrix-vector products spent.
    """

    values: Tensor
    stderr: Tensor
    hvps: int


def trace(
    operator: Operator,
    samples: int = 30,
    *,
    deflate: Eigenpairs | None = None,
    confidence: float = 0.95,
    seed: Seed = 0,
) -> TraceEstimate:
    """Trace of A by Hutchinson's estimator with a Student confidence interval.

    For z of random signs (Rademacher) and any orthonormal U,

        tr A = Σ_i θ_i + E[zᵀ A' z],  A' = A − U diag(θ) Uᵀ.

    The estimate is unbiased whether or not U are eigenvectors. One sample has variance
    2(‖A'‖_F² − Σ_i a'_ii²), which is small where U are the eigenvectors of the largest eigenvalues.

    Args:
        operator: A, shape (P, P).
        samples: Products to spend, at least 2.
        deflate: Known pairs (θ, U), computed at any weights; None for no deflation.
        confidence: Level of the interval, between 0 and 1; it assumes nearly normal samples.
        seed: Seed or generator of the vectors z.

    Raises:
        ValueError: If samples or confidence is out of range.

    References:
        Hutchinson (1990), Commun. Stat. Simul. Comput. 19(2). Deflation: Meyer et al. (2021),
        arXiv:2010.09649.
    """
    check_real(confidence=confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    draws = [
        float((z * image).sum()) for z, image in _probes("trace", operator, samples, deflate, seed)
    ]
    # tr(U diag(θ) Uᵀ) = Σ_i θ_i, exact for orthonormal U.
    known = 0.0 if deflate is None else float(deflate.values.double().sum())
    mean = math.fsum(draws) / samples
    variance = math.fsum((draw - mean) ** 2 for draw in draws) / (samples - 1)
    stderr = math.sqrt(variance / samples)
    reach = t_quantile(samples - 1, confidence) * stderr
    value = known + mean
    return TraceEstimate(value, value - reach, value + reach, stderr, samples)


def diagonal(
    operator: Operator, samples: int = 100, *, deflate: Eigenpairs | None = None, seed: Seed = 0
) -> DiagonalEstimate:
    """Diagonal of A, a_ii = E[z_i (A z)_i] for z of random signs (Rademacher).

    Args:
        operator: A, shape (P, P).
        samples: Products to spend, at least 2; a sample's variance is Σ_{j≠i} a_ij².
        deflate: Known pairs (θ, U), whose part of the diagonal, Σ_k θ_k u_ik², is added exactly;
            None for no deflation.
        seed: Seed or generator of the vectors z.

    Raises:
        ValueError: If samples is below 2.

    References:
        Bekas, Kokiopoulou, Saad (2007), Appl. Numer. Math. 57(11-12).
    """
    total = torch.zeros(operator.size, dtype=torch.float64, device=operator.device)
    squares = torch.zeros_like(total)
    for z, image in _probes("diagonal", operator, samples, deflate, seed):
        draw = (z * image).double()
        total += draw
        squares += draw.square()
    mean = total / samples
    # (E[d²] − E[d]²) n/(n − 1), unbiased; rounding may make the difference negative.
    variance = (squares / samples - mean.square()).clamp_min(0) * samples / (samples - 1)
    if deflate is not None:
        mean += deflate.vectors.double().square() @ deflate.values.double()
    return DiagonalEstimate(
        mean.to(operator.dtype), (variance / samples).sqrt().to(operator.dtype), samples
    )


def _probes(
    what: str, operator: Operator, samples: int, deflate: Eigenpairs | None, seed: Seed
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (z, (A − U diag(θ) Uᵀ) z), each of shape (P,)."""
    check_operator(operator)
    check_whole(samples=samples)
    if samples < 2:
        raise ValueError(f"samples must be at least 2, for an error bar, got {samples}")
    if not (deflate is None or isinstance(deflate, Eigenpairs)):
        raise ValueError(f"deflate must be Eigenpairs, got {type(deflate).__name__}")
    if deflate is not None and deflate.vectors.shape[0] != operator.size:
        raise ValueError(
            f"deflate must hold pairs of P = {operator.size} entries, got vectors of "
            f"{deflate.vectors.shape[0]}"
        )
    generator = seeded(seed)
    with work(what, samples, "products") as told:
        for _ in range(samples):
            z = rademacher(operator, generator)
            image = operator @ z
            if deflate is not None:
                image = image - deflate.vectors @ (deflate.values * (deflate.vectors.T @ z))
            yield z, image
            told.advance()


def rademacher(operator: Operator, generator: torch.Generator) -> Tensor:
    """A vector of independent signs, shape (P,)."""
    signs = torch.randint(0, 2, (operator.size,), generator=generator, dtype=torch.int8)
    return (2 * signs - 1).to(operator.device, operator.dtype)
