"""How a curvature product is done on one chunk: by double backward, or by linearization.

A builder takes the objective, the leaf (the weights, flat) and a chunk, and returns a product: a function from a
flat tangent to its image. What it holds (a graph) lives as long as the product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import grad
from torch.autograd.graph import GradientEdge, get_gradient_edge

from optbench.curvature.chunks import Pair
from optbench.curvature.objective import Objective

Product = Callable[[Tensor, bool, bool], Tensor]
"""(tangent, batched, last) -> image, each of shape (P,), or (B, P) if batched; the last product frees the
graph as it goes, which lowers the peak of memory."""
Builder = Callable[[Objective, Tensor, Pair], Product]


def hessian_by_double_backward(objective: Objective, leaf: Tensor, chunk: Pair) -> Product:
    """H v = d/dw (∇L(w)·v), from a graph of the gradient that is kept."""
    gradient = _edge(_derivative(objective.value(leaf, chunk), leaf, keep=True))

    def product(tangent: Tensor, batched: bool, last: bool) -> Tensor:
        return _derivative(gradient, leaf, tangent, batched, last=last)

    return product


def hessian_by_linearization(objective: Objective, leaf: Tensor, chunk: Pair) -> Product:
    """H v as the derivative of w ↦ ∇L(w), traced once."""

    def gradient(weights: Tensor) -> Tensor:
        slope: Tensor = torch.func.grad(lambda w: objective.value(w, chunk))(weights)
        return slope

    _, derivative = torch.func.linearize(gradient, leaf.detach())
    return _forward(derivative)


def gauss_newton_by_double_backward(objective: Objective, leaf: Tensor, chunk: Pair) -> Product:
    """G v = Jᵀ H_ℓ J v; J v is the derivative of u ↦ Jᵀu, so all of it is reverse mode."""
    outputs = _single(objective.outputs(leaf, chunk[0]))
    dual = torch.zeros_like(outputs, requires_grad=True)
    pulled = _edge(_derivative(outputs, leaf, dual, keep=True))
    slope, at = _output_gradient(objective, leaf, outputs, chunk)

    def product(tangent: Tensor, batched: bool, last: bool) -> Tensor:
        pushed = _derivative(pulled, dual, tangent, batched)
        bent = _derivative(slope, at, pushed, batched)
        return _derivative(outputs, leaf, bent, batched, last=last)

    return product


def gauss_newton_by_linearization(objective: Objective, leaf: Tensor, chunk: Pair) -> Product:
    """G v = Jᵀ H_ℓ J v, with w ↦ f(w) traced once for J and a kept graph for Jᵀ."""
    outputs = _single(objective.outputs(leaf, chunk[0]))
    slope, at = _output_gradient(objective, leaf, outputs, chunk)
    _, push = torch.func.linearize(lambda weights: objective.outputs(weights, chunk[0]), leaf.detach())
    forward = _forward(push)

    def product(tangent: Tensor, batched: bool, last: bool) -> Tensor:
        bent = _derivative(slope, at, forward(tangent, batched, last), batched)
        return _derivative(outputs, leaf, bent, batched, last=last)

    return product


def _forward(derivative: Callable[[Tensor], Tensor]) -> Product:
    def product(tangent: Tensor, batched: bool, last: bool) -> Tensor:
        return torch.func.vmap(derivative)(tangent) if batched else derivative(tangent)

    return product


def _output_gradient(objective: Objective, leaf: Tensor, outputs: Tensor, chunk: Pair) -> tuple[Tensor, Tensor]:
    at = outputs.detach().requires_grad_()
    return _derivative(objective.scalar(leaf, at, chunk[1]), at, keep=True), at


def _single(outputs: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"Gauss-Newton needs a model with one output tensor, got {type(outputs).__name__}")
    return outputs


def _edge(tensor: Tensor) -> GradientEdge | None:
    """Where the tensor hangs in the graph, None if nowhere: that is enough, and its P numbers go free."""
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def _derivative(
    of: Tensor | GradientEdge | None,
    at: Tensor,
    along: Tensor | None = None,
    batched: bool = False,
    keep: bool = False,
    last: bool = False,
) -> Tensor:
    """d(of·along)/d(at), zero where there is no dependence; the graph stays unless it is the last."""
    if of is None or (isinstance(of, Tensor) and not of.requires_grad):
        return at.new_zeros((*(along.shape[:1] if batched and along is not None else ()), *at.shape))
    return grad(
        of,
        at,
        along,
        retain_graph=not last,
        create_graph=keep,
        allow_unused=True,
        materialize_grads=True,
        is_grads_batched=batched,
    )[0]
