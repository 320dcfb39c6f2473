"""The loss and its gradient, of the same function that an operator is the Hessian of."""

from __future__ import annotations

import torch
from torch import Tensor

from optbench.curvature.hessian import ModelOperator


def loss_and_gradient(operator: ModelOperator) -> tuple[float, Tensor]:
    """L and ∇L at the current weights, over the operator's examples, in its mode and precision.

    One forward and one backward pass. The model's `.grad`, buffers and random state are left alone.

    Args:
        operator: A Hessian or Gauss-Newton matrix.

    Returns:
        The mean loss, and its gradient, flat, shape (P,), in the order of the operator's rows.
    """
    operator.prepare()  # sets the size of the chunks
    leaves = operator.objective.leaves()
    total, examples = 0.0, 0
    flat = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
    with operator.chunks.kept_rng(), operator.objective.measured():
        for inputs, targets in operator.chunks:
            value = operator.objective.value(leaves, (inputs, targets))
            pieces = torch.autograd.grad(value, leaves, materialize_grads=True)
            flat.add_(torch.cat([piece.reshape(-1) for piece in pieces]), alpha=len(inputs))
            total += len(inputs) * float(value.detach())
            examples += len(inputs)
    return total / examples, flat / examples


def mean_loss(operator: ModelOperator) -> float:
    """L at the current weights, as `loss_and_gradient` has it; one forward pass."""
    operator.prepare()
    leaves = operator.objective.leaves()
    total, examples = 0.0, 0
    with operator.chunks.kept_rng(), operator.objective.measured(), torch.no_grad():
        for inputs, targets in operator.chunks:
            total += len(inputs) * float(operator.objective.value(leaves, (inputs, targets)))
            examples += len(inputs)
    return total / examples
