"""The Hessian and the Gauss-Newton matrix of a model's mean loss, as operators."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Self

import torch
from torch import Tensor, nn

from optbench.curvature import products
from optbench.curvature.chunk_loss import Criterion
from optbench.curvature.chunks import Pair, Weight
from optbench.curvature.isolation import Mode
from optbench.curvature.loss import Layers, Loss
from optbench.curvature.operators import Operator
from optbench.curvature.product_strategy import Plan, Strategy, check_strategy
from optbench.curvature.products import Builder, Product
from optbench.curvature.second_derivatives import EXAMPLES, check_derivatives
from optbench.curvature.selection import Selection
from optbench.curvature.symmetry import Witness
from optbench.curvature.weighting import still_splits
from optbench.ranks import ALONE, Ranks

DRIFT = 1e-9  # relative change of the batches' total weight that counts as rounding


class ModelOperator(Operator):
    """Base of Hessian and Gauss-Newton: A v = Σ_p s_p A_p v over chunks p, with shares Σ_p s_p = 1.

    A batch is cut into chunks only where its loss is the weighted mean of the chunks' losses. This
    is checked once, in value, gradient and curvature.

    Attributes:
        strategy: "cached" or "recomputed"; "auto" until the first product has chosen.
        loss: Loss that the matrix is of: `loss.value()`, `loss.gradient()`.
        objective: Loss of one chunk as a function of the selected parameters; `.names`, `.sizes`.
        hvps: Matrix-vector products computed, without the one that the test of symmetry adds to
            the first.
    """

    builder: Builder

    def __init__(
        self,
        model: nn.Module,
        loss: Criterion,
        batches: Pair | Iterable[Pair],
        *,
        params: Selection = None,
        chunk: int | None = None,
        mode: Mode | None = None,
        dtype: torch.dtype | None = None,
        weight: Weight | None = None,
        strategy: Strategy = "auto",
        memory: int = 2 << 30,
        layers: Layers = "fast",
        split_batch_norm: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        """See the class for the matrix, and `Loss` for most of the arguments.

        Args:
            model: Model; it is read, never changed.
            loss: Criterion, loss(outputs, targets), a scalar.
            batches: One (inputs, targets) pair, or a re-iterable of pairs such as a DataLoader. The
                loss is then the weighted mean of the batches' losses.
            params: See `Loss`.
            chunk: See `Loss`.
            mode: See `Loss`.
            dtype: See `Loss`.
            weight: See `Loss`.
            strategy: "cached" keeps the graphs of all chunks' gradients. "recomputed" builds each
                chunk's graph anew for every block of vectors and frees it. "auto" caches if the
                graphs fit in `memory`; it goes by their size, not by timing, so it is reproducible.
            memory: See `Loss`.
            layers: See `Loss`.
            split_batch_norm: See `Loss`.
            ranks: See `Loss`; they add up one (P, K) block for a product with K vectors.

        Raises:
            MeasurementError: If an argument is out of range. At a product: if the loss does not
                depend on the parameters, if torch cannot differentiate it twice, if products are
                not symmetric since a second derivative is wrong, or if `chunk` cuts a loss that is
                not a mean over examples.
        """
        mean_loss = Loss(
            model,
            loss,
            batches,
            params=params,
            chunk=chunk,
            mode=mode,
            dtype=dtype,
            weight=weight,
            memory=memory,
            layers=layers,
            split_batch_norm=split_batch_norm,
            ranks=ranks,
        )
        self._begin(mean_loss, strategy)

    @classmethod
    def of(cls, loss: Loss, strategy: Strategy = "auto") -> Self:
        """The operator of a loss."""
        operator = cls.__new__(cls)
        operator._begin(loss.again(), strategy)
        return operator

    def _begin(self, loss: Loss, strategy: Strategy) -> None:
        loss.belongs_to(self)
        self.loss, self.objective, self.chunks = loss, loss.objective, loss.chunks
        self.size, self.dtype, self.device = loss.size, loss.dtype, loss.device
        self.strategy: Strategy = check_strategy(strategy)
        self._plan: Plan | None = None
        self._products: list[tuple[float, Product]] = []
        self._seen: tuple[object, ...] = ()
        self._planned_for: tuple[object, ...] = ()
        self._witness: Witness | None = None
        self._new_plan = False
        self._trusts = False  # whether another operator has checked model and loss

    @property
    def layers(self) -> str:
        """Kind of the layers that products go through, known once one is computed.

        "fast": layers of `optbench.fast_layers`, with a cheap second derivative. "torch": torch's.
        "primitive": torch's with norms from primitive operations, for a model that differentiates
        by itself.
        """
        if self.objective.differentiates_itself:
            return "primitive"
        return "fast" if self.objective.cheap and issubclass(type(self), Hessian) else "torch"

    def refresh(self) -> None:
        """Free the graphs; the next product is at the model's current weights.

        Changes of weights, buffers, modes and data that torch's version counters show are noticed
        without it. It is needed after writes through `.data`, and to free memory.
        """
        self._products = []
        self._seen = ()
        if self._witness is not None:
            self._witness = self._witness.over()

    def prepare(self) -> Strategy:
        """Choose the chunk size and the strategy, once, and return the strategy."""
        planned_for = self.chunks.extent(), self.objective.modes()
        if self._plan is None or self._planned_for != planned_for:
            if self._plan is not None:
                self.refresh()
                self._witness = self._witness if self._trusts else None
            self._planned_for = planned_for
            self._plan = self.loss.plan(type(self).builder, self.strategy)
            self.strategy = self._plan.strategy
            self._new_plan = True
            self._check_derivatives()
        return self.strategy

    def _check_derivatives(self) -> None:
        """Compare products with finite differences on a few examples."""
        if self._trusts:
            return
        builder = type(self).builder if isinstance(self, Hessian) else None
        with self.chunks.kept_rng():
            try:
                check_derivatives(
                    self.objective, self.chunks.sample(EXAMPLES), builder, self.loss.memory
                )
            # Some models run on whole batches only.
            except (RuntimeError, ValueError, IndexError):
                check_derivatives(
                    self.objective, self.chunks.sample(sys.maxsize), builder, self.loss.memory
                )

    def shares(self) -> Iterator[tuple[float, Pair]]:
        """Pairs (share, chunk) of this process; read them inside `chunks.kept_rng()`.

        Shares sum to 1, over all processes.
        """
        self.prepare()
        assert self._plan is not None
        for weight, part in self.chunks.shared():
            yield weight / self._plan.total, part

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector, shape (P,), as one tensor per parameter, by name."""
        return dict(zip(self.objective.names, self.objective.split(vector), strict=True))

    def _apply(self, vectors: Tensor) -> Tensor:
        current = self._is_current()
        if not current:
            self.prepare()
            assert self._plan is not None
            self.loss.check_batch_norm(self._plan.chunks)
        if self._witness is None and vectors.any():
            return self._witnessed(vectors, current)
        images = self._images(vectors, current)
        if self._witness is not None and self._witness.state == self._seen:
            self._witness.compare(vectors, images)
        return images

    def _witnessed(self, vectors: Tensor, current: bool) -> Tensor:
        """Images of the vectors; one more random vector and its image become the witness."""
        # Seeded on its own, so that products are reproducible and no global generator moves.
        generator = torch.Generator().manual_seed(0)
        extra = torch.randn((self.size, 1), generator=generator, dtype=self.dtype).to(self.device)
        images = self._images(torch.cat([vectors, extra], 1), current)
        self._witness = Witness(self._seen, extra, images[:, -1:])
        self._witness.compare(vectors, images[:, :-1])
        return images[:, :-1]

    def trust_symmetry_of(self, other: ModelOperator) -> None:
        """Skip the checks of model and loss that an operator on other data has passed."""
        self._trusts, empty = True, torch.empty((0, 1), dtype=self.dtype, device=self.device)
        self._witness = Witness((None,), empty, empty)
        self.objective.differentiates_itself = other.objective.differentiates_itself
        self.objective.writes = other.objective.writes

    def _is_current(self) -> bool:
        """Whether the plan, and the kept graphs if any, belong to the current model and data."""
        return bool(self._seen) and self._seen == self._state()

    def _images(self, vectors: Tensor, current: bool) -> Tensor:
        rows = vectors.T.contiguous()
        result: list[Tensor] = []

        def multiply() -> None:
            images, total = None, 0.0
            for share, product in self._weighted_products():
                images, total = self._add_images(images, rows, share, product), total + share
                del product  # else two chunks' graphs would be alive while the next one is built
            if images is None:  # all examples of this process weigh nothing
                images = torch.zeros_like(rows)
            self.chunks.ranks.add_up([images])
            (total,) = self.chunks.ranks.sums(total)
            if abs(total - 1) > DRIFT:  # the batches' weights have changed since the plan
                images /= total
            result[:] = [images]

        if not current:
            self._plan_again_if_parts_differ()
        if self.strategy == "recomputed":
            with self.chunks.kept_rng():
                self.objective.watch_writes(multiply)
            self._seen = self._state()
        else:
            if not current:
                self._build()
            with self.objective.measured():
                multiply()
        return result[0].T

    def _plan_again_if_parts_differ(self) -> None:
        """At new weights or data, check that the parts of a batch still have its loss."""
        if self.chunks.limit is None or self._new_plan:
            self._new_plan = False
            return
        with self.chunks.kept_rng(), self.objective.evaluated():
            if still_splits(self.objective, self.chunks, self.loss.memory):
                return
        self._planned_for = ()
        self.prepare()

    def _add_images(
        self, images: Tensor | None, rows: Tensor, weight: float, product: Product
    ) -> Tensor:
        """Add the weighted images of one chunk to the sum, shape (K, P); None starts it."""
        graph_is_used_once, is_first = self.strategy == "recomputed", images is None
        for i, row in enumerate(rows):
            parts = product(row, free_graph=graph_is_used_once and i == len(rows) - 1)
            # Allocated late: memory is at its peak while a graph is built or differentiated.
            if images is None:
                images = torch.empty_like(rows)
            into = self.objective.split(images[i])
            if is_first:
                torch._foreach_copy_(into, list(parts))
                images[i].mul_(weight)
            else:
                torch._foreach_add_(into, list(parts), alpha=weight)
        assert images is not None
        return images

    def _state(self) -> tuple[object, ...]:
        """Fingerprint of model, loss and data, by which a change is noticed."""
        return self.objective.fingerprint(), self.chunks.versions(), self.chunks.extent()

    def _build(self) -> None:
        """Build the graphs of all chunks at the current weights."""

        def build() -> None:
            self._products = []
            self._products = list(self._built())

        self._products, self._seen = [], ()
        self.objective.check_parameters()
        with self.chunks.kept_rng():
            self.objective.watch_writes(build)
        self._seen = self._state()

    def _weighted_products(self) -> Iterator[tuple[float, Product]]:
        """Pairs (share of the mean, product of the chunk): kept ones, or built one by one."""
        if self.strategy == "recomputed":
            self.objective.check_parameters()
            yield from self._built()
        else:
            # The data are not read here, so no generator has to be restored.
            yield from self._products

    def _built(self) -> Iterator[tuple[float, Product]]:
        leaves = self.objective.leaves()
        for share, part in self.shares():
            product = products.build(type(self).builder, self.objective, leaves, part)
            yield share, product
            del product


class Hessian(ModelOperator):
    """Hessian of the mean loss, H = (1/N) sum_i ∇²ℓ(f(x_i), y_i), over flat parameters.

    Shape (P, P); unit: loss per parameter². H @ v is exact up to rounding, at the model's current
    weights. See `ModelOperator` for the arguments.

    Examples:
        >>> H = Hessian(model, torch.nn.functional.cross_entropy, loader)
        >>> with H:  # graphs are freed at the end
        ...     pairs = top_eigenpairs(H, k=3)

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6(1).
    """

    builder = staticmethod(products.hessian_by_double_backward)


class GaussNewton(ModelOperator):
    """Generalized Gauss-Newton matrix G = (1/N) sum_i Jᵢᵀ ∇²_f ℓ Jᵢ, Jᵢ = ∂f(x_i)/∂w.

    Shape (P, P); unit: loss per parameter². Equals the Hessian for a model linear in w; for
    cross-entropy and ½-MSE positive semidefinite. See `ModelOperator` for the arguments.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products, Neural Computation 14(7).
    """

    builder = staticmethod(products.gauss_newton_by_double_backward)
