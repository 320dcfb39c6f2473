"""How a curvature product is done on one chunk: by double backward.

A builder takes the objective, the leaves and a chunk, and returns a product: a function from a flat
tangent to its image, one tensor per parameter. What it holds (a graph) lives as long as the
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

from optbench.curvature.data import Pair
from optbench.curvature.errors import MeasurementError
from optbench.curvature.loss_function import Objective
from optbench.fast_layers import CheapSecondDerivatives
from optbench.fast_layers.errors import ThirdDerivativeError

Tensors = Sequence[Tensor]


class Product(Protocol):
    """A tangent, shape (P,), ↦ its image, one tensor per parameter.

    The last product frees the graph as it goes, which lowers the peak of memory.
    """

    def __call__(self, tangent: Tensor, *, free_graph: bool = False) -> Tensors:
        """Return the image of a tangent."""


Builder = Callable[[Objective, Tensors, Pair], Product]


def build(builder: Builder, objective: Objective, leaves: Tensors, chunk: Pair) -> Product:
    """A product from the builder, through the layers that this model needs.

    Layers are put in whose second derivative is cheap, but not in a model that differentiates by
    itself: they have no third, and torch's norms have a wrong one. It gets norms of primitive
    operations. The objective remembers that, and `ModelOperator.layers` tells.
    """
    try:
        return builder(objective, leaves, chunk)
    except (ThirdDerivativeError, CheckpointError):
        if objective.differentiates_itself:
            raise
        objective.differentiates_itself = True
        return builder(objective, leaves, chunk)


def hessian_by_double_backward(objective: Objective, leaves: Tensors, chunk: Pair) -> Product:
    """H v = d/dw (∇L(w)·v), from a graph of the gradient that is kept."""
    layers: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    if objective.cheap:
        layers = CheapSecondDerivatives
    with layers():
        value = dependent(objective.value(leaves, chunk))
        with _twice():
            gradient = _edge(_derivative(value, leaves, create_graph=True))

    def product(tangent: Tensor, *, free_graph: bool = False) -> Tensors:
        with layers(), _twice():  # for what a checkpoint runs again
            return _derivative(gradient, leaves, tangent, free_graph=free_graph)

    return product


def dependent(value: Tensor) -> Tensor:
    """The loss, if it has a graph.

    Raises:
        MeasurementError: If it depends on no parameter.
    """
    if not value.requires_grad:
        raise MeasurementError(
            "the loss does not depend on the parameters: it, or the model's outputs, were "
            "detached, taken under torch.no_grad(), or come from other parameters than those selected"
        )
    return value


@contextlib.contextmanager
def _twice() -> Iterator[None]:
    """Say in one line what torch cannot differentiate twice."""
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
"""What torch's errors say where an operation has no second derivative."""


def _undifferentiable(why: Exception) -> MeasurementError:
    first = str(why).strip().splitlines()[0]
    return MeasurementError(
        f"torch cannot differentiate this loss twice ({first}): write that operation from others, "
        "or leave what is "
        "before it out with params=[…]"
    )


def gauss_newton_by_double_backward(objective: Objective, leaves: Tensors, chunk: Pair) -> Product:
    """G v = Jᵀ H_ℓ J v; J v is the derivative of u ↦ Jᵀu, so all of it is reverse mode."""
    outputs = dependent(_single(objective.outputs(leaves, chunk[0])))
    dual = torch.zeros_like(outputs, requires_grad=True)
    pulled = _edge(_derivative(outputs, leaves, dual, create_graph=True))
    slope, at = _output_gradient(objective, leaves, outputs, chunk)

    def product(tangent: Tensor, *, free_graph: bool = False) -> Tensors:
        (pushed,) = _derivative(pulled, [dual], tangent)  # J v
        (bent,) = _derivative(slope, [at], pushed)  # H_ℓ J v
        return _derivative(outputs, leaves, bent, free_graph=free_graph)  # Jᵀ H_ℓ J v

    return product


def _output_gradient(
    objective: Objective, leaves: Tensors, outputs: Tensor, chunk: Pair
) -> tuple[Tensor, Tensor]:
    """∇_f ℓ with its graph, and the outputs that it is taken at."""
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
    """Where the gradients, end to end, hang in the graph, None if nowhere: that is all; their numbers go free."""
    flat: Tensor = _EndToEnd.apply(*gradients)  # type: ignore[no-untyped-call]
    return get_gradient_edge(flat) if flat.requires_grad else None


class _EndToEnd(torch.autograd.Function):
    """Tensors as one flat vector of which only the derivative is wanted: no number is copied."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.shapes = [part.shape for part in parts]
        return parts[0].new_zeros(()).expand(sum(part.numel() for part in parts))

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor, ...]:
        pieces = torch.split(tangent, [shape.numel() for shape in ctx.shapes])
        return tuple(piece.view(shape) for piece, shape in zip(pieces, ctx.shapes, strict=True))


def _derivative(
    of: Tensor | GradientEdge | None,
    at: Tensors,
    along: Tensor | None = None,
    *,
    create_graph: bool = False,
    free_graph: bool = False,
) -> Tensors:
    """d(of·along)/d(at), zero where there is no dependence."""
    slopes: Sequence[Tensor | None] = [None] * len(at)
    if of is not None and (isinstance(of, GradientEdge) or of.requires_grad):
        slopes = grad(
            of,
            list(at),
            along,
            retain_graph=not free_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
    return [x.new_zeros(x.shape) if g is None else g for x, g in zip(at, slopes, strict=True)]
