"""Operations whose derivatives torch gets wrong, or lacks, in a form that has right ones.

They are put in by a function mode while a loss is measured. The same mode keeps the measurement's
precision: a model that casts down inside is measured without the cast, or refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from optbench.curvature import primitive_norms
from optbench.curvature.errors import MeasurementError
from optbench.fast_layers.graph import DIFFERENTIATE, refuse_derivative_of, seen_inside, transformed

HALF = (torch.float16, torch.bfloat16)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The weight g v / ‖v‖, with a norm for each index along `dim`, or of the whole for −1.

    torch's double backward of its fused form is wrong on a CPU (2.13): a Hessian through it is not
    symmetric.
    """
    if dim == -1:
        return v * (g / v.square().sum().sqrt())
    others = [i for i in range(v.ndim) if i != dim % v.ndim]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """The function min(max(x + 3, 0), 6) / 6, whose second derivative torch lacks; it is zero but at two kinks."""
    return F.relu6(input + 3) / 6


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    *_: Any,
    **__: Any,
) -> Tensor:
    """An embedding whose gradient is dense, and that of the loss.

    A sparse one cannot be differentiated again; one that is scaled by frequencies is not the
    gradient of the loss.
    """
    return F.embedding(input, weight, padding_idx, max_norm, norm_type)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums, means or maxima over bags of embeddings: torch's backward pass has no derivative.

    Entries of `padding_idx` are in no bag; an empty bag gives zero.
    """
    if offsets is None:
        bags = torch.arange(len(input), device=input.device).repeat_interleave(input.shape[1])
        count, flat = len(input), input.reshape(-1)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    else:
        starts = offsets[:-1] if include_last_offset else offsets
        count, flat, weights = len(starts), input, per_sample_weights
        bags = torch.bucketize(torch.arange(len(flat), device=flat.device), starts, right=True) - 1
    if padding_idx is not None:
        kept = flat != padding_idx % len(weight)
        flat, bags = flat[kept], bags[kept]
        weights = None if weights is None else weights[kept]
    rows = F.embedding(flat, weight, None, max_norm, norm_type)
    if weights is not None:
        rows = rows * weights.unsqueeze(1)
    if mode == "max":
        index, zeros = bags.unsqueeze(1).expand_as(rows), rows.new_zeros((count, rows.shape[1]))
        return zeros.scatter_reduce(0, index, rows, "amax", include_self=False)
    sums = rows.new_zeros((count, rows.shape[1])).index_add(0, bags, rows)
    if mode == "sum":
        return sums
    return sums / torch.bincount(bags, minlength=count).clamp(min=1).unsqueeze(1)


def cdist(x: Tensor, y: Tensor, p: float = 2.0, *_: Any, **__: Any) -> Tensor:
    """Distances ‖x_i − y_j‖_p between the rows of two matrices: torch's backward pass has no derivative."""
    found: Tensor = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)
    return found


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """Distances between all pairs of rows of one matrix, likewise."""
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    found: Tensor = torch.linalg.vector_norm(input[i] - input[j], p, -1)
    return found


INSTEAD: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: weight_norm,
    F.hardsigmoid: hardsigmoid,
    F.embedding: embedding,
    F.embedding_bag: embedding_bag,
    torch.cdist: cdist,
    F.pdist: pdist,
    torch.pdist: pdist,
}
NORMS: dict[Any, Callable[..., Any]] = {
    F.layer_norm: primitive_norms.layer_norm,
    F.group_norm: primitive_norms.group_norm,
    F.instance_norm: primitive_norms.instance_norm,
    F.batch_norm: primitive_norms.batch_norm,
    F.rms_norm: primitive_norms.rms_norm,
}


class Measured(TorchFunctionMode):
    """While it is entered, operations give way to those with right derivatives, in one precision.

    Args:
        dtype: Precision of the measurement. In float64 a cast to float32 inside the model is left
            out, such as that of a norm which is always taken in single precision; it would leave
            float32's rounding in the result.

    Attributes:
        any_order: Whether norms are of primitive operations: torch's third derivatives of them are
            wrong. So they are under torch's transforms in any case.

    Raises:
        MeasurementError: From the operation that computes in half precision.
        ThirdDerivativeError: Where the model takes a derivative to be differentiated, unless
            `any_order`.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.any_order = dtype, False

    @contextlib.contextmanager
    def of_any_order(self) -> Iterator[None]:
        """While it is entered, derivatives of all orders are right."""
        before, self.any_order = self.any_order, True
        try:
            yield
        finally:
            self.any_order = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, or the one in its place."""
        given = kwargs or {}
        if func in DIFFERENTIATE:  # a checkpoint runs its layers again inside of them
            if not self.any_order:
                refuse_derivative_of(func)
            return seen_inside(func, lambda: self)(*args, **given)
        if self.dtype == torch.float64 and args and _is_double(args[0]):
            if func is Tensor.float:
                return args[0]
            args = tuple(_kept_double(x) for x in args)
            given = {name: _kept_double(x) for name, x in given.items()}
        if func in NORMS and (self.any_order or transformed()):
            return NORMS[func](func, *args, **given)
        found = INSTEAD.get(func, func)(*args, **given)
        if (
            isinstance(found, Tensor)
            and found.dtype is not self.dtype
            and found.dtype in HALF
            and found.requires_grad
        ):
            name = getattr(func, "__name__", str(func))
            raise MeasurementError(
                f"the model computes in {found.dtype} ({name}): curvature in half precision is not "
                "trusted; switch the "
                "cast off inside the model, or measure a copy without it"
            )
        return found


def _is_double(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float64


def _kept_double(x: Any) -> Any:
    return torch.float64 if x is torch.float32 else x
