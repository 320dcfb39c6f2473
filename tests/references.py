"""λ₁ in double precision by means that share nothing with optbench."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
# of central differences: their error is of order STEP² f'''' and 1e-16 / STEP, so below 1e-9
STEP = 1e-5


def dense_lambda(value: Tensor, weights: Sequence[Tensor]) -> float:
    """λ₁ of the dense Hessian of a value, row by row with torch's own double backward."""
    slope = torch.autograd.grad(value, weights, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.flatten() for g in slope])
    rows = [
        torch.autograd.grad(s, weights, retain_graph=True, materialize_grads=True) for s in flat
    ]
    return largest(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]))


def lambda_by_double_backward(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor
) -> float:
    """λ₁ of the whole batch's loss, over the parameters that train, of a copy in double precision."""
    model = copy.deepcopy(model).double()
    weights = [p for p in model.parameters() if p.requires_grad]
    return dense_lambda(loss(model(in_double(inputs)), in_double(targets)), weights)


def lambda_by_lanczos(
    value: Tensor, weights: Sequence[Tensor], steps: int = 60
) -> tuple[float, float]:
    """λ₁ of a value's Hessian where a dense one is too large, and the residual ‖Hv − λ₁v‖, which bounds its error.

    Lanczos from a random vector, orthogonal to all before, twice; products by torch's own double
    backward.
    """
    slope = torch.autograd.grad(value, weights, create_graph=True)
    shapes = [w.shape for w in weights]
    sizes = [w.numel() for w in weights]
    basis = [
        torch.randn(sum(sizes), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ]
    basis[0] /= basis[0].norm()
    images: list[Tensor] = []
    for _ in range(steps):
        parts = [v.view(shape) for v, shape in zip(basis[-1].split(sizes), shapes, strict=True)]
        images.append(
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(slope, weights, parts, retain_graph=True)]
            )
        )
        following, rows = images[-1], torch.stack(basis)
        for _ in range(2):
            following = following - rows.T @ (rows @ following)
        basis.append(following / following.norm())
    rows, products = torch.stack(basis[:-1]), torch.stack(images)
    small = rows @ products.T
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    top = vectors[:, -1]
    return float(values[-1]), float((top @ products - values[-1] * (top @ rows)).norm())


def lambda_by_differences(model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> float:
    """The same by central differences of the gradient, where torch's double backward is wrong or lacking."""
    model = copy.deepcopy(model).double()
    weights = [p for p in model.parameters() if p.requires_grad]
    at = nn.utils.parameters_to_vector(weights).detach().clone()

    def gradient(w: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(w.clone(), weights)
        found = torch.autograd.grad(loss(model(in_double(inputs)), in_double(targets)), weights)
        return torch.cat([(g.to_dense() if g.is_sparse else g).flatten() for g in found])

    axes = STEP * torch.eye(len(at), dtype=torch.float64)
    return largest(torch.stack([(gradient(at + a) - gradient(at - a)) / (2 * STEP) for a in axes]))


def largest(matrix: Tensor) -> float:
    """Largest eigenvalue of the symmetric part."""
    return float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])


def in_double(tensor: Tensor) -> Tensor:
    """Numbers in double precision, integers as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor
