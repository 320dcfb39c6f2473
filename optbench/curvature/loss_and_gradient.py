"""The loss and its gradient, of the same function that an operator is the Hessian of."""

from __future__ import annotations

import torch
from torch import Tensor

from optbench.curvature import products
from optbench.curvature.hessian import ModelOperator


def loss_and_gradient(operator: ModelOperator) -> tuple[float, Tensor]:
    """L and ∇L at the current weights, over the operator's examples, in its mode and precision.

    One forward and one backward pass. The model's `.grad`, buffers and random state are left alone.

    Args:
        operator: A Hessian or Gauss-Newton matrix.

    Raises:
        MeasurementError: If the loss does not depend on the parameters.

    Returns:
        The mean loss, and its gradient, flat, shape (P,), in the order of the operator's rows.
    """
    if not isinstance(operator, ModelOperator):
        raise ValueError(
            f"operator must be a Hessian or GaussNewton, got {type(operator).__name__}"
        )
    operator.prepare()
    operator.objective.check_parameters()
    total, weights = 0.0, 0.0
    flat = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
    with operator.chunks.kept_rng(), operator.objective.evaluated():
        leaves = operator.objective.leaves()
        for weight, part in operator.chunks.weighted():
            value = operator.objective.value(leaves, part)
            pieces = torch.autograd.grad(products.dependent(value), leaves, materialize_grads=True)
            flat.add_(torch.cat([piece.reshape(-1) for piece in pieces]), alpha=weight)
            total += weight * float(value.detach())
            weights += weight
    return total / weights, flat / weights


def mean_loss(operator: ModelOperator) -> float:
    """L at the current weights, as `loss_and_gradient` has it; one forward pass."""
    if not isinstance(operator, ModelOperator):
        raise ValueError(
            f"operator must be a Hessian or GaussNewton, got {type(operator).__name__}"
        )
    operator.prepare()
    total, weights = 0.0, 0.0
    itself = operator.objective.differentiates_itself
    with operator.chunks.kept_rng(), operator.objective.evaluated(), torch.set_grad_enabled(itself):
        leaves = operator.objective.leaves()
        for weight, part in operator.chunks.weighted():
            total += weight * float(operator.objective.value(leaves, part))
            weights += weight
    return total / weights
