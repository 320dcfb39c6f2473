"""Test that products come from a symmetric matrix: uᵀ(A v) = vᵀ(A u)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optbench.curvature.errors import MeasurementError

# Allowed asymmetry of correct products, in machine epsilons: normalization layers amplify rounding.
ROUNDING = 1e4
# Least relative asymmetry that is allowed, also in double precision: a model whose constants are in
# single precision has 1e-7.
LEAST = 1e-6
# Allowed skew part of a projected matrix, relative to ‖A q‖: no eigenvalue is off by more than it.
WRONG = 1e-3


@dataclass(frozen=True)
class Witness:
    """A random vector r and its image A r, compared with every product at the same weights.

    It adds one product to an operator's first, and a few inner products to each later one.

    Attributes:
        state: Fingerprint of the weights and data that A r was computed at.
        vector: r, shape (P, 1); empty once the weights have changed.
        image: A r, shape (P, 1); empty once the weights have changed.
    """

    state: tuple[object, ...]
    vector: Tensor
    image: Tensor

    def over(self) -> Witness:
        """This witness without its vectors, which no longer belong to the current weights.

        It remains as a record that products were symmetric, so that no new one is computed.
        """
        empty = self.vector[:0]
        return replace(self, state=(None,), vector=empty, image=empty)

    def compare(self, vectors: Tensor, images: Tensor) -> None:
        """Check rᵀ(A v) = vᵀ(A r).

        Args:
            vectors: Vectors v as columns, shape (P, K).
            images: Their images A v, shape (P, K).

        Raises:
            MeasurementError: If the two sides differ by more than rounding can explain.
        """
        r_av_terms, v_ar_terms = self.vector * images, self.image * vectors
        r_av, v_ar = (terms.sum(0, dtype=torch.float64) for terms in (r_av_terms, v_ar_terms))
        # Each sum has P terms of random sign, so its size is about the root of the sum of their
        # squares.
        size = torch.hypot(_norms(r_av_terms), _norms(v_ar_terms))
        # For a random v, vᵀ(A r) is about ‖A r‖ ‖v‖ / √P. An inner product far below that may be
        # nothing but rounding.
        usual = _norms(self.image) * _norms(vectors) / len(vectors) ** 0.5
        allowed = max(ROUNDING * torch.finfo(vectors.dtype).eps, LEAST) * torch.maximum(size, usual)
        # A comparison with NaN is False: non-finite products have an error of their own.
        wrong = (r_av - v_ar).abs() > allowed
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise not_symmetric(f"uᵀAv = {float(r_av[i]):.6g}, vᵀAu = {float(v_ar[i]):.6g}")


def _norms(columns: Tensor) -> Tensor:
    """‖·‖₂ of each column, in double precision."""
    norms: Tensor = torch.linalg.vector_norm(columns, dim=0, dtype=torch.float64)
    return norms


def not_symmetric(seen: str) -> MeasurementError:
    """The error for products that are not of a symmetric matrix."""
    return MeasurementError(
        f"curvature products are not symmetric ({seen}): single precision cancels, as where inputs "
        "that are not normalized meet a batch norm (dtype=torch.float64 tells), or an operation "
        "has a wrong second derivative in torch or in a custom autograd function (leave its "
        "parameters out with params=[…]): eigenvalues would mean nothing"
    )
