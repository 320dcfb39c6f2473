"""How a curvature product is done on one chunk: by double backward, or by linearization.

A builder takes the objective, the leaves and a chunk, and returns a product: a function from one
tangent per parameter to its image. What it holds (a graph) lives as long as the product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import grad
from torch.autograd.graph import GradientEdge, get_gradient_edge

from optbench.curvature.chunks import Pair
from optbench.curvature.objective import Objective

Tensors = Sequence[Tensor]
Product = Callable[[Tensors, bool, bool], Tensors]
"""(tangents, batched, last) -> images. Batched tangents have the vectors as an extra first dimension;
the last product frees the graph as it goes, which lowers the peak of memory."""
Builder = Callable[[Objective, Tensors, Pair], Product]


def hessian_by_double_backward(objective: Objective, leaves: Tensors, chunk: Pair) -> Product:
    """H v = d/dw (∇L(w)·v), from a graph of the gradient that is kept."""
    loss = objective.value(leaves, chunk)
    gradients = _edges(_derivative([loss], leaves, keep=True))

    def product(tangents: Tensors, batched: bool, last: bool) -> Tensors:
        return _derivative(gradients, leaves, tangents, batched, last=last)

    return product


def hessian_by_linearization(objective: Objective, leaves: Tensors, chunk: Pair) -> Product:
    """H v as the derivative of w ↦ ∇L(w), traced once."""

    def gradient(weights: Tensors) -> Tensors:
        slope: Tensors = torch.func.grad(lambda w: objective.value(w, chunk))(weights)
        return slope

    _, derivative = torch.func.linearize(gradient, tuple(leaf.detach() for leaf in leaves))
    return _forward(derivative)


def gauss_newton_by_double_backward(objective: Objective, leaves: Tensors, chunk: Pair) -> Product:
    """G v = Jᵀ H_ℓ J v; J v is the derivative of u ↦ Jᵀu, so all of it is reverse mode."""
    outputs = _single(objective.outputs(leaves, chunk[0]))
    dual = torch.zeros_like(outputs, requires_grad=True)
    pulled = _edges(_derivative([outputs], leaves, [dual], keep=True))
    slope, at = _output_gradient(objective, leaves, outputs, chunk)

    def product(tangents: Tensors, batched: bool, last: bool) -> Tensors:
        pushed = _derivative(pulled, [dual], tangents, batched)
        bent = _derivative([slope], [at], pushed, batched)
        return _derivative([outputs], leaves, bent, batched, last=last)

    return product


def gauss_newton_by_linearization(objective: Objective, leaves: Tensors, chunk: Pair) -> Product:
    """G v = Jᵀ H_ℓ J v, with w ↦ f(w) traced once for J and a kept graph for Jᵀ."""
    outputs = _single(objective.outputs(leaves, chunk[0]))
    slope, at = _output_gradient(objective, leaves, outputs, chunk)

    def model(weights: Tensors) -> Tensor:
        return objective.outputs(weights, chunk[0])

    _, push = torch.func.linearize(model, tuple(leaf.detach() for leaf in leaves))
    forward = _forward(lambda tangents: (push(tangents),))

    def product(tangents: Tensors, batched: bool, last: bool) -> Tensors:
        bent = _derivative([slope], [at], forward(tangents, batched, last), batched)
        return _derivative([outputs], leaves, bent, batched, last=last)

    return product


def _forward(derivative: Callable[[tuple[Tensor, ...]], Tensors]) -> Product:
    def product(tangents: Tensors, batched: bool, last: bool) -> Tensors:
        columns = tuple(tangents)
        return torch.func.vmap(derivative)(columns) if batched else derivative(columns)

    return product


def _output_gradient(objective: Objective, leaves: Tensors, outputs: Tensor, chunk: Pair) -> tuple[Tensor, Tensor]:
    at = outputs.detach().requires_grad_()
    slope = _derivative([objective.scalar(leaves, at, chunk[1])], [at], keep=True)[0]
    return slope, at


def _single(outputs: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"Gauss-Newton needs a model with one output tensor, got {type(outputs).__name__}")
    return outputs


def _edges(tensors: Tensors) -> list[GradientEdge | None]:
    """Where the tensors hang in the graph, None if nowhere: that is enough, and their P numbers go free."""
    return [get_gradient_edge(t) if t.requires_grad else None for t in tensors]


def _derivative(
    of: Sequence[Tensor | GradientEdge | None],
    at: Tensors,
    along: Tensors | None = None,
    batched: bool = False,
    keep: bool = False,
    last: bool = False,
) -> Tensors:
    """d(of·along)/d(at), zero where there is no dependence; the graph stays unless it is the last."""
    vectors = [None] * len(of) if along is None else list(along)
    roots = [f if not isinstance(f, Tensor) or f.requires_grad else None for f in of]
    pairs = [(f, v) for f, v in zip(roots, vectors, strict=True) if f is not None]
    if not pairs:
        lead = vectors[0].shape[:1] if batched and vectors[0] is not None else ()
        return [x.new_zeros((*lead, *x.shape)) for x in at]
    functions, directions = zip(*pairs, strict=True)
    return grad(
        functions,
        list(at),
        directions,
        retain_graph=not last,
        create_graph=keep,
        allow_unused=True,
        materialize_grads=True,
        is_grads_batched=batched,
    )
