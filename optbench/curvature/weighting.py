"""Tests that a loss over many examples is the weighted mean of its values over parts of them.

    L(B) = Σ_p c_p L(B_p) / Σ_p c_p  for the parts B_p of a batch B, with weights c_p.

This holds for a mean over examples. It fails for class weights, ignored targets, contrastive losses
and layers that use statistics of the batch: there a part has another loss function than the whole.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from optbench.curvature.chunk_loss import Objective
from optbench.curvature.chunks import Chunks, Pair
from optbench.ranks import ALONE, Ranks

# Relative tolerances of the comparison of whole and parts:
EXACT = 2e-10  # losses in double precision: equal up to the order of summation and cancellation
GIVEN = 1e-5  # losses with weights from the user, who may compute them in single precision
VALUE = 1e-5  # values in single precision, sums of many terms
# Tolerance of gradients through a model, in machine epsilons: kernels depend on the batch size.
GRADIENT_ROUNDING = 1e4
# Memory, in copies of all outputs:
COPIES = 16  # of the comparison of value, slope and curvature in double precision
ONLY_VALUE = 4  # of the comparison of values alone


def splits_into_parts(
    objective: Objective, chunks: Chunks, limit: int, memory: int, per_example: float
) -> bool:
    """Whether each batch's loss is the weighted mean of its parts', of at most `limit` examples.

    1. Compare the loss of every batch that would be cut with that of its parts, as functions of the
       model's outputs: value, slope and curvature.
    2. Compare the first such batch through the model. Take all of it if one gradient fits in
       memory; otherwise take its first `limit` examples in two parts. Where step 1 gave no answer,
       compare every batch, and all of it.
    3. Where neither step gives an answer, return False, so that batches are not cut; except where
       the user gave weights, which are trusted.
    """
    # Batch norms are left out here: they are known to mix examples and are refused elsewhere.
    through_model = objective.mixes_examples()
    for batch in chunks.uncut():
        if len(batch[0]) <= limit:
            continue
        different = loss_differs(objective, chunks.parts(batch, limit), memory, _allowed(chunks))
        if different:
            return False
        fits = per_example * len(batch[0]) <= memory
        if different is None and chunks.weight is None and not fits:
            return False
        if not through_model or different is None:
            through_model = True
            sample = batch if fits else (batch[0][:limit], batch[1][:limit])
            if differs(objective, chunks, sample, limit if fits else math.ceil(limit / 2)):
                return False
    return True


def still_splits(objective: Objective, chunks: Chunks, memory: int) -> bool:
    """Whether the loss of batches that are cut is still the mean of their parts' at these weights.

    A loss may come to depend on the whole batch as weights or targets change, such as one over the
    hardest examples or over those above a threshold. Costs one forward pass.
    """
    limit = chunks.limit
    cut = (batch for batch in chunks.uncut() if limit is not None and len(batch[0]) > limit)
    return not any(
        loss_differs(objective, chunks.parts(batch, limit), memory, _allowed(chunks), chunks.ranks)
        for batch in cut
    )


def batches_are_parts(objective: Objective, chunks: Chunks, memory: int) -> bool:
    """Whether the loss over all batches together is the weighted mean of the batches' losses.

    1. Compare the loss of all batches' outputs, put together, with the mean over batches.
    2. Compare the first batch through the model with its two halves. Where the outputs took too
       much memory for step 1, compare every batch with its halves.

    False where targets of different lengths, such as padded sequences, cannot be put together: an
    example's share of the loss may then depend on its batch.
    """
    parts = (part for b in chunks.uncut() for part in chunks.parts(b, None))
    shapes = {targets.shape[1:] for _, targets in chunks.uncut()}
    different = loss_differs(objective, parts, memory) if len(shapes) == 1 else True
    if different or objective.mixes_examples():
        return not different
    for batch in chunks.uncut():
        if differs(objective, chunks, batch, math.ceil(len(batch[0]) / 2)):
            return False
        if different is not None:
            break
    return True


def _allowed(chunks: Chunks) -> float:
    """Relative difference of losses that rounding explains, in the user's weights as well."""
    return EXACT if chunks.weight is None else GIVEN


def differs(objective: Objective, chunks: Chunks, batch: Pair, limit: int) -> bool:
    """Whether a batch's loss or gradient differs from the weighted mean of its parts'.

    Parts have at most `limit` examples. False where the batch is one part, or where the model draws
    random numbers other than dropout masks. Costs two gradients of the batch.
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
    """Context with dropout off, since each part would draw another mask than the whole."""
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
    """Whether L(B) or ∇L(B) differs from Σ_p c_p L(B_p) / Σ_p c_p or its gradient."""
    leaves = objective.leaves()
    value, slope = _value_and_gradient(objective, leaves, whole)
    # Sums over parts, each weighted: of 1, L, |L|, ‖∇L‖ and ∇L.
    total, value_sum, absolute_sum, norm_sum = 0.0, 0.0, 0.0, 0.0
    slope_sum = torch.zeros_like(slope)
    for weight, part in chunks.parts(batch, limit):
        part_value, part_slope = _value_and_gradient(objective, leaves, part)
        slope_sum.add_(part_slope, alpha=weight)
        total += weight
        value_sum += weight * part_value
        absolute_sum += weight * abs(part_value)
        norm_sum += weight * float(part_slope.norm())
    if not total > 0:
        return True
    allowed = GRADIENT_ROUNDING * torch.finfo(objective.dtype).eps
    # ‖∇L‖ ‖w‖ is the change of L under relative rounding of the weights; it counts where L ≈ 0.
    weight_norm = float(torch.cat([leaf.detach().reshape(-1) for leaf in leaves]).norm())
    sensitivity = norm_sum / total * weight_norm
    value_scale = max(abs(value), absolute_sum / total, sensitivity)
    slope_scale = max(norm_sum / total, float(slope.norm()))
    same_value = abs(value_sum / total - value) <= allowed * value_scale
    same_slope = float((slope_sum / total - slope).norm()) <= allowed * slope_scale
    return not (same_value and same_slope)


def loss_differs(
    objective: Objective,
    parts: Iterable[tuple[float, Pair]],
    memory: int,
    allowed: float = EXACT,
    ranks: Ranks = ALONE,
) -> bool | None:
    """Whether the loss of all parts' outputs together differs from the weighted mean over parts.

    Value, slope and curvature are compared as functions of the outputs, at the cost of one forward
    pass. Where memory is short, values alone are.

    Args:
        objective: The loss.
        parts: Pairs (weight, (inputs, targets)).
        memory: Bytes that the comparison may take.
        allowed: Relative difference that counts as rounding.
        ranks: Processes that share the forward passes.

    Returns:
        None where there is no answer: where outputs are no tensors with one row per example, do not
        fit together, or would take more than the memory.
    """
    collected = _collected(objective, parts, memory, ranks)
    if collected is None:
        return None
    weights, outputs, targets = collected
    total = math.fsum(weights)
    if not total > 0:
        return True
    shares = [weight / total for weight in weights]
    try:
        if sum(x.nbytes for x in outputs) * COPIES > memory:
            return _value_differs(objective, shares, outputs, targets, max(allowed, VALUE))
        return _differs_in_double(objective, shares, outputs, targets, allowed)
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError):
        return None  # a loss that reads what only a forward pass leaves in the model


def _collected(
    objective: Objective, parts: Iterable[tuple[float, Pair]], memory: int, ranks: Ranks
) -> tuple[list[float], list[Tensor], list[Tensor]] | None:
    """Weights, outputs and targets of all parts; None where they cannot be put together."""
    leaves, weights = objective.leaves(), list[float]()
    outputs, targets, size = list[Tensor](), list[Tensor](), 0

    def outputs_of(part: tuple[float, Pair]) -> Tensor:
        # Gradients stay on: the model may differentiate by itself.
        return objective.outputs(leaves, part[1][0])

    for (weight, (inputs, target)), output in ranks.map(outputs_of, parts):
        size += output.nbytes if isinstance(output, Tensor) else 0
        if not _has_rows(output, len(inputs)) or size * ONLY_VALUE > memory:
            return None
        weights.append(weight)
        outputs.append(output.detach())
        targets.append(target)
    if not (_fit_together(outputs) and _fit_together(targets)):
        return None
    return weights, outputs, targets


def _differs_in_double(
    objective: Objective,
    shares: Sequence[float],
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    allowed: float,
) -> bool:
    """`_differ` in double precision, or in the objective's where the loss takes no doubles.

    Near interpolation a slope is a small difference of large numbers, which single precision loses.
    """
    double = objective.in_double()
    with contextlib.suppress(RuntimeError, TypeError), double.measured():
        double_outputs = [x.double() for x in outputs]
        double_targets = [x.double() if x.is_floating_point() else x for x in targets]
        return _differ(double, shares, double_outputs, double_targets, allowed)
    rounding = GRADIENT_ROUNDING * torch.finfo(objective.dtype).eps
    return _differ(objective, shares, outputs, targets, max(allowed, rounding))


def _value_differs(
    objective: Objective,
    shares: Sequence[float],
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    allowed: float,
) -> bool:
    """Whether values differ at these outputs or at random ones around them.

    The second point stands in for slope and curvature: functions that differ in these differ away
    from the outputs.
    """
    leaves, everything, labels = (
        objective.leaves(),
        torch.cat(list(outputs)),
        torch.cat(list(targets)),
    )
    counts = [len(o) for o in outputs]
    generator = torch.Generator().manual_seed(0)
    # Noise of the size of the outputs, and at least 1, as for outputs that are all zero.
    for noise_level in (0.0, 1.0):
        if noise_level:
            noise = torch.randn(everything.shape, generator=generator, dtype=everything.dtype)
            everything = everything + noise.to(everything.device) * (
                noise_level + everything.square().mean().sqrt()
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
    """Whether L(f) differs from Σ_p s_p L(f_p) in value, slope or curvature along a random vector.

    f are the outputs of all parts f_p together, s_p the shares. The slope of the mean is
    s_p ∇L(f_p) on the rows of part p, and its curvature along v is s_p ∇²L(f_p) v_p.
    """
    everything = torch.cat(list(outputs))
    generator = torch.Generator().manual_seed(0)
    # A random direction shows a difference of the curvatures with probability 1.
    along = torch.randn(everything.shape, generator=generator, dtype=everything.dtype).to(
        everything.device
    )
    whole = _Expansion(objective, everything, torch.cat(list(targets)), along)
    pieces = along.split([len(o) for o in outputs])
    expansions = [
        _Expansion(objective, o, t, v) for o, t, v in zip(outputs, targets, pieces, strict=True)
    ]

    def weighted(quantity: Callable[[_Expansion], Tensor]) -> Tensor:
        terms = zip(shares, expansions, strict=True)
        return torch.cat([share * quantity(expansion) for share, expansion in terms])

    values = weighted(lambda part: part.value.reshape(1))
    # ‖∇L‖ ‖f‖ is the change of the value under relative rounding of the outputs.
    value_scale = torch.stack(
        [whole.value.abs(), values.abs().sum(), whole.slope.norm() * everything.norm()]
    ).max()
    return not (
        bool((whole.value - values.sum()).abs() <= allowed * value_scale)
        and _close(whole.slope, weighted(lambda part: part.slope), allowed)
        and _close(whole.curvature, weighted(lambda part: part.curvature), allowed)
    )


class _Expansion:
    """Value L(f), slope ∇L(f) and curvature ∇²L(f) v of a loss at outputs f along v."""

    def __init__(
        self, objective: Objective, outputs: Tensor, targets: Tensor, along: Tensor
    ) -> None:
        at = outputs.detach().requires_grad_()
        # A clone, since a loss may write to its arguments.
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
