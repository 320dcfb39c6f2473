"""Whether a loss over many examples is the weighted mean of its values over parts of them.

It is for a mean over examples. It is not for class weights, ignored targets, contrastive losses,
or layers with statistics of their own batch: there a part is another function than the whole.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from optbench.curvature.chunks import Chunks, Pair
from optbench.curvature.objective import Objective

LOSS_ROUNDING = 1e6  # units of rounding: terms of one loss are the same numbers, but what is left of them may cancel
GRADIENT_ROUNDING = 1e4  # and of gradients through a model, whose kernels depend on the size of the batch
COPIES = 16  # of all outputs, that comparing losses in double precision takes


def splits_into_parts(objective: Objective, chunks: Chunks, limit: int, memory: int, per_example: float) -> bool:
    """Whether every batch has the value, gradient and curvature of its parts of at most `limit` examples, weighted.

    The loss is compared on the outputs of every batch that would be cut. Once it is compared through the model: on
    the first such batch if one gradient of it fits in memory, else on the first `limit` examples of it in two parts.
    """
    through_model = objective.mixes_examples()  # what a batch norm does to parts is known, and refused elsewhere
    for batch in chunks.uncut():
        if len(batch[0]) <= limit:
            continue
        told = loss_differs(objective, chunks.parts(batch, limit), memory)
        if told:
            return False
        if not through_model or (told is None and not objective.mixes_examples()):
            through_model, fits = True, per_example * len(batch[0]) <= memory
            sample = batch if fits else (batch[0][:limit], batch[1][:limit])
            if differs(objective, chunks, sample, limit if fits else math.ceil(limit / 2)):
                return False
    return True


def batches_are_parts(objective: Objective, chunks: Chunks, memory: int) -> bool:
    """Whether the loss over all batches together is the weighted mean of theirs, as far as that can be told.

    Told from the outputs of all batches, put together, and from the first batch through the model, in two halves; where
    outputs do not fit together, from every batch in halves.
    """
    told = loss_differs(objective, (part for b in chunks.uncut() for part in chunks.parts(b, None)), memory)
    if told or objective.mixes_examples():
        return not told
    for batch in chunks.uncut():
        if differs(objective, chunks, batch, math.ceil(len(batch[0]) / 2)):
            return False
        if told is not None:
            break
    return True


def differs(objective: Objective, chunks: Chunks, batch: Pair, limit: int) -> bool:
    """Whether a batch's loss or gradient is not the weighted mean of its parts' of at most `limit` examples.

    Two gradients of the batch. False where it has one part, or where numbers are drawn that are not dropout's.
    """
    ((_, whole),) = chunks.parts(batch, None, weigh=False)
    if len(whole[0]) <= limit:
        return False
    with _without_dropout(objective.model):
        return not objective.draws(whole[0]) and _parts_differ(objective, chunks, batch, whole, limit)


@contextlib.contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout off, whose masks parts would draw anew: what is left tells whether examples depend on each other."""
    drops = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    try:
        for module in drops:
            module.training = False
        yield
    finally:
        for module in drops:
            module.training = True


def _parts_differ(objective: Objective, chunks: Chunks, batch: Pair, whole: Pair, limit: int) -> bool:
    leaves = objective.leaves()
    value, slope = _value_and_gradient(objective, leaves, whole)
    total, values, size = 0.0, 0.0, 0.0
    summed = torch.zeros_like(slope)
    for weight, part in chunks.parts(batch, limit):
        part_value, part_slope = _value_and_gradient(objective, leaves, part)
        summed.add_(part_slope, alpha=weight)
        total, values, size = total + weight, values + weight * part_value, size + weight * float(part_slope.norm())
    if not total > 0:
        return True
    allowed = GRADIENT_ROUNDING * torch.finfo(objective.dtype).eps
    same_value = abs(values / total - value) <= allowed * max(abs(value), abs(values) / total)
    same_slope = float((summed / total - slope).norm()) <= allowed * max(size / total, float(slope.norm()))
    return not (same_value and same_slope)


def loss_differs(objective: Objective, parts: Iterable[tuple[float, Pair]], memory: int) -> bool | None:
    """Whether the loss of all parts' outputs together is not the mean of theirs, in value, slope or curvature.

    One forward pass. None where it cannot be told: outputs that are no tensors with a row for each example, that do
    not fit together, or that would take more than the memory.
    """
    leaves, weights = objective.leaves(), list[float]()
    outputs, targets = list[Tensor](), list[Tensor]()
    for weight, (inputs, target) in parts:
        found = objective.outputs(leaves, inputs)  # gradients on: the model may take some itself
        if not _has_rows(found, len(inputs)) or sum(x.nbytes for x in (*outputs, found)) * COPIES > memory:
            return None
        weights.append(weight)
        outputs.append(found.detach())
        targets.append(target)
    if not (_fit_together(outputs) and _fit_together(targets)):
        return None
    total = math.fsum(weights)
    if not total > 0:
        return True
    shares = [weight / total for weight in weights]
    # In double precision: near interpolation a slope is what is left of two numbers that cancel.
    double = objective.in_double()
    with contextlib.suppress(RuntimeError, TypeError), double.measured():
        wide = [x.double() for x in outputs], [x.double() if x.is_floating_point() else x for x in targets]
        return _differ(double, double.leaves(), shares, *wide, LOSS_ROUNDING)
    return _differ(objective, leaves, shares, outputs, targets, GRADIENT_ROUNDING)  # it takes no doubles


def _differ(
    objective: Objective,
    leaves: Sequence[Tensor],
    shares: Sequence[float],
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    rounding: float,
) -> bool:
    whole = _Bent(objective, leaves, torch.cat(list(outputs)), torch.cat(list(targets)))
    bent = [_Bent(objective, leaves, o, t) for o, t in zip(outputs, targets, strict=True)]

    def mean(of: Callable[[_Bent], Tensor]) -> Tensor:
        return torch.cat([share * of(each) for share, each in zip(shares, bent, strict=True)])

    allowed = rounding * torch.finfo(outputs[0].dtype).eps
    return not (
        _close(whole.value, mean(lambda b: b.value.reshape(1)).sum(), allowed)
        and _close(whole.slope, mean(lambda b: b.slope), allowed)
        and _close(whole.curvature, mean(lambda b: b.curvature), allowed)
    )


class _Bent:
    """Value of a loss at given outputs, its gradient there, and the change of that along a fixed direction."""

    def __init__(self, objective: Objective, leaves: Sequence[Tensor], outputs: Tensor, targets: Tensor) -> None:
        at = outputs.detach().requires_grad_()
        value = objective.scalar(leaves, at.clone(), targets)  # a loss may write to what it is given
        self.value = value.detach()
        self.slope = self.curvature = torch.zeros_like(outputs)
        if not value.requires_grad:
            return
        (slope,) = torch.autograd.grad(value, at, create_graph=True, materialize_grads=True)
        self.slope = slope.detach()
        if slope.requires_grad:
            # Of a row only, whatever the number of rows: whole and parts get the same direction.
            row = torch.linspace(1, 2, outputs[0].numel(), dtype=outputs.dtype, device=outputs.device)
            along = row.view(outputs[0].shape).expand(outputs.shape)
            (self.curvature,) = torch.autograd.grad(slope, at, along, materialize_grads=True)


def _close(a: Tensor, b: Tensor, allowed: float) -> bool:
    return bool((a - b).norm() <= allowed * torch.maximum(a.norm(), b.norm()))


def _has_rows(outputs: object, count: int) -> bool:
    rows = isinstance(outputs, Tensor) and outputs.ndim > 0 and len(outputs) == count
    return rows and isinstance(outputs, Tensor) and outputs.is_floating_point()


def _fit_together(tensors: Sequence[Tensor]) -> bool:
    return len({(t.shape[1:], t.dtype) for t in tensors}) == 1


def _value_and_gradient(objective: Objective, leaves: Sequence[Tensor], data: Pair) -> tuple[float, Tensor]:
    value = objective.value(leaves, data)
    if not value.requires_grad:
        return float(value), torch.cat([torch.zeros_like(leaf).reshape(-1) for leaf in leaves])
    pieces = torch.autograd.grad(value, list(leaves), materialize_grads=True)
    return float(value.detach()), torch.cat([piece.reshape(-1) for piece in pieces])
