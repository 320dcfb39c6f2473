"""Curvature products on one chunk of data, by double backward.

A builder takes the objective, the leaves and a chunk, and returns a product: a function from a flat
tangent v, shape (P,), to its image A v, one tensor per parameter. The graph lives as long as the
product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import grad
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.checkpoint import CheckpointError

from optbench.curvature.chunk_loss import Objective
from optbench.curvature.chunks import Pair
from optbench.curvature.errors import MeasurementError
from optbench.fast_layers import CheapSecondDerivatives
from optbench.fast_layers.errors import ThirdDerivativeError

Tensors = Sequence[Tensor]


class Product(Protocol):
    """Function from a tangent, shape (P,), to its image, one tensor per parameter.

    With `free_graph`, for the last product, the graph is freed on the way: the peak of memory is
    lower.
    """

    def __call__(self, tangent: Tensor, *, free_graph: bool = False) -> Tensors:
        """Return the image of a tangent."""


Builder = Callable[[Objective, Tensors, Pair], Product]


def build(builder: Builder, objective: Objective, leaves: Tensors, chunk: Pair) -> Product:
    """Product from the builder, through layers with the derivatives that this model needs.

    Layers with a cheap second derivative are used, except in a model that differentiates by itself,
    whose Hessian needs third derivatives: these layers have none, and torch's norms have wrong
    ones. Such a model gets norms of primitive operations, which the objective remembers and
    `ModelOperator.layers` reports.
    """
    try:
        return builder(objective, leaves, chunk)
    except (ThirdDerivativeError, CheckpointError):
        if objective.differentiates_itself:
            raise
        objective.differentiates_itself = True
        return builder(objective, leaves, chunk)


def hessian_by_double_backward(objective: Objective, leaves: Tensors, chunk: Pair) -> Product:
    """Products H v = d/dw (∇L(w)·v), from one graph of the gradient ∇L(w)."""
    # Double backward: differentiate once with create_graph, then contract with v and differentiate.
    layers: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    if objective.cheap:
        layers = CheapSecondDerivatives
    with layers():
        value = dependent(objective.value(leaves, chunk))
        with _twice():
            gradient = _edge(_derivative(value, leaves, create_graph=True))

    def product(tangent: Tensor, *, free_graph: bool = False) -> Tensors:
        with layers(), _twice():  # layers again: a checkpoint reruns its forward pass in here
            return _derivative(gradient, leaves, tangent, free_graph=free_graph)

    return product


def dependent(value: Tensor) -> Tensor:
    """Return the loss, which must have a graph.

    Raises:
        MeasurementError: If it depends on no parameter.
    """
    if not value.requires_grad:
        raise MeasurementError(
            "the loss does not depend on the parameters: it, or the model's outputs, were "
            "detached, taken under torch.no_grad(), or come from other parameters than those "
            "selected"
        )
    return value


@contextlib.contextmanager
def _twice() -> Iterator[None]:
    """Context that turns torch's errors about second derivatives into a MeasurementError."""
    try:
        yield
    except NotImplementedError as why:
        raise _undifferentiable(why) from why
    except RuntimeError as why:
        retried = isinstance(why, (ThirdDerivativeError, CheckpointError))
        if retried or not any(sign in str(why) for sign in UNDIFFERENTIABLE):
            raise
        raise _undifferentiable(why) from why


UNDIFFERENTIABLE = (
    "is not implemented",
    "not differentiable",
    "does not require grad",
    "double backward",
    "double-backward",
    "once_differentiable",
    "differentiate twice",
    "is not supported",
    "not compatible with .grad()",
    "incompatible with .grad()",
    "don't support automatic differentiation",
    "not implemented for",
)
"""Parts of torch's error messages where an operation has no second derivative."""


def _undifferentiable(why: Exception) -> MeasurementError:
    first = str(why).strip().splitlines()[0]
    return MeasurementError(
        f"torch cannot differentiate this loss twice ({first}): write that operation from others, "
        "or leave what is before it out with params=[…]"
    )


def gauss_newton_by_double_backward(objective: Objective, leaves: Tensors, chunk: Pair) -> Product:
    """Products G v = Jᵀ H_ℓ J v, J = ∂f/∂w, H_ℓ = ∇²_f ℓ, in reverse mode alone.

    J v is the derivative of the linear map u ↦ Jᵀu, contracted with v.
    """
    outputs = dependent(_single(objective.outputs(leaves, chunk[0])))
    # Jᵀu for a dummy u: it is linear in u, so the value u = 0 does not matter.
    dual = torch.zeros_like(outputs, requires_grad=True)
    pulled = _edge(_derivative(outputs, leaves, dual, create_graph=True))
    output_gradient, at = _output_gradient(objective, leaves, outputs, chunk)

    def product(tangent: Tensor, *, free_graph: bool = False) -> Tensors:
        (pushed,) = _derivative(pulled, [dual], tangent)  # J v
        (curved,) = _derivative(output_gradient, [at], pushed)  # H_ℓ J v
        return _derivative(outputs, leaves, curved, free_graph=free_graph)  # Jᵀ H_ℓ J v

    return product


def _output_gradient(
    objective: Objective, leaves: Tensors, outputs: Tensor, chunk: Pair
) -> tuple[Tensor, Tensor]:
    """Gradient ∇_f ℓ with its graph, and the outputs f that it is a function of."""
    # Cut from the model's graph: H_ℓ is the second derivative in the outputs alone.
    at = outputs.detach().requires_grad_()
    value = dependent(objective.scalar(leaves, at.clone(), chunk[1]))
    (slope,) = _derivative(value, [at], create_graph=True)
    return slope, at


def _single(outputs: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"Gauss-Newton needs a model with one output tensor, got {type(outputs).__name__}"
        )
    return outputs


def _edge(gradients: Tensors) -> GradientEdge | None:
    """Graph node of the flat gradient, so that its numbers can be freed; None without a graph."""
    flat: Tensor = _EndToEnd.apply(*gradients)  # type: ignore[no-untyped-call]
    return get_gradient_edge(flat) if flat.requires_grad else None


class _EndToEnd(torch.autograd.Function):
    """Concatenation of tensors to one flat vector, for its derivative only: nothing is copied."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.shapes = [part.shape for part in parts]
        return parts[0].new_zeros(()).expand(sum(part.numel() for part in parts))

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor, ...]:
        pieces = torch.split(tangent, [shape.numel() for shape in ctx.shapes])
        return tuple(piece.view(shape) for piece, shape in zip(pieces, ctx.shapes, strict=True))


def _derivative(
    output: Tensor | GradientEdge | None,
    at: Tensors,
    along: Tensor | None = None,
    *,
    create_graph: bool = False,
    free_graph: bool = False,
) -> Tensors:
    """Vector-Jacobian product d(output·along)/d(at), zero where there is no dependence."""
    slopes: Sequence[Tensor | None] = [None] * len(at)
    if output is not None and (isinstance(output, GradientEdge) or output.requires_grad):
        slopes = grad(
            output,
            list(at),
            along,
            retain_graph=not free_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
    return [x.new_zeros(x.shape) if g is None else g for x, g in zip(at, slopes, strict=True)]
