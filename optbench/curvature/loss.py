"""The mean loss of a model over data, as one function of its parameters."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal
from weakref import ref

import torch
from torch import Tensor, nn

from optbench.curvature import products
from optbench.curvature.chunk_loss import Criterion, Objective
from optbench.curvature.chunks import Chunks, Pair, Weight
from optbench.curvature.errors import MeasurementError
from optbench.curvature.isolation import Mode
from optbench.curvature.operators import check_real, check_whole
from optbench.curvature.product_strategy import Plan, Strategy, make_plan
from optbench.curvature.products import Builder
from optbench.curvature.selection import Selection
from optbench.fast_layers.errors import ThirdDerivativeError
from optbench.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from optbench.curvature.hessian import GaussNewton, Hessian, ModelOperator

Layers = Literal["fast", "torch"]


class Loss:
    """Mean loss L(w) = Σ_B c_B ℓ_B(w) / Σ_B c_B of a model over batches B of data.

    ℓ_B is the criterion on batch B at weights w, and c_B the batch's weight: its number of
    examples, or `weight`. Value, gradient, Hessian and Gauss-Newton matrix are of this one
    function, in one mode and precision. The model is read, never changed: `.grad`, buffers, modes
    and random state stay as they were.

    Examples:
        >>> loss = Loss(model, torch.nn.functional.cross_entropy, loader)
        >>> value, gradient = loss.value_and_gradient()
        >>> pairs = top_eigenpairs(loss.hessian(), k=3)

    Attributes:
        objective: Loss of one chunk as a function of the selected parameters; `.names`, `.sizes`.
        chunks: Data, in chunks of bounded size.
        size: P, number of selected parameters.
        dtype: Precision of the measurement.
        device: Device of the parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        data: Pair | Iterable[Pair],
        *,
        params: Selection = None,
        chunk: int | None = None,
        mode: Mode | None = None,
        dtype: torch.dtype | None = None,
        weight: Weight | None = None,
        memory: int = 2 << 30,
        layers: Layers = "fast",
        split_batch_norm: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        """See the class for the function.

        Args:
            model: Model; it is read, never changed.
            criterion: criterion(outputs, targets), a scalar.
            data: One (inputs, targets) pair, or a re-iterable of pairs such as a DataLoader.
            params: Predicate of (name, parameter), parameter names, or None for all that train.
            chunk: Most examples differentiated at once; None for as many as fit in `memory`. A
                large chunk is taken in up to four parts. Peak memory is then about that of one
                training step on the chunk where graphs are recomputed, and of three where they are
                kept.
            mode: "train", "eval", or None for the mode that the model is in when measured. Dropout
                in train mode keeps one mask, drawn from a fixed seed.
            dtype: Precision; None for the parameters' own. float64 measures a float32 model in
                double precision.
            weight: weight(inputs, targets), the weight c_B of a batch. Give it for a loss that is
                a mean over something else than examples; for targets that are not ignored, it is
                their number. None for the number of examples: a warning says if L is then not the
                loss over all batches together.
            memory: Bytes that kept graphs may take (estimated from a sample).
            layers: "fast" replaces torch's layers by ones with a cheap second derivative; values
                and derivatives are the same up to rounding. "torch" keeps torch's layers.
            split_batch_norm: Whether a batch norm in train mode may see several chunks, each with
                its own statistics. The mean of the chunks' losses is another loss than that of
                whole batches.
            ranks: Processes that share the examples of each batch. Each holds all data, and calls
                the same methods in the same order; values and derivatives are those of one process
                up to the order of summation.

        Raises:
            MeasurementError: If an argument is out of range; see `select`, `Chunks`, `Objective`.
        """
        _check(criterion, weight, chunk, memory, layers)
        self.model, self.criterion, self.data = model, criterion, data
        self.objective = Objective(model, criterion, params, mode, dtype)
        self.objective.cheap = layers == "fast"
        self.size = sum(self.objective.sizes)
        self.dtype, self.device = self.objective.dtype, self.objective.device
        self.chunks = Chunks(data, self.device, self.dtype, weight, ranks)
        self.chunk, self.memory, self.split_batch_norm = chunk, memory, split_batch_norm
        self.layers = layers
        self._planned_for: tuple[object, ...] = ()
        self._operator: ref[ModelOperator] | None = None

    def prepare(self) -> None:
        """Choose how the data are cut, unless that was done for these data and modes."""
        operator = self._operator() if self._operator is not None else None
        if operator is not None:  # the loss of a matrix is cut as the matrix is
            operator.prepare()
            return
        planned_for = self.chunks.extent(), self.objective.modes()
        if self._planned_for != planned_for:
            self.plan(products.hessian_by_double_backward, "recomputed")
            self._planned_for = planned_for

    def plan(self, builder: Builder, strategy: Strategy) -> Plan:
        """Choose how the data are cut for products of a builder, see `make_plan`.

        Raises:
            MeasurementError: If the model does not run on the data, or if cutting makes another
                loss.
        """
        plans: list[Plan] = []  # forward passes that write to the model are done a second time

        def make() -> None:
            plans.append(
                make_plan(self.objective, self.chunks, builder, strategy, self.chunk, self.memory)
            )

        with self._named_data(), self.chunks.kept_rng():
            self.objective.watch_writes(make)
        self.check_batch_norm(plans[-1].chunks)
        return plans[-1]

    def check_batch_norm(self, chunks: int) -> None:
        """Raise a MeasurementError if a batch norm would take its statistics chunk by chunk."""
        if chunks > 1 and not self.split_batch_norm and self.objective.mixes_examples():
            raise MeasurementError(
                f"a batch norm in train mode needs all examples in one chunk, got {chunks}: each "
                "would use its own statistics, which is another loss; pass one pair and no chunk, "
                "mode='eval', or split_batch_norm=True to accept it"
            )

    @contextlib.contextmanager
    def _named_data(self) -> Iterator[None]:
        """Context that adds the data's shapes and dtypes to torch's errors in the first pass."""
        try:
            yield
        except (torch.OutOfMemoryError, ThirdDerivativeError):
            raise
        except (RuntimeError, TypeError, IndexError) as why:
            with self.chunks.kept_rng():
                pair = self.chunks.sample(sys.maxsize)
            data = zip(("inputs", "targets"), pair, strict=True)
            way_out = " and ".join(
                f"{name} of shape {tuple(t.shape)}, {t.dtype}" for name, t in data
            )
            if self.objective.own_dtypes() != {self.dtype}:
                way_out += (
                    "; hold its constants in buffers, or cast them to the dtype of what they are "
                    "applied to"
                )
            raise MeasurementError(
                f"the model or its loss does not run in {self.dtype} ({type(why).__name__}: {why}) "
                f"on {way_out}"
            ) from why

    def belongs_to(self, operator: ModelOperator) -> None:
        """Let an operator choose how the data are cut, as long as it is there."""
        self._operator = ref(operator)  # a cycle would keep its graphs until it is collected

    def value(self) -> float:
        """L(w) at the current weights; one forward pass over the data."""
        self.prepare()
        total, weights = 0.0, 0.0
        needs_gradients = self.objective.differentiates_itself
        with self._evaluated(), torch.set_grad_enabled(needs_gradients):
            leaves = self.objective.leaves()
            for weight, part in self.chunks.shared():
                total += weight * float(self.objective.value(leaves, part))
                weights += weight
        total, weights = self.chunks.ranks.sums(total, weights)
        return total / weights

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """L(w) and ∇L(w) at the current weights; one forward and one backward pass over the data.

        Returns:
            L, and ∇L, flat, shape (P,), in the order of `objective.names`.

        Raises:
            MeasurementError: If the loss does not depend on the parameters.
        """
        self.prepare()
        self.objective.check_parameters()
        total, weights = 0.0, 0.0
        flat = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        with self._evaluated():
            leaves = self.objective.leaves()
            for weight, part in self.chunks.shared():
                value = self.objective.value(leaves, part)
                slopes = torch.autograd.grad(
                    products.dependent(value), leaves, materialize_grads=True
                )
                flat.add_(torch.cat([slope.reshape(-1) for slope in slopes]), alpha=weight)
                total += weight * float(value.detach())
                weights += weight
        total, weights = self.chunks.ranks.sums(total, weights)
        self.chunks.ranks.add_up([flat])
        return total / weights, flat / weights

    def gradient(self) -> Tensor:
        """∇L(w) at the current weights, flat, shape (P,)."""
        return self.value_and_gradient()[1]

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[tuple[Callable[[], Tensor], Sequence[Tensor]]]:
        """Context for derivatives of any order: yields a function for L with its graph, and leaves.

        One graph holds all data. Normalization layers are computed from primitive operations, since
        torch's third derivatives of layer norm and batch norm are wrong.
        """
        self.prepare()
        with self._evaluated(), self.objective.operations.of_any_order():
            leaves = self.objective.leaves()

            def value() -> Tensor:
                pieces = [
                    (weight, self.objective.value(leaves, part))
                    for weight, part in self.chunks.weighted()
                ]
                total = sum(weight for weight, _ in pieces)
                return torch.stack([weight * piece for weight, piece in pieces]).sum() / total

            yield value, leaves

    def hessian(self, strategy: Strategy = "auto") -> Hessian:
        """Hessian ∇²L(w) as an operator, shape (P, P)."""
        from optbench.curvature.hessian import Hessian

        return Hessian.of(self, strategy)

    def gauss_newton(self, strategy: Strategy = "auto") -> GaussNewton:
        """Gauss-Newton matrix of L as an operator, shape (P, P)."""
        from optbench.curvature.hessian import GaussNewton

        return GaussNewton.of(self, strategy)

    def again(self) -> Loss:
        """A new `Loss` of the same function, which chooses anew how the data are cut."""
        return Loss(
            self.model,
            self.criterion,
            self.data,
            params=self.objective.selection,
            chunk=self.chunk,
            mode=self.objective.mode,
            dtype=self.objective.dtype,
            weight=self.chunks.weight,
            memory=self.memory,
            layers=self.layers,
            split_batch_norm=self.split_batch_norm,
            ranks=self.chunks.ranks,
        )

    @contextlib.contextmanager
    def _evaluated(self) -> Iterator[None]:
        with self.chunks.kept_rng(), self.objective.evaluated():
            yield


def loss_and_gradient(operator: ModelOperator) -> tuple[float, Tensor]:
    """L(w) and ∇L(w), shape (P,), of a Hessian or Gauss-Newton operator's loss.

    See `Loss.value_and_gradient`.

    Raises:
        ValueError: If the operator is not of a model's loss.
    """
    return _loss_of(operator).value_and_gradient()


def mean_loss(operator: ModelOperator) -> float:
    """L(w) of a Hessian or Gauss-Newton operator's loss.

    See `Loss.value`.

    Raises:
        ValueError: If the operator is not of a model's loss.
    """
    return _loss_of(operator).value()


def _loss_of(operator: object) -> Loss:
    loss = getattr(operator, "loss", None)
    if not isinstance(loss, Loss):
        raise ValueError(
            f"operator must be a Hessian or GaussNewton, got {type(operator).__name__}"
        )
    return loss


def _check(
    criterion: object, weight: object, chunk: int | None, memory: int, layers: object
) -> None:
    if not callable(criterion):
        raise MeasurementError(
            f"loss must be a function (outputs, targets) -> scalar, got {criterion!r}"
        )
    if not (weight is None or callable(weight)):
        raise MeasurementError(
            f"weight must be a function (inputs, targets) -> number, got {weight!r}"
        )
    if chunk is not None:
        check_whole(chunk=chunk)
        if chunk < 1:
            raise MeasurementError(f"chunk must be positive, got {chunk}")
    check_real(memory=memory)
    if memory < 1:
        raise MeasurementError(f"memory must be positive, got {memory} bytes")
    if layers not in ("fast", "torch"):
        raise MeasurementError(f"layers must be 'fast' or 'torch', got {layers!r}")
