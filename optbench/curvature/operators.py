"""Symmetric linear operators on the flat parameter space, and their algebra."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral, Real
from types import TracebackType
from typing import Self

import torch
from torch import Tensor


class Operator(ABC):
    """A symmetric P x P matrix known only by its products, A @ v.

    Subclasses set `size`, `dtype`, `device` and define `_apply`. Operators can be added, subtracted
    and scaled. As a context manager an operator is refreshed on entry, and frees its cached graphs
    on exit.

    Attributes:
        size: P, the number of rows.
        dtype: Precision of the vectors.
        device: Device of the vectors.
        hvps: Matrix-vector products computed since construction; a (P, K) block counts K.
    """

    size: int
    dtype: torch.dtype
    device: torch.device
    hvps: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return self.size, self.size

    def __matmul__(self, v: Tensor) -> Tensor:
        """Product A v.

        Args:
            v: One vector, shape (P,), or K of them as columns, shape (P, K).

        Returns:
            A v, of the same shape.

        Raises:
            ValueError: If v is no tensor, or has another shape, dtype or device than the operator.
            FloatingPointError: If the product is not finite.
        """
        if not isinstance(v, Tensor):
            raise ValueError(f"v must be a tensor, got {type(v).__name__}")
        if v.ndim == 2 and not v.shape[1]:
            return v.clone()
        if v.ndim not in (1, 2) or v.shape[0] != self.size:
            raise ValueError(
                f"v must have shape ({self.size},) or ({self.size}, K), got {tuple(v.shape)}"
            )
        if v.dtype != self.dtype or v.device != self.device:
            raise ValueError(
                f"v must be {self.dtype} on {self.device}, got {v.dtype} on {v.device}: "
                f"use v.to({self.device.type!r}, {self.dtype})"
            )
        columns = v if v.ndim == 2 else v.unsqueeze(1)
        self.hvps += columns.shape[1]
        images = self._apply(columns.detach())  # products are not differentiated in v
        if not bool(torch.isfinite(images).all()):
            raise FloatingPointError(
                "the curvature product is not finite: weights, data or v have diverged or overflow"
            )
        return images.reshape(v.shape)

    @abstractmethod
    def _apply(self, vectors: Tensor) -> Tensor:
        """Products with the columns of vectors, shape (P, K) to (P, K)."""

    def refresh(self) -> None:  # noqa: B027  an operator without memory has nothing to forget
        """Forget what is cached: the next product is at the model's current weights."""

    def __enter__(self) -> Self:
        """Start afresh at the current weights."""
        self.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free the cached graphs."""
        self.refresh()

    def __add__(self, other: Operator) -> Operator:
        """A + B."""
        return Combination([(1.0, self), (1.0, other)])

    def __sub__(self, other: Operator) -> Operator:
        """A - B, for instance the Hessian without its Gauss-Newton part."""
        return Combination([(1.0, self), (-1.0, other)])

    def __mul__(self, factor: float) -> Operator:
        """A times a number."""
        check_real(factor=factor)
        return Combination([(float(factor), self)])

    __rmul__ = __mul__

    def __neg__(self) -> Operator:
        """-A: its largest eigenvalue is minus A's smallest."""
        return self * -1.0


def check_operator(operator: object) -> None:
    """Raise a ValueError unless it is an operator."""
    if not isinstance(operator, Operator):
        raise ValueError(
            f"operator must be an Operator, such as a Hessian, got {type(operator).__name__}"
        )


def check_whole(**numbers: object) -> None:
    """Raise a ValueError unless each is a whole number."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise ValueError(f"{name} must be a whole number, got {number!r}")


def check_real(**numbers: object) -> None:
    """Raise a ValueError unless each is a real number."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Real) or math.isnan(float(number)):
            raise ValueError(f"{name} must be a number, got {number!r}")


class Combination(Operator):
    """The operator sum_i c_i A_i; one product of it is one product of every A_i.

    Args:
        terms: Pairs (c_i, A_i), at least one, of one shape, dtype and device.

    Raises:
        ValueError: If the operators differ in shape, dtype or device.
    """

    def __init__(self, terms: Sequence[tuple[float, Operator]]) -> None:
        for factor, term in terms:
            check_real(factor=factor)
            check_operator(term)
        first = terms[0][1]
        for _, term in terms:
            if (term.size, term.dtype, term.device) != (first.size, first.dtype, first.device):
                raise ValueError(
                    "operators must agree in shape, dtype and device, got "
                    f"{first.shape}, {first.dtype}, {first.device} and "
                    f"{term.shape}, {term.dtype}, {term.device}"
                )
        self.terms = list(terms)
        self.size, self.dtype, self.device = first.size, first.dtype, first.device

    def _apply(self, vectors: Tensor) -> Tensor:
        factor, term = self.terms[0]
        total = (term @ vectors) * factor
        for factor, term in self.terms[1:]:
            total += (term @ vectors) * factor
        return total

    def refresh(self) -> None:
        """Refresh every term."""
        for _, term in self.terms:
            term.refresh()


class Preconditioned(Operator):
    """The symmetric form of P⁻¹A for a diagonal P: P^-1/2 A P^-1/2.

    It has the eigenvalues of P⁻¹A. If u is an eigenvector of it, then `to_parameters(u)` = P^-1/2 u
    is one of P⁻¹A.

    Args:
        operator: A, shape (P, P).
        diagonal: Diagonal of P, shape (P,), positive, in the order of the operator's parameters;
            for Adam √ν + ε.

    Raises:
        ValueError: If the diagonal has another shape or an entry that is not positive and finite.

    References:
        Cohen et al. (2022), arXiv:2207.14484, section 2.
    """

    def __init__(self, operator: Operator, diagonal: Tensor) -> None:
        check_operator(operator)
        if not isinstance(diagonal, Tensor) or diagonal.is_complex():
            raise ValueError(f"diagonal must be a real tensor, got {type(diagonal).__name__}")
        if diagonal.shape != (operator.size,):
            raise ValueError(
                f"diagonal must have shape ({operator.size},), got {tuple(diagonal.shape)}"
            )
        bad = ~(torch.isfinite(diagonal) & (diagonal > 0))
        if bad.any():
            raise ValueError(
                f"diagonal must be positive and finite, got {diagonal[bad][0].item()}: add ε to it"
            )
        self.operator = operator
        # P^-1/2
        self.scale = diagonal.detach().to(operator.device, operator.dtype).rsqrt()
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def _apply(self, vectors: Tensor) -> Tensor:
        scale = self.scale.unsqueeze(1)
        return scale * (self.operator @ (scale * vectors))

    def to_parameters(self, vectors: Tensor) -> Tensor:
        """P^-1/2 u, the eigenvectors of P⁻¹A (not normalised), for u of shape (P,) or (P, K)."""
        scale = self.scale if vectors.ndim == 1 else self.scale.unsqueeze(1)
        return scale * vectors

    def refresh(self) -> None:
        """Refresh the operator inside."""
        self.operator.refresh()


class Scaled(Operator):
    """D A D for a diagonal D with entries d ≥ 0; zeros are allowed.

    With d = |w| its largest eigenvalue is adaptive sharpness, which rescaling two adjacent ReLU
    layers does not move (Kwon et al. 2021, arXiv:2102.11600, for ρ → 0).

    Raises:
        ValueError: If the diagonal has another size than A, or an entry below 0 or not finite.
    """

    def __init__(self, operator: Operator, diagonal: Tensor) -> None:
        check_operator(operator)
        if tuple(diagonal.shape) != (operator.size,):
            raise ValueError(
                f"diagonal must have shape ({operator.size},), got {tuple(diagonal.shape)}"
            )
        if not bool((diagonal >= 0).all()) or not bool(diagonal.isfinite().all()):
            raise ValueError("diagonal must be finite, and nowhere below 0")
        self.operator = operator
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self._diagonal = diagonal.detach().to(self.device, self.dtype)

    def _apply(self, vectors: Tensor) -> Tensor:
        scale = self._diagonal.unsqueeze(1)
        return scale * (self.operator @ (scale * vectors))

    def refresh(self) -> None:
        """Let A notice weights that have changed; the diagonal stays."""
        self.operator.refresh()


class Restricted(Operator):
    """The principal submatrix A[rows, rows], such as one layer's block; a product costs one of A.

    Args:
        operator: A, shape (P, P).
        rows: Indices, shape (p,), without repetition.

    Raises:
        ValueError: If rows is empty, repeats an index, or holds one that A does not have.
    """

    def __init__(self, operator: Operator, rows: Tensor) -> None:
        check_operator(operator)
        if not isinstance(rows, Tensor):
            raise ValueError(f"rows must be a tensor of indices, got {type(rows).__name__}")
        ints = (
            rows.ndim == 1
            and len(rows) > 0
            and not rows.is_floating_point()
            and rows.dtype != torch.bool
        )
        if (
            not ints
            or len(rows.unique()) < len(rows)
            or not 0 <= int(rows.min()) <= int(rows.max()) < operator.size
        ):
            raise ValueError(
                f"rows must be different indices below P = {operator.size}, got {rows}"
            )
        self.operator, self.rows, self.size = operator, rows, len(rows)
        self.dtype, self.device = operator.dtype, operator.device

    def _apply(self, vectors: Tensor) -> Tensor:
        # Sᵀ A S v, where S puts the rows' entries into a vector of zeros.
        whole = vectors.new_zeros((self.operator.size, vectors.shape[1]))
        whole[self.rows] = vectors
        return (self.operator @ whole)[self.rows]

    def refresh(self) -> None:
        """Refresh the operator inside."""
        self.operator.refresh()
