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

from optbench.curvature.data import Chunks, Pair
from optbench.curvature.loss_function import Objective

# relative difference of losses in double precision: the same terms, but what is left of them may
# cancel
EXACT = 2e-10
GIVEN = 1e-5  # and where weights were given, perhaps in single precision
# units of rounding of gradients through a model, whose kernels depend on the size of the batch
GRADIENT_ROUNDING = 1e4
VALUE = 1e-5  # and of values in single precision, sums of many terms
COPIES = 16  # of all outputs, that comparing losses in double precision takes
ONLY_VALUE = 4  # and that comparing their values takes


def splits_into_parts(
    objective: Objective, chunks: Chunks, limit: int, memory: int, per_example: float
) -> bool:
    """Whether every batch has the value, gradient and curvature of its parts of at most `limit` examples, weighted.

    1. The loss is compared on the outputs of every batch that would be cut.
    2. The first such batch is compared through the model: all of it if one gradient of it fits in
       memory, else its first `limit` examples in two parts. Every batch is, and all of it, where 1.
       cannot tell.
    3. What cannot be told is no: a batch is then not cut. A weight that the user gave is taken at
       his word.
    """
    # what a batch norm does to parts is known, and refused elsewhere
    through_model = objective.mixes_examples()
    for batch in chunks.uncut():
        if len(batch[0]) <= limit:
            continue
        told = loss_differs(objective, chunks.parts(batch, limit), memory, _allowed(chunks))
        if told:
            return False
        fits = per_example * len(batch[0]) <= memory
        if told is None and chunks.weight is None and not fits:
            return False
        if not through_model or told is None:
            through_model = True
            sample = batch if fits else (batch[0][:limit], batch[1][:limit])
            if differs(objective, chunks, sample, limit if fits else math.ceil(limit / 2)):
                return False
    return True


def still_splits(objective: Objective, chunks: Chunks, memory: int) -> bool:
    """Whether batches that are cut have the loss of their parts at these weights too; one forward pass.

    A loss may come to depend on the whole: one of the hardest examples, of those above a threshold,
    of new targets.
    """
    limit = chunks.limit
    cut = (batch for batch in chunks.uncut() if limit is not None and len(batch[0]) > limit)
    return not any(
        loss_differs(objective, chunks.parts(batch, limit), memory, _allowed(chunks))
        for batch in cut
    )


def batches_are_parts(objective: Objective, chunks: Chunks, memory: int) -> bool:
    """Whether the loss over all batches together is the weighted mean of theirs, as far as that can be told.

    Told from the outputs of all batches, put together, and from the first batch through the model,
    in two halves; where outputs take too much memory, from every batch in halves. Batches of
    different lengths do not fit together, so that they cannot be told to weigh as many as they have
    examples: no.
    """
    parts = (part for b in chunks.uncut() for part in chunks.parts(b, None))
    shapes = {targets.shape[1:] for _, targets in chunks.uncut()}
    told = loss_differs(objective, parts, memory) if len(shapes) == 1 else True
    if told or objective.mixes_examples():
        return not told
    for batch in chunks.uncut():
        if differs(objective, chunks, batch, math.ceil(len(batch[0]) / 2)):
            return False
        if told is not None:
            break
    return True


def _allowed(chunks: Chunks) -> float:
    """Relative difference that is rounding: that of the weights too, where the user gave them."""
    return EXACT if chunks.weight is None else GIVEN


def differs(objective: Objective, chunks: Chunks, batch: Pair, limit: int) -> bool:
    """Whether a batch's loss or gradient is not the weighted mean of its parts' of at most `limit` examples.

    Two gradients of the batch. False where it has one part, or where numbers are drawn that are not
    dropout's.
    """
    ((_, whole),) = chunks.parts(batch, None, weigh=False)
    if len(whole[0]) <= limit:
        return False
    with _without_dropout(objective.model):
        return not objective.draws(whole[0]) and _parts_differ(
            objective, chunks, batch, whole, limit
        )


@contextlib.contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout off, whose masks parts would draw anew: what is left tells whether examples depend on each other."""
    drops = [
        m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training
    ]
    try:
        for module in drops:
            module.training = False
        yield
    finally:
        for module in drops:
            module.training = True


def _parts_differ(
    objective: Objective, chunks: Chunks, batch: Pair, whole: Pair, limit: int
) -> bool:
    leaves = objective.leaves()
    value, slope = _value_and_gradient(objective, leaves, whole)
    total, values, terms, size = 0.0, 0.0, 0.0, 0.0
    summed = torch.zeros_like(slope)
    for weight, part in chunks.parts(batch, limit):
        part_value, part_slope = _value_and_gradient(objective, leaves, part)
        summed.add_(part_slope, alpha=weight)
        total, values, terms = (
            total + weight,
            values + weight * part_value,
            terms + weight * abs(part_value),
        )
        size += weight * float(part_slope.norm())
    if not total > 0:
        return True
    allowed = GRADIENT_ROUNDING * torch.finfo(objective.dtype).eps
    reach = size / total * float(torch.cat([leaf.detach().reshape(-1) for leaf in leaves]).norm())
    same_value = abs(values / total - value) <= allowed * max(abs(value), terms / total, reach)
    same_slope = float((summed / total - slope).norm()) <= allowed * max(
        size / total, float(slope.norm())
    )
    return not (same_value and same_slope)


def loss_differs(
    objective: Objective, parts: Iterable[tuple[float, Pair]], memory: int, allowed: float = EXACT
) -> bool | None:
    """Whether the loss of all parts' outputs together is not the mean of theirs, in value, slope or curvature.

    One forward pass. None where it cannot be told: outputs that are no tensors with a row for each
    example, that do not fit together, or that would take more than the memory; in value alone where
    that is much.
    """
    leaves, weights = objective.leaves(), list[float]()
    outputs, targets, size = list[Tensor](), list[Tensor](), 0
    for weight, (inputs, target) in parts:
        found = objective.outputs(leaves, inputs)  # gradients on: the model may take some itself
        size += found.nbytes if isinstance(found, Tensor) else 0
        if not _has_rows(found, len(inputs)) or size * ONLY_VALUE > memory:
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
    single = max(allowed, GRADIENT_ROUNDING * torch.finfo(objective.dtype).eps)
    try:
        if size * COPIES > memory:
            return _value_differs(objective, shares, outputs, targets, max(allowed, VALUE))
        # In double precision: near interpolation a slope is what is left of two numbers that
        # cancel.
        double = objective.in_double()
        with contextlib.suppress(RuntimeError, TypeError), double.measured():
            wide = (
                [x.double() for x in outputs],
                [x.double() if x.is_floating_point() else x for x in targets],
            )
            return _differ(double, shares, *wide, allowed)
        return _differ(objective, shares, outputs, targets, single)  # it takes no doubles
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError):
        return None  # a loss that reads what only a forward pass leaves in the model


def _value_differs(
    objective: Objective,
    shares: Sequence[float],
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    allowed: float,
) -> bool:
    """Whether values differ at these outputs, or at others near them, which slope and curvature tell of."""
    leaves, everything, labels = (
        objective.leaves(),
        torch.cat(list(outputs)),
        torch.cat(list(targets)),
    )
    counts = [len(o) for o in outputs]
    generator = torch.Generator().manual_seed(0)
    for size in (0.0, 1.0):
        if size:
            noise = torch.randn(everything.shape, generator=generator, dtype=everything.dtype)
            everything = everything + noise.to(everything.device) * (
                size + everything.square().mean().sqrt()
            )
        with torch.no_grad():
            whole = float(objective.scalar(leaves, everything.clone(), labels))
            pieces = zip(shares, everything.split(counts), labels.split(counts), strict=True)
            terms = [
                share * float(objective.scalar(leaves, o.clone(), t)) for share, o, t in pieces
            ]
        if not abs(math.fsum(terms) - whole) <= allowed * max(
            abs(whole), math.fsum(map(abs, terms))
        ):
            return True
    return False


def _differ(
    objective: Objective,
    shares: Sequence[float],
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    allowed: float,
) -> bool:
    everything = torch.cat(list(outputs))
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(everything.shape, generator=generator, dtype=everything.dtype).to(
        everything.device
    )
    whole = _Bent(objective, everything, torch.cat(list(targets)), along)
    pieces = along.split([len(o) for o in outputs])
    bent = [_Bent(objective, o, t, v) for o, t, v in zip(outputs, targets, pieces, strict=True)]

    def mean(of: Callable[[_Bent], Tensor]) -> Tensor:
        return torch.cat([share * of(each) for share, each in zip(shares, bent, strict=True)])

    values = mean(lambda b: b.value.reshape(1))
    terms = torch.stack(
        [whole.value.abs(), values.abs().sum(), whole.slope.norm() * everything.norm()]
    ).max()
    return not (
        bool((whole.value - values.sum()).abs() <= allowed * terms)
        and _close(whole.slope, mean(lambda b: b.slope), allowed)
        and _close(whole.curvature, mean(lambda b: b.curvature), allowed)
    )


class _Bent:
    """Value of a loss at given outputs, its gradient there, and the change of that along a direction."""

    def __init__(
        self, objective: Objective, outputs: Tensor, targets: Tensor, along: Tensor
    ) -> None:
        at = outputs.detach().requires_grad_()
        # a loss may write to what it is given
        value = objective.scalar(objective.leaves(), at.clone(), targets)
        self.value = value.detach()
        self.slope = self.curvature = torch.zeros_like(outputs)
        if not value.requires_grad:
            return
        (slope,) = torch.autograd.grad(value, at, create_graph=True, materialize_grads=True)
        self.slope = slope.detach()
        if slope.requires_grad:
            (self.curvature,) = torch.autograd.grad(slope, at, along, materialize_grads=True)


def _close(a: Tensor, b: Tensor, allowed: float) -> bool:
    return bool((a - b).norm() <= allowed * torch.maximum(a.norm(), b.norm()))


def _has_rows(outputs: object, count: int) -> bool:
    rows = isinstance(outputs, Tensor) and outputs.ndim > 0 and len(outputs) == count
    return rows and isinstance(outputs, Tensor) and outputs.is_floating_point()


def _fit_together(tensors: Sequence[Tensor]) -> bool:
    return len({(t.shape[1:], t.dtype) for t in tensors}) == 1


def _value_and_gradient(
    objective: Objective, leaves: Sequence[Tensor], data: Pair
) -> tuple[float, Tensor]:
    value = objective.value(leaves, data)
    if not value.requires_grad:
        return float(value), torch.cat([torch.zeros_like(leaf).reshape(-1) for leaf in leaves])
    pieces = torch.autograd.grad(value, list(leaves), materialize_grads=True)
    return float(value.detach()), torch.cat([piece.reshape(-1) for piece in pieces])
