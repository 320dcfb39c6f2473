"""Replacements for torch operations whose second derivative is wrong or missing.

A function mode, `Measured`, calls them in place of torch's while a loss is measured. The same mode
keeps the measurement's precision: a model that casts to lower precision inside is measured without
the cast, or refused.
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
    """Normalized weight w = g v / ‖v‖, one norm per index along `dim`; dim = −1: one for all.

    torch's double backward of its fused form is wrong on a CPU (2.13): a Hessian through it is not
    symmetric.
    """
    if dim == -1:
        return v * (g / v.square().sum().sqrt())
    others = [i for i in range(v.ndim) if i != dim % v.ndim]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Hard sigmoid min(max(x + 3, 0), 6) / 6.

    torch's has no second derivative, which is zero except at the kinks x = ±3.
    """
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
    """Rows of `weight` by index, with a dense and unscaled gradient.

    The arguments `scale_grad_by_freq` and `sparse` are ignored: a sparse gradient cannot be
    differentiated again, and one scaled by frequencies is not the gradient of the loss.
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
    """Sums, means or maxima over bags of embeddings, from operations that are twice differentiable.

    The backward pass of torch's has no derivative. Entries equal to `padding_idx` belong to no bag;
    an empty bag gives zero. The bags are the rows of a two-dimensional input; otherwise bag i
    starts at offsets[i].
    """
    if offsets is None:
        bags = torch.arange(len(input), device=input.device).repeat_interleave(input.shape[1])
        count, flat = len(input), input.reshape(-1)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    else:
        starts = offsets[:-1] if include_last_offset else offsets
        count, flat, weights = len(starts), input, per_sample_weights
        # bag of entry i = (number of starts ≤ i) − 1
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
    """Distances ‖x_i − y_j‖_p between the rows of two matrices, shape (…, M, N).

    The backward pass of torch's has no derivative.
    """
    distances: Tensor = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)
    return distances


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """Distances ‖x_i − x_j‖_p, i < j, between the rows of one matrix, shape (N (N − 1) / 2,).

    The backward pass of torch's has no derivative.
    """
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    distances: Tensor = torch.linalg.vector_norm(input[i] - input[j], p, -1)
    return distances


INSTEAD: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: weight_norm,
    F.hardsigmoid: hardsigmoid,
    F.embedding: embedding,
    F.embedding_bag: embedding_bag,
    torch.cdist: cdist,
    F.pdist: pdist,
    torch.pdist: pdist,
}
"""Replacement of each torch function: replacement(*args, **kwargs) with torch's arguments."""
NORMS: dict[Any, Callable[..., Any]] = {
    F.layer_norm: primitive_norms.layer_norm,
    F.group_norm: primitive_norms.group_norm,
    F.instance_norm: primitive_norms.instance_norm,
    F.batch_norm: primitive_norms.batch_norm,
    F.rms_norm: primitive_norms.rms_norm,
}
"""Norms of primitive operations, for derivatives of third order: f(torch's function, *args, …)."""


class Measured(TorchFunctionMode):
    """Function mode: replaces operations with wrong or missing derivatives, in one precision.

    Args:
        dtype: Precision of the measurement. In float64, casts to float32 inside the model are
            skipped, such as that of a norm which is always computed in single precision: they
            would leave float32's rounding in the result.

    Attributes:
        any_order: Whether norms are computed from primitive operations, since torch's third
            derivatives of its norms are wrong. Under torch.func's transforms they always are.

    Raises:
        MeasurementError: Where an operation computes in half precision.
        ThirdDerivativeError: Where the model differentiates by itself, so that a Hessian needs a
            third derivative, unless `any_order`.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.any_order = dtype, False

    @contextlib.contextmanager
    def of_any_order(self) -> Iterator[None]:
        """Context in which derivatives of all orders are correct."""
        before, self.any_order = self.any_order, True
        try:
            yield
        finally:
            self.any_order = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, or its replacement."""
        options = kwargs or {}
        if func in DIFFERENTIATE:
            return self._differentiate(func, args, options)
        if self.dtype == torch.float64 and args and _is_double(args[0]):
            if func is Tensor.float:
                return args[0]
            args, options = _without_casts(args, options)
        if func in NORMS and (self.any_order or transformed()):
            return NORMS[func](func, *args, **options)
        result = INSTEAD.get(func, func)(*args, **options)
        if isinstance(result, Tensor) and result.dtype is not self.dtype:
            _refuse_half_precision(func, result)
        return result

    def _differentiate(self, func: Any, args: Any, options: dict[str, Any]) -> Any:
        """Take a derivative inside the model, with this mode on for what runs inside of it."""
        if not self.any_order:
            refuse_derivative_of(func)
        # A checkpoint runs its layers again in there; by default a mode sees `func` alone.
        return seen_inside(func, lambda: self)(*args, **options)


def _is_double(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float64


def _without_casts(args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments with float64 wherever they ask for float32."""
    return tuple(map(_kept_double, args)), {name: _kept_double(x) for name, x in options.items()}


def _kept_double(x: Any) -> Any:
    return torch.float64 if x is torch.float32 else x


def _refuse_half_precision(func: Any, result: Tensor) -> None:
    """Raise a MeasurementError if a differentiable result is in half precision."""
    if result.dtype in HALF and result.requires_grad:
        name = getattr(func, "__name__", str(func))
        raise MeasurementError(
            f"the model computes in {result.dtype} ({name}): curvature in half precision is not "
            "trusted; switch the cast off inside the model, or measure a copy without it"
        )
