"""The engines compared: each a function from (model, data) to (λ_1, products spent)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from optbench.curvature import Eigenpairs, Hessian, Operator, top_eigenpairs
from optbench.curvature.chunks import Pair
from optbench.curvature.eigen.subspace import Subspace
from optbench.curvature.pyhessian import PyHessian
from optbench.data.torchvision import import_datasets
from perf.cases import half_mse

Engine = Callable[[nn.Module, Pair], tuple[float, int]]


def ours(accuracy: float) -> Engine:
    """As the sharpness probe does it: one operator for the run, warm-started from the last call."""
    kept: list[Hessian] = []
    last: list[Eigenpairs] = []

    def engine(model: nn.Module, data: Pair) -> tuple[float, int]:
        if not kept:
            kept.append(Hessian(model, half_mse, data))
        with kept[0] as H:
            last[:] = [top_eigenpairs(H, accuracy=accuracy, start=last[0] if last else None)]
        return float(last[0].values[0]), last[0].hvps

    return engine


def pyhessian(tol: float, iterations: int) -> Engine:
    """PyHessian's power iteration, with the products it counts."""

    def engine(model: nn.Module, data: Pair) -> tuple[float, int]:
        pairs = PyHessian(model, half_mse, data).top_eigenpairs(tol=tol, max_iterations=iterations)
        return float(pairs.values[0]), pairs.hvps

    return engine


def scipy_on_curvlinops(tol: float) -> Engine:
    """SciPy's eigsh on curvlinops' Hessian; its loss is torch's MSELoss, 2/C of ours."""
    import_datasets()
    from curvlinops import HessianLinearOperator

    def engine(model: nn.Module, data: Pair) -> tuple[float, int]:
        theirs = HessianLinearOperator(
            model, nn.MSELoss(), list(model.parameters()), [data], check_deterministic=False
        )
        return _eigsh(lambda v: theirs @ v, theirs.shape[0], np.float32, tol, data[1].shape[1] / 2)

    return engine


def scipy_in_double(model: nn.Module, data: Pair) -> tuple[float, int]:
    """The reference: eigsh to 1e-9 on our products in double precision."""
    H = Hessian(model, half_mse, data, dtype=torch.float64, strategy="cached")
    return _eigsh(lambda v: H @ v, H.size, np.float64, 1e-9, 1.0)


def cold_lanczos(tol: float) -> Engine:
    """Single-vector Lanczos with full reorthogonalisation from a random vector."""

    def engine(model: nn.Module, data: Pair) -> tuple[float, int]:
        H = Hessian(model, half_mse, data, strategy="cached")
        return lanczos(H, tol)

    return engine


def lanczos(operator: Operator, tol: float) -> tuple[float, int]:
    """λ_1 when the residual is at most tol·λ_1."""
    space = Subspace(operator)
    row = torch.randn(
        (1, operator.size), generator=torch.Generator().manual_seed(0), dtype=operator.dtype
    )
    while True:
        space.expand(row)
        values, coefficients = space.ritz()
        if float(space.residuals(values[:1], coefficients[:1]).norm()) <= tol * abs(
            float(values[0])
        ):
            return float(values[0]), operator.hvps
        row = space.images[-1:]


def _eigsh(
    product: Callable[[torch.Tensor], torch.Tensor],
    size: int,
    dtype: type,
    tol: float,
    scale: float,
) -> tuple[float, int]:
    spent = 0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal spent
        spent += 1
        return product(torch.from_numpy(v.ravel().astype(dtype))).detach().numpy()

    linear = LinearOperator((size, size), matvec=matvec, dtype=dtype)
    value = eigsh(
        linear, k=1, which="LA", tol=tol, return_eigenvectors=False, v0=np.ones(size, dtype)
    )[0]
    return float(value) * scale, spent
