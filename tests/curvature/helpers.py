from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.curvature import Operator
from optbench.curvature.chunk_loss import Criterion
from optbench.curvature.chunks import Pair

EPS = torch.finfo(torch.float64).eps


class Matrix(Operator):
    """A given symmetric matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    def _apply(self, vectors: Tensor) -> Tensor:
        image: Tensor = self.matrix @ vectors
        return image


def with_spectrum(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with the eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(square)[0]
    return (basis * values).mm(basis.T)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def unflat(model: nn.Module, w: Tensor) -> dict[str, Tensor]:
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    parts = torch.split(w, [p.numel() for p in trained.values()])
    return {n: part.view(p.shape) for (n, p), part in zip(trained.items(), parts, strict=True)}


def dense_hessian(model: nn.Module, loss: Criterion, data: Pair) -> Tensor:
    """The Hessian by torch.func.hessian, an independent route (forward over reverse)."""

    def value(w: Tensor) -> Tensor:
        result: Tensor = loss(functional_call(model, unflat(model, w), (data[0],)), data[1])
        return result

    matrix: Tensor = torch.func.hessian(value)(flat(model))
    return matrix


def differenced_hessian(model: nn.Module, loss: Criterion, data: Pair) -> Tensor:
    """The Hessian by central differences of the gradient; error about 1e-7 at this step.

    For layers with norms: torch.func.hessian, which uses vmap, is wrong by 10% there (torch 2.13).
    """

    def gradient(w: Tensor) -> Tensor:
        w = w.clone().requires_grad_()
        value = loss(functional_call(model, unflat(model, w), (data[0],)), data[1])
        slope: Tensor = torch.autograd.grad(value, w)[0]
        return slope

    w, step = flat(model), 1e-5
    axes = step * torch.eye(len(w), dtype=w.dtype)
    return torch.stack([(gradient(w + axis) - gradient(w - axis)) / (2 * step) for axis in axes])


def dense(operator: Operator) -> Tensor:
    """All columns of an operator."""
    return operator @ torch.eye(operator.size, dtype=operator.dtype)


def small(seed: int = 0, classes: int = 3) -> tuple[nn.Sequential, Pair]:
    """A float64 tanh network 6-5-classes and 20 examples with real targets."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, classes)).double()
    return model, (torch.randn(20, 6).double(), torch.randn(20, classes).double())
