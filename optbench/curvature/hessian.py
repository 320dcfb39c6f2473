"""The Hessian and the Gauss-Newton matrix of a model's mean loss, as operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from optbench.curvature import products
from optbench.curvature.chunks import Chunks, Pair
from optbench.curvature.isolation import Mode
from optbench.curvature.objective import Loss, Objective
from optbench.curvature.operators import Operator
from optbench.curvature.products import Builder, Product
from optbench.curvature.selection import Selection
from optbench.curvature.strategy import Plan, Strategy, check_strategy, make_plan


class ModelOperator(Operator):
    """What Hessian and Gauss-Newton share: a mean over the examples, one product per chunk.

    Attributes:
        strategy: How products are done: "cached", "linearized" or "recomputed"; "auto" or "timed"
            until the first product has chosen. After "timed" the choice depends on the clock, and
            rounding on the choice: a run that must be bit-identical after a resume stores this and
            passes it back.
        objective: The loss as a function of the selected parameters; `.names`, `.sizes`.
        hvps: Products done.
    """

    builders: dict[str, Builder]

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Pair | Iterable[Pair],
        *,
        params: Selection = None,
        chunk: int | None = None,
        mode: Mode | None = None,
        dtype: torch.dtype | None = None,
        strategy: Strategy = "auto",
        memory: int = 2 << 30,
        batched: bool = False,
        split_batch_norm: bool = False,
    ) -> None:
        """See the class for the matrix.

        Args:
            model: The model; it is read, never changed.
            loss: loss(outputs, targets), the mean over the batch's examples. Batches are weighted
                by their number of examples.
            batches: One (inputs, targets) pair, or a re-iterable of pairs such as a DataLoader.
            params: Predicate of (name, parameter), parameter names, or None for all that train.
            chunk: Most examples differentiated at once; None for as many as fit in `memory`. A large chunk is taken
                in up to four parts, so that its peak stays near that of training steps on the chunk: about one where
                graphs are recomputed, three where they are kept.
            mode: "train", "eval", or None for the mode the model is in when measured. Dropout in
                train mode keeps one mask, drawn from a fixed seed.
            dtype: Precision; None for the parameters' own. float64 measures a float32 model in
                double precision.
            strategy: "cached" keeps the graph of all chunks' gradients; "recomputed" builds each
                chunk's graph anew for every block of vectors and frees it; "auto" caches if the
                graphs fit in `memory`, by their size alone, so it is reproducible. "linearized"
                keeps a traced derivative instead, sometimes quicker after a slow set-up; "timed"
                takes the quicker of the two. Neither is the default: where tracing worked it won 3 to
                5 % of a product (MLP, ViT) or lost half, for a set-up of 12 to 33 gradients, so a
                measurement of few products is slower; it raises on some models and crashes the
                process on some functions (torch 2.13: nn.MSELoss), before which no timing can stop;
                and a choice by the clock changes rounding, so a resumed run would not be identical.
            memory: Bytes the kept graphs may take (estimated from a sample).
            batched: Whether a block of vectors is one batched product (torch's vmap) rather than
                one after the other; for small models on a GPU.
            split_batch_norm: Whether a batch norm in train mode may see several chunks, each with
                its own statistics: the mean of the chunks' losses, which is another loss than
                that of the whole.

        Raises:
            ValueError: If an argument is out of range; see `select`, `Chunks`, `Objective`.
        """
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be positive, got {chunk}")
        if memory < 1:
            raise ValueError(f"memory must be positive, got {memory} bytes")
        self.objective = Objective(model, loss, params, mode, dtype)
        self.objective.cheap = not batched  # torch's vmap knows torch's own layers
        self.size = sum(self.objective.sizes)
        self.dtype, self.device = self.objective.dtype, self.objective.device
        self.chunks = Chunks(batches, self.device, self.dtype)
        self.chunk, self.memory, self.batched = chunk, memory, batched
        self.split_batch_norm = split_batch_norm
        self.strategy: Strategy = check_strategy(strategy)
        self._plan: Plan | None = None
        self._products: list[tuple[float, Product]] = []
        self._seen: tuple[object, ...] = ()

    def refresh(self) -> None:
        """Free the graphs; the next product is at the model's current weights.

        Weights, buffers, modes and a tensor pair changed in torch's sight are noticed without it;
        it is needed after writes through `.data`, and to give memory back.
        """
        self._products = []
        self._seen = ()

    def prepare(self) -> Strategy:
        """Choose the chunk size and the strategy, once, and return the strategy."""
        if self._plan is None:
            with self.chunks.kept_rng(), self.objective.measured():
                self._plan = make_plan(
                    self.objective,
                    self.chunks,
                    self.builders,
                    self.strategy,
                    self.chunk,
                    self.memory,
                    self.batched,
                )
            self.strategy = self._plan.strategy
            self._check_batch_norm()
        return self.strategy

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector, shape (P,), as one tensor per parameter, by name."""
        return dict(zip(self.objective.names, self.objective.split(vector), strict=True))

    def _apply(self, vectors: Tensor) -> Tensor:
        self.prepare()
        self._check_batch_norm()
        with self.objective.measured():
            rows = vectors.T.contiguous()
            images: Tensor | None = None
            for weight, product in self._weighted_products():
                images = self._add_images(images, rows, weight, product)
                del product  # else two chunks' graphs would be alive while the next one is built
        assert images is not None
        return images.T

    def _add_images(self, images: Tensor | None, rows: Tensor, weight: float, product: Product) -> Tensor:
        once, first = self.strategy == "recomputed", images is None
        blocks: list[slice] | range = [slice(None)] if self.batched else range(len(rows))
        for i in blocks:
            parts = product(rows[i], self.batched, once and i == blocks[-1])
            if images is None:  # not before: while a graph is built or gone through, memory is at its peak
                images = torch.empty_like(rows)
            into = self.objective.split(images[i])
            if first:
                torch._foreach_copy_(into, list(parts))
                images[i].mul_(weight)
            else:
                torch._foreach_add_(into, list(parts), alpha=weight)
        assert images is not None
        return images

    def _state(self) -> tuple[object, ...]:
        return self.objective.fingerprint(), self.chunks.versions()

    def _weighted_products(self) -> Iterator[tuple[float, Product]]:
        """Pairs (share of the examples, product): kept ones, or built one by one."""
        if self.strategy == "recomputed":
            with self.chunks.kept_rng():
                yield from self._built("cached")
            return
        state = self._state()
        if not self._products or self._seen != state:
            self._products = []
            with self.chunks.kept_rng():
                self._products = list(self._built(self.strategy))
            self._seen = state
        yield from self._products  # without reading the data, so that no generator needs keeping

    def _built(self, kind: str) -> Iterator[tuple[float, Product]]:
        assert self._plan is not None
        leaves = self.objective.leaves()
        for inputs, targets in self.chunks:
            product = self.builders[kind](self.objective, leaves, (inputs, targets))
            yield len(inputs) / self._plan.examples, product
            del product

    def _check_batch_norm(self) -> None:
        assert self._plan is not None
        if self._plan.chunks > 1 and not self.split_batch_norm and self.objective.mixes_examples():
            raise ValueError(
                "a batch norm in train mode needs all examples in one chunk, got "
                f"{self._plan.chunks}: each would use its own statistics, which is another loss; "
                "pass one pair and no chunk, mode='eval', or split_batch_norm=True to accept it"
            )


class Hessian(ModelOperator):
    """Hessian of the mean loss, H = (1/N) sum_i ∇²ℓ(f(x_i), y_i), over flat parameters.

    Shape (P, P); unit: loss per parameter². H @ v is exact up to rounding, at the model's current
    weights. See `ModelOperator` for the arguments.

    Example:
        >>> H = Hessian(model, torch.nn.functional.cross_entropy, loader)
        >>> with H:  # graphs are freed at the end
        ...     pairs = top_eigenpairs(H, k=3)

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6(1).
    """

    builders = {  # noqa: RUF012
        "cached": products.hessian_by_double_backward,
        "linearized": products.hessian_by_linearization,
    }


class GaussNewton(ModelOperator):
    """Generalized Gauss-Newton matrix G = (1/N) sum_i Jᵢᵀ ∇²_f ℓ Jᵢ, Jᵢ = ∂f(x_i)/∂w.

    Shape (P, P); unit: loss per parameter². Equals the Hessian for a model linear in w; for
    cross-entropy and ½-MSE positive semidefinite. See `ModelOperator` for the arguments.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products, Neural Computation 14(7).
    """

    builders = {  # noqa: RUF012
        "cached": products.gauss_newton_by_double_backward,
        "linearized": products.gauss_newton_by_linearization,
    }
