"""Comparison of Hessian products with finite differences of the gradient.

It finds what double backward misses (detached parts of the loss) or gets wrong.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optbench.curvature.chunk_loss import Objective
from optbench.curvature.chunks import Pair
from optbench.curvature.errors import MeasurementError, SecondDerivativeWarning
from optbench.curvature.products import Builder, build

EXAMPLES = 8  # few: operations are tested, not data
STEP = 1e-5  # step h of the finite difference, relative to the root mean square weight
# Two finite differences, at h and h/2, that differ by more than STEADY (relative) may have a kink
# of the loss between their points. They then prove nothing, unless both are CLEAR times farther
# from H v than from each other.
STEADY = 1e-3
CLEAR = 10
WRONG = 5e-3  # relative difference from H v above which a warning is given
COPIES = 12  # memory of the comparison, in copies of the weights in double precision


NOT_THE_DIFFERENCE = (
    "products differ from differences of the gradient by {:.1%}: part of the loss is detached or "
    "held while it depends on the weights (a stop-gradient, a projection of weights in forward), "
    "or an operation has a wrong second derivative; the Hessian is that of the loss with this part "
    "held"
)


def check_derivatives(
    objective: Objective, sample: Pair, builder: Builder | None, memory: int
) -> None:
    """Check the second derivatives of a loss on a few examples, before products are trusted.

    Args:
        objective: The loss.
        sample: Inputs and targets.
        builder: Builder of products with the Hessian; None if the operator is not the Hessian, so
            that its products are not compared with finite differences.
        memory: Bytes that the comparison may take.

    Raises:
        MeasurementError: If torch would drop part of a derivative; see
            `refuse_dropped_derivatives`.

    Warns:
        SecondDerivativeWarning: If products differ from finite differences of the gradient.
    """
    with objective.evaluated():
        refuse_dropped_derivatives(objective, sample)
    if builder is None:
        return
    error = off_from_differences(objective, builder, sample, memory)
    if error is not None and error > WRONG:
        warnings.warn(NOT_THE_DIFFERENCE.format(error), SecondDerivativeWarning, stacklevel=4)


def refuse_dropped_derivatives(objective: Objective, sample: Pair) -> None:
    """Refuse a loss of whose second derivative torch would silently drop a part.

    Raises:
        MeasurementError: If the gradient passes through a function that is declared differentiable
            once, or if the model has a spectral norm in train mode: its singular vectors change
            with the weights, but torch differentiates as if they were constant.
    """
    for name, module in objective.model.named_modules():
        if _iterates(module):
            where = name.partition(".parametrizations")[0] or "the model"
            raise MeasurementError(
                f"spectral_norm of {where} is in train mode: its vectors change with the weights "
                "at every forward pass, and torch's derivatives hold them; measure with "
                "mode='eval', or put this module in eval mode"
            )
    leaves = objective.leaves()
    value = objective.value(leaves, sample)
    if not value.requires_grad:
        return
    gradients = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
    nodes = _nodes([g.grad_fn for g in gradients if g is not None and g.grad_fn is not None])
    # torch puts these nodes where a backward pass has no derivative.
    if nodes & {"torch::autograd::Error", "torch::autograd::DelayedError"}:
        raise MeasurementError(
            "an autograd function of this model is differentiable once (once_differentiable): its "
            "second derivative would be dropped; write its backward pass from differentiable "
            "operations"
        )


def _iterates(module: nn.Module) -> bool:
    """Whether a module is a spectral norm that does a power iteration in each forward pass."""
    hooked = any(type(h).__name__ == "SpectralNorm" for h in module._forward_pre_hooks.values())
    return module.training and (hooked or type(module).__name__ == "_SpectralNorm")


def _nodes(roots: Sequence[Any]) -> set[str]:
    """Names of all nodes of a graph."""
    seen, names, pending = set[Any](), set[str](), list(roots)
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names.add(node.name())
        pending += [following for following, _ in node.next_functions]
    return names


def off_from_differences(
    objective: Objective, builder: Builder, sample: Pair, memory: int
) -> float | None:
    """Relative error of H v against a central difference of the gradient, in double precision.

        ‖H v − d‖ / max(‖H v‖, ‖d‖),  d = (∇L(w + hv) − ∇L(w − hv)) / 2h,  v Gaussian.

    The error is large where part of the loss is detached (a target network, a stop-gradient), where
    a custom autograd function has no second derivative, where a layer depends on buffers that it
    changes (spectral norm in train mode), or where torch has a wrong derivative.

    Args:
        objective: The loss.
        builder: Builder of products with its Hessian.
        sample: Inputs and targets, a few examples.
        memory: Bytes that the comparison may take.

    Returns:
        The error; None where it cannot be determined: at a kink, where the model does not run in
        double precision, or where the comparison would take too much memory.
    """
    if sum(objective.sizes) * 8 * COPIES > memory:
        return None
    double = objective.in_double()
    data = (_double(sample[0]), _double(sample[1]))
    with contextlib.suppress(RuntimeError, TypeError, ValueError), double.evaluated():
        return _relative_error(double, builder, data)
    return None


def _relative_error(objective: Objective, builder: Builder, data: Pair) -> float | None:
    leaves = objective.leaves()
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(sum(objective.sizes), generator=generator, dtype=torch.float64).to(
        objective.device
    )
    # The gradient misses the padding rows, but a difference along them would see them.
    _hold_padding(objective, v)
    image = _flat(build(builder, objective, leaves, data)(v, free_graph=True))
    step = STEP * (float(_flat(leaves).square().mean().sqrt()) or 1.0)
    coarse = _difference(objective, leaves, v, data, step)
    fine = _difference(objective, leaves, v, data, step * 0.5)
    largest = float(torch.maximum(fine.norm(), image.norm()))
    if not largest > 0:
        return None
    error = float((fine - image).norm()) / largest
    # Both differences have an error of O(h²), unless a kink lies within h of the weights.
    unsteadiness = float((coarse - fine).norm()) / largest
    return error if unsteadiness < max(STEADY, error / CLEAR) else None


def _hold_padding(objective: Objective, v: Tensor) -> None:
    """Set v to zero in the padding rows of embeddings, which have no gradient."""
    rows = {
        id(m.weight): m.padding_idx
        for m in objective.model.modules()
        if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.padding_idx is not None
    }
    names = dict(objective.model.named_parameters())
    for name, part in zip(objective.names, objective.split(v), strict=True):
        if id(names[name]) in rows:
            part[rows[id(names[name])]] = 0


def _difference(
    objective: Objective, leaves: Sequence[Tensor], v: Tensor, data: Pair, h: float
) -> Tensor:
    """The central difference (∇L(w + hv) − ∇L(w − hv)) / 2h, flat, shape (P,)."""
    along = objective.split(v)

    def gradient(step: float) -> Tensor:
        at = [(w.detach() + step * d).requires_grad_() for w, d in zip(leaves, along, strict=True)]
        return _flat(torch.autograd.grad(objective.value(at, data), at, materialize_grads=True))

    return (gradient(h) - gradient(-h)) / (2 * h)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
