"""A loss as a function of one vector of weights, with derivatives up to the third."""

from collections.abc import Callable
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from optbench.curvature import Loss, MeasurementError, Operator
from optbench.curvature.second_derivatives import refuse_dropped_derivatives


class FlatLoss:
    """L(w) of a vector w of shape (P,), differentiable three times.

    Args:
        function: From w to a scalar; any function made of operations whose derivatives of third
            order are right. torch's own layer norm and batch norm are not such (pytorch issues
            175754 and 186256): use `of_model`.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    @classmethod
    def of_model(cls, loss: Loss) -> "FlatLoss":
        """Return the loss of a model over its data, the weights in the order of `loss`.

        Norms are computed from primitive operations, so that their third derivatives are right.

        Args:
            loss: Loss whose data come in one batch.

        Raises:
            MeasurementError: If the data come in several batches, or torch would drop part of a
                derivative.
        """
        batches = list(loss.chunks.weighted())
        if len(batches) != 1:
            raise MeasurementError(
                f"a flow needs all data in one batch, got {len(batches)}: pass one pair "
                "(inputs, targets)"
            )
        objective, (_, chunk) = loss.objective, batches[0]
        objective.differentiates_itself = True  # norms of primitive operations
        with objective.evaluated():
            refuse_dropped_derivatives(objective, chunk)

        def function(w: Tensor) -> Tensor:
            with objective.measured():  # what it may write to was looked at above
                return objective.value(objective.split(w), chunk)

        return cls(function)

    def value(self, w: Tensor) -> float:
        """L(w)."""
        with torch.no_grad():
            return float(self.function(w))

    def gradient(self, w: Tensor) -> Tensor:
        """∇L(w), (P,)."""
        w = w.detach().requires_grad_()
        return torch.autograd.grad(self.function(w), w)[0]

    def at(self, w: Tensor) -> "Derivatives":
        """Gradient, Hessian and third derivative at one point, from one graph."""
        return Derivatives(self.function, w)


class Derivatives:
    """Derivatives of a loss at a point.

    Attributes:
        value: L(w).
        gradient: ∇L(w), (P,).
        hessian: ∇²L(w), as an operator.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], w: Tensor) -> None:
        self._w = w.detach().requires_grad_()
        value = function(self._w)
        (self._gradient,) = torch.autograd.grad(value, self._w, create_graph=True)
        self.value = float(value.detach())
        self.gradient = self._gradient.detach()
        self.hessian = _HessianAt(self._w, self._gradient)

    def third(self, vectors: Tensor) -> Tensor:
        """∇(u_iᵀ ∇²L u_j) for the pairs i ≤ j of `pairs(K)`.

        Args:
            vectors: u as columns, (P, K).

        Returns:
            A row for each pair, (K (K + 1)/2, P).
        """
        count = vectors.shape[1]
        images = [_product(self._gradient, self._w, u, graph=True) for u in vectors.T]
        rows = [_product(images[j], self._w, vectors[:, i], graph=False) for i, j in pairs(count)]
        return torch.stack(rows) if rows else vectors.new_zeros(0, len(vectors))


def pairs(count: int) -> list[tuple[int, int]]:
    """The pairs i ≤ j below a count, in the order that symmetric matrices are written in."""
    return list(combinations_with_replacement(range(count), 2))


class _HessianAt(Operator):
    def __init__(self, w: Tensor, gradient: Tensor) -> None:
        self._w, self._gradient = w, gradient
        self.size, self.dtype, self.device = len(w), w.dtype, w.device

    def _apply(self, vectors: Tensor) -> Tensor:
        columns = [_product(self._gradient, self._w, v, graph=False) for v in vectors.T]
        return torch.stack(columns, dim=1)


def _product(gradient: Tensor, w: Tensor, v: Tensor, *, graph: bool) -> Tensor:
    """∇(gradient · v); 0 where the gradient does not depend on the weights."""
    if not gradient.requires_grad:
        return torch.zeros_like(w)
    (image,) = torch.autograd.grad(
        gradient, w, v, retain_graph=True, create_graph=graph, materialize_grads=True
    )
    return image
