"""PyHessian 0.1 as an engine, to reproduce old numbers. The only importer of pyhessian.

PyHessian's package metadata says MIT and its files say GPLv3; nothing of it is copied here.

What PyHessian does, and what this adapter does about it:

- It measures in eval mode, with batch norm and dropout of evaluation, and leaves the model there.
  The modes are restored.
- It overwrites `.grad`, and leaves it with a graph. `.grad` is restored, the same tensors.
- It draws from the global generator. The draws are seeded and the generators restored.
- It draws float32 vectors for any model: torch's default precision is set to the model's inside.
- It crashes on parameters the loss does not use. They are frozen meanwhile; their rows are zero.
- It finds the eigenvalues largest in magnitude, not the algebraically largest, and stops when two
  iterates agree: at the edge of stability it is often more than 1% low. Nothing is corrected. The
  residual, which shows it, is computed with one further product per pair.
- Its trace stops when two running means agree, after two samples at best. The samples it took give
  the error bar; the stopping rule makes that too small.
- Its density calls torch.eig, which torch no longer has: refused.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn
from unittest.mock import patch

import pyhessian
import pyhessian.utils
import torch
from torch import Tensor, nn

from optbench.curvature.chunk_loss import Criterion
from optbench.curvature.chunks import Chunks, Pair
from optbench.curvature.eigen.pairs import Eigenpairs
from optbench.curvature.isolation import (
    eager,
    in_mode,
    kept_rng,
    seed_globals,
    untouched,
    without_autocast,
)
from optbench.curvature.selection import trainable
from optbench.curvature.trace import TraceEstimate
from optbench.intervals import t_quantile


class PyHessian:
    """PyHessian's estimates for a model, with optbench's result types and without side effects.

    Args:
        model: The model; all its parameters that train, on one device and in one precision.
        loss: loss(outputs, targets), the mean over the batch's examples.
        batches: One (inputs, targets) pair, whose graph PyHessian keeps, or a re-iterable of pairs.
        seed: Seed of PyHessian's random vectors.
    """

    def __init__(
        self, model: nn.Module, loss: Criterion, batches: Pair | Iterable[Pair], *, seed: int = 0
    ) -> None:
        self.model, self.loss, self.seed = model, loss, seed
        self.params = trainable(model)
        self.device, self.dtype = self.params[0].device, self.params[0].dtype
        self.chunks = Chunks(batches, self.device, self.dtype)

    def top_eigenpairs(
        self, k: int = 1, *, tol: float = 1e-3, max_iterations: int = 100
    ) -> Eigenpairs:
        """The k eigenvalues largest in magnitude, by PyHessian's power iteration.

        Returns:
            Pairs, largest value first. `bounds` are the residuals: an eigenvalue is that close, not
            surely the one meant. `hvps` counts PyHessian's products, not the k for the residuals;
            `converged` says whether it stopped before max_iterations.

        Raises:
            ValueError: If k is not positive.
        """
        if k < 1:
            raise ValueError(f"k must be positive, got {k}")
        with self._engine() as (engine, counter):
            values, vectors = engine.eigenvalues(maxIter=max_iterations, tol=tol, top_n=k)
            spent = counter[0]
            order = sorted(range(k), key=lambda i: -values[i])
            columns = torch.stack([self._flat(engine.params, vectors[i]) for i in order], 1)
            images = [self._flat(engine.params, _product(engine, vectors[i])) for i in order]
        theta = torch.tensor([values[i] for i in order], dtype=self.dtype, device=self.device)
        residuals = (torch.stack(images, 1) - columns * theta).norm(dim=0)
        return Eigenpairs(
            theta, columns, residuals, residuals, spent, spent < k * max_iterations, columns
        )

    def trace(
        self, *, tol: float = 1e-3, max_iterations: int = 100, confidence: float = 0.95
    ) -> TraceEstimate:
        """Hutchinson's estimate from the samples PyHessian takes before it stops."""
        with self._engine() as (engine, _):
            draws = torch.tensor(engine.trace(maxIter=max_iterations, tol=tol), dtype=torch.float64)
        count = len(draws)
        value = float(draws.mean())
        stderr = float(draws.std() / count**0.5) if count > 1 else float("inf")
        reach = t_quantile(max(count - 1, 1), confidence) * stderr
        return TraceEstimate(value, value - reach, value + reach, stderr, count)

    def spectral_density(self) -> NoReturn:
        """Not available.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "PyHessian 0.1's density calls torch.eig, which torch has removed: use "
            "optbench.curvature.spectral_density"
        )

    @contextlib.contextmanager
    def _engine(self) -> Iterator[tuple[Any, list[int]]]:
        """Context: yields PyHessian's object and a count of its products; restores everything."""
        module: Any = sys.modules["pyhessian.hessian"]
        counter = [0]

        def counted(original: Any) -> Any:
            def call(*arguments: Any) -> Any:
                counter[0] += 1
                return original(*arguments)

            return call

        with (
            self.chunks.kept_rng(),
            untouched(self.model),
            in_mode(self.model, "eval"),
            without_autocast(self.device),
            eager(),
            self._kept_gradients(),
            torch.enable_grad(),
            warnings.catch_warnings(),
            patch.object(module, "hessian_vector_product", counted(module.hessian_vector_product)),
        ):
            warnings.simplefilter("ignore")  # its backward(create_graph=True) warns of the cycle
            engine = self._build()
            engine.dataloader_hv_product = counted(engine.dataloader_hv_product)
            seed_globals(self.device, self.seed)
            default = torch.get_default_dtype()
            torch.set_default_dtype(self.dtype)
            try:
                yield engine, counter
            finally:
                torch.set_default_dtype(default)

    def _build(self) -> Any:
        first = self.chunks.sample(sys.maxsize)
        used = torch.autograd.grad(
            self.loss(self.model(first[0]), first[1]), self.params, allow_unused=True
        )
        for p, gradient in zip(self.params, used, strict=True):
            p.requires_grad_(gradient is not None)
        one = isinstance(self.chunks.batches, list) and len(self.chunks.batches) == 1
        data = {"data": first} if one else {"dataloader": _Quiet(self.chunks)}
        return pyhessian.hessian(self.model, self.loss, cuda=self.device.type == "cuda", **data)

    @contextlib.contextmanager
    def _kept_gradients(self) -> Iterator[None]:
        before = [(p, p.grad) for p in self.model.parameters()]
        try:
            for p, _ in before:
                p.grad = None
            yield
        finally:
            for p, gradient in before:
                p.grad = gradient
            for p in self.params:
                p.requires_grad_(True)

    def _flat(self, used: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
        """PyHessian's list over used parameters as a flat vector over all, zero elsewhere."""
        part_of = {id(p): part.detach() for p, part in zip(used, parts, strict=True)}
        return torch.cat(
            [part_of.get(id(p), torch.zeros_like(p)).flatten().detach() for p in self.params]
        )


class _Quiet:
    """The chunks; reading them does not advance the generators that PyHessian draws from."""

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[Pair]:
        with kept_rng(self.chunks.device):
            yield from list(self.chunks)


def _product(engine: Any, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    if engine.full_dataset:
        return engine.dataloader_hv_product(parts)[1]  # type: ignore[no-any-return]
    return pyhessian.utils.hessian_vector_product(engine.gradsH, engine.params, parts)  # type: ignore[no-any-return]
