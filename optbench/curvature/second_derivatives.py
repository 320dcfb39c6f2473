"""Second derivatives against differences of the first: what double backward cannot see, or gets wrong."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optbench.curvature.data import Pair
from optbench.curvature.errors import MeasurementError, SecondDerivativeWarning
from optbench.curvature.loss_function import Objective
from optbench.curvature.products import Builder, build

EXAMPLES = 8  # operations are what is looked at, not data
STEP = 1e-5  # of the root mean square weight, in double precision
# relative difference of two differences, above which a kink may lie between them: then they tell
STEADY = 1e-3
CLEAR = 10  # nothing, unless both are this many times farther from H v than from each other
WRONG = 5e-3  # relative difference from H v that is said
COPIES = 12  # of the weights in double precision, that this takes


NOT_THE_DIFFERENCE = (
    "products differ from differences of the gradient by {:.1%}: part of the loss is detached or "
    "held while it depends "
    "on the weights (a stop-gradient, a projection of weights in forward), or an operation has a "
    "wrong second "
    "derivative; the Hessian is that of the loss with this part held"
)


def check_derivatives(
    objective: Objective, sample: Pair, builder: Builder | None, memory: int
) -> None:
    """Look at the second derivatives of a loss on a few examples, before products are trusted.

    Args:
        objective: The loss.
        sample: Inputs and targets.
        builder: How products with its Hessian are done; None if there are none to compare with
            differences.
        memory: Bytes that the comparison may take.

    Raises:
        MeasurementError: If torch would drop a part of them, see `refuse_dropped_derivatives`.

    Warns:
        SecondDerivativeWarning: If products are not the differences of the gradient.
    """
    with objective.evaluated():
        refuse_dropped_derivatives(objective, sample)
    off = None if builder is None else off_from_differences(objective, builder, sample, memory)
    if off is not None and off > WRONG:
        warnings.warn(NOT_THE_DIFFERENCE.format(off), SecondDerivativeWarning, stacklevel=4)


def refuse_dropped_derivatives(objective: Objective, sample: Pair) -> None:
    """Look for what torch drops without a word when a gradient is differentiated.

    Raises:
        MeasurementError: If the gradient passes a function that is declared to be differentiable
            once, or the model has a spectral norm in train mode, whose vectors move with the
            weights while torch holds them.
    """
    for name, module in objective.model.named_modules():
        if _iterates(module):
            where = name.partition(".parametrizations")[0] or "the model"
            raise MeasurementError(
                f"spectral_norm of {where} is in train mode: its vectors change with the weights "
                "at every forward "
                "pass, and torch's derivatives hold them; measure with mode='eval', or put this "
                "module in eval mode"
            )
    leaves = objective.leaves()
    value = objective.value(leaves, sample)
    if not value.requires_grad:
        return
    gradients = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
    found = _nodes([g.grad_fn for g in gradients if g is not None and g.grad_fn is not None])
    if found & {"torch::autograd::Error", "torch::autograd::DelayedError"}:
        raise MeasurementError(
            "an autograd function of this model is differentiable once (once_differentiable): its "
            "second derivative "
            "would be dropped; write its backward pass from differentiable operations"
        )


def _iterates(module: nn.Module) -> bool:
    """Whether a module is a spectral norm that does power iterations when it is called."""
    old = any(type(hook).__name__ == "SpectralNorm" for hook in module._forward_pre_hooks.values())
    return module.training and (old or type(module).__name__ == "_SpectralNorm")


def _nodes(roots: Sequence[Any]) -> set[str]:
    """Names of all nodes of a graph."""
    seen, names, left = set[Any](), set[str](), list(roots)
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names.add(node.name())
        left += [following for following, _ in node.next_functions]
    return names


def off_from_differences(
    objective: Objective, builder: Builder, sample: Pair, memory: int
) -> float | None:
    """How far H v is from (∇L(w + hv) − ∇L(w − hv)) / 2h, relative, on a few examples in double precision.

    It is far where a part of the loss is detached (a target network, a stop-gradient), a custom
    autograd function has no second derivative, a layer changes with its own buffers (spectral norm
    in train mode), or torch is wrong. None where it cannot be told: at a kink, where the model does
    not run in double precision, where weights are too many.

    Args:
        objective: The loss.
        builder: How its products are done.
        sample: Inputs and targets, a few.
        memory: Bytes that it may take.
    """
    if sum(objective.sizes) * 8 * COPIES > memory:
        return None
    double = objective.in_double()
    data = (_double(sample[0]), _double(sample[1]))
    with contextlib.suppress(RuntimeError, TypeError, ValueError), double.evaluated():
        return _off(double, builder, data)
    return None


def _off(objective: Objective, builder: Builder, data: Pair) -> float | None:
    leaves = objective.leaves()
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(sum(objective.sizes), generator=generator, dtype=torch.float64).to(
        objective.device
    )
    _hold_padding(objective, v)
    image = _flat(build(builder, objective, leaves, data)(v, free_graph=True))
    size = float(_flat(leaves).square().mean().sqrt()) or 1.0
    one, other = (
        _difference(objective, leaves, v, data, STEP * size * part) for part in (1.0, 0.5)
    )
    largest = float(torch.maximum(other.norm(), image.norm()))
    if not largest > 0:
        return None
    off, unsteady = float((other - image).norm()) / largest, float((one - other).norm()) / largest
    return off if unsteady < max(STEADY, off / CLEAR) else None


def _hold_padding(objective: Objective, v: Tensor) -> None:
    """Zero in the padding rows of embeddings, to which torch gives no gradient: they do not train."""
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
    along = objective.split(v)

    def gradient(step: float) -> Tensor:
        at = [(w.detach() + step * d).requires_grad_() for w, d in zip(leaves, along, strict=True)]
        return _flat(torch.autograd.grad(objective.value(at, data), at, materialize_grads=True))

    return (gradient(h) - gradient(-h)) / (2 * h)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
