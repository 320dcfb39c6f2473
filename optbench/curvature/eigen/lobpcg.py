"""Largest eigenvalues with error bounds, by a warm-started block solver."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from optbench.curvature.eigen.pairs import Eigenpairs, Seed, random_rows
from optbench.curvature.eigen.solver import Settings, Solver
from optbench.curvature.errors import NotConvergedWarning
from optbench.curvature.operators import Operator, check_operator, check_real, check_whole
from optbench.record.progress import work


def top_eigenpairs(
    operator: Operator,
    k: int = 1,
    *,
    tol: float = 3e-3,
    accuracy: float = 5e-3,
    start: Eigenpairs | Tensor | None = None,
    trust: float | None = None,
    guards: int = 2,
    max_hvps: int = 1000,
    seed: Seed = 0,
) -> Eigenpairs:
    """Algebraically largest eigenpairs, A u_i = λ_i u_i, λ_1 ≥ λ_2 ≥ …; for the smallest pass -A.

    Block LOBPCG with a longer memory:

    1. Do Rayleigh-Ritz on the warm start, with K + guards products.
    2. Add the residuals of the pairs that have not converged, one product each. All images are
       kept.
    3. Repeat Rayleigh-Ritz until every tolerance is met.

    Beyond 24 vectors the space shrinks to LOBPCG's three blocks: the Ritz vectors, those of the
    iteration before, and the residuals. Residuals are steered by the directions that the start
    remembers beside its pairs (`recycling.Recycled`). At the edge of stability this saves a fifth
    of the products at the default accuracy, and 40 % at 1e-5.

    Args:
        operator: A, symmetric, shape (P, P).
        k: Pairs wanted.
        tol: Tolerance of residuals: each must be at most tol·|θ_1|.
        accuracy: Tolerance of bounds: each must be at most accuracy·|θ_1|, or where that is more,
            a little above 80 ε times the largest |λ|. Values are usually much closer than
            their bound, since their error is quadratic in the residual; 1e-5 gives five digits.
        start: Pairs or columns, shape (P, any), to start from, such as the last measurement's.
        trust: Whether the start's pairs may be held, at a product or two each; None for no. Their
            guards are then not looked at. Instead μ, the start's `rest`, is assumed to have risen
            by at most `trust` times the change of A seen on the K vectors, the largest
            |θ_i − θ_i before| + ‖R_i‖. If the bounds that follow are too large, pairs are solved
            for.
        guards: Number of further vectors, which show the gap and keep a crossing from being missed.
        max_hvps: Products after which the pairs are returned unconverged.
        seed: Seed or generator of random start vectors.

    Returns:
        The K pairs, a deterministic function of the arguments.

    Raises:
        ValueError: If k, tol, accuracy or guards is out of range, or start has the wrong shape.
        FloatingPointError: If a product is not finite.

    Warns:
        NotConvergedWarning: If the search ended before its tolerance was met: at `max_hvps`, or
            since residuals added nothing new to the space.

    References:
        Knyazev (2001), SIAM J. Sci. Comput. 23(2); Stathopoulos (2007), SIAM J. Sci. Comput. 29(2).
    """
    settings = Settings(k, guards, tol, accuracy, trust, max_hvps, seed)
    check_operator(operator)
    _check_settings(settings, operator.size)
    _check_start(start)
    if isinstance(start, Eigenpairs) and (factor := _factor(start.values)) != 1:
        pairs = _search_multiple(operator, factor, start, settings)
    else:
        pairs = _search(operator, start, settings)
        if (factor := _factor(pairs.values)) != 1:
            # The scale is only known after a first search: search again on a multiple.
            left = replace(settings, max_hvps=max(max_hvps - pairs.hvps, k + guards))
            again = _search_multiple(operator, factor, pairs, left)
            pairs = replace(again, hvps=pairs.hvps + again.hvps)
    if not pairs.converged:
        warnings.warn(not_converged(pairs, max_hvps), NotConvergedWarning, stacklevel=2)
    return pairs


def _search_multiple(
    operator: Operator, factor: float, start: Eigenpairs, settings: Settings
) -> Eigenpairs:
    """Pairs of an operator with tiny or huge eigenvalues, by a search on factor · A."""
    return _search(operator * factor, start.times(factor), settings).times(1 / factor)


def _search(
    operator: Operator, start: Eigenpairs | Tensor | None, settings: Settings
) -> Eigenpairs:
    """Pairs of an operator whose eigenvalues are neither tiny nor huge.

    1. Hold the start's pairs if `trust` allows it and that meets the accuracy.
    2. Otherwise do Rayleigh-Ritz on the start block, filled up with random vectors.
    3. Add the residuals of pending pairs and repeat, until every tolerance is met, the products
       are spent, or residuals add nothing new.
    """
    pairs = start if isinstance(start, Eigenpairs) else None
    k, guards = settings.k, settings.guards
    rows = _start_rows(operator, start, min(k + guards, operator.size), settings.seed)
    solver = Solver(operator, settings, pairs)
    before = operator.hvps
    may_hold = pairs is not None and settings.trust is not None
    if may_hold and 2 * k + guards <= settings.max_hvps:
        assert pairs is not None and settings.trust is not None
        if solver.hold(pairs, settings.trust):
            return solver.result(operator.hvps - before)
    # After a failed hold the first k vectors are in the space already.
    with work("largest eigenvalues", unit="products") as told:
        solver.begin(rows[k:] if len(solver.space) else rows, settings.seed)
        while pending := solver.pending():
            spent = operator.hvps - before
            told.advance(spent - told.done)
            if spent + len(pending) > settings.max_hvps or not solver.improve(pending):
                break
    return solver.result(operator.hvps - before)


def _factor(values: Tensor) -> float:
    """Power of two that brings the eigenvalues near 1, for a search on factor · A.

    1 unless squares of residuals would over- or underflow.
    """
    size, limits = float(values.abs().max()), torch.finfo(values.dtype)
    if (
        not 0 < size < math.inf
        or limits.tiny**0.5 / limits.eps < size < limits.max**0.5 * limits.eps
    ):
        return 1.0
    most = math.frexp(limits.max)[1] - 8  # the factor itself must not overflow
    # size = m · 2^e with ½ ≤ m < 1, so that factor 2^−e gives a norm in [½, 1).
    return 2.0 ** -min(max(math.frexp(size)[1], -most), most)


def not_converged(pairs: Eigenpairs, max_hvps: int) -> str:
    """Message about pairs that did not meet their tolerance."""
    worst = int(pairs.bounds.argmax())
    return (
        f"eigenvalues did not converge in {pairs.hvps} products (max_hvps={max_hvps}): eigenvalue "
        f"{worst + 1} is at least {float(pairs.values[worst]):.5g}, and may be larger by more than "
        f"its bound of {float(pairs.bounds[worst]):.2g} (residual "
        f"{float(pairs.residuals[worst]):.2g}); raise max_hvps, or ask for less accuracy"
    )


def _start_rows(
    operator: Operator, start: Eigenpairs | Tensor | None, count: int, seed: Seed
) -> Tensor:
    """The start's columns as rows, shape (count, P), filled up with random ones."""
    if start is None:
        return random_rows(operator, count, seed)
    columns = start.basis if isinstance(start, Eigenpairs) else start
    if columns.ndim != 2 or columns.shape[0] != operator.size:
        raise ValueError(
            f"start must have shape ({operator.size}, any), got {tuple(columns.shape)}"
        )
    rows = columns.T.to(operator.device, operator.dtype)[:count]
    if len(rows) < count:
        rows = torch.cat([rows, random_rows(operator, count - len(rows), seed)])
    return rows


def _check_start(start: object) -> None:
    if not (start is None or isinstance(start, Eigenpairs | Tensor)):
        raise ValueError(f"start must be pairs or a tensor of columns, got {type(start).__name__}")
    if isinstance(start, Tensor) and not (
        bool(start.isfinite().all()) and bool(start.any(0).all())
    ):
        raise ValueError(
            "start must have columns with a direction, got one of zeros, or with NaN or infinity "
            "in it"
        )


def _check_settings(settings: Settings, size: int) -> None:
    k, guards, max_hvps = settings.k, settings.guards, settings.max_hvps
    check_whole(k=k, guards=guards, max_hvps=max_hvps)
    if not 1 <= k <= size:
        raise ValueError(f"k must be between 1 and P = {size}, got {k}")
    check_real(tol=settings.tol, accuracy=settings.accuracy)
    for name, value in (("tol", settings.tol), ("accuracy", settings.accuracy)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if settings.trust is not None:
        check_real(trust=settings.trust)
        if settings.trust < 0:
            raise ValueError(f"trust must not be negative, got {settings.trust}")
    if guards < 0:
        raise ValueError(f"guards must not be negative, got {guards}")
    if max_hvps < k + guards:
        raise ValueError(f"max_hvps must be at least k + guards = {k + guards}, got {max_hvps}")
