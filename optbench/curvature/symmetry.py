"""Whether products are those of a symmetric matrix: uᵀ(Av) = vᵀ(Au)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optbench.curvature.errors import MeasurementError

ROUNDING = (
    1e4  # units of rounding by which right products may be asymmetric: norms amplify rounding
)
LEAST = 1e-6  # in double precision: constants of a model in single precision are asymmetric by 1e-7
# part of ‖A q‖ by which a projected matrix may be skew: below it, no eigenvalue is off by more
WRONG = 1e-3


@dataclass(frozen=True)
class Witness:
    """A random vector r and its image A r, which every other product at the same weights is compared with.

    The first product of an operator costs one more for it, the others a few inner products.

    Attributes:
        state: Of the weights it was taken at.
        vector: r, shape (P, 1); empty once the weights have moved on.
        image: A r, likewise.
    """

    state: tuple[object, ...]
    vector: Tensor
    image: Tensor

    def over(self) -> Witness:
        """The same without its numbers, when they no longer belong to the weights: products were symmetric once."""
        nothing = self.vector[:0]
        return replace(self, state=(None,), vector=nothing, image=nothing)

    def compare(self, vectors: Tensor, images: Tensor) -> None:
        """Check rᵀ(A v) = vᵀ(A r) for vectors as columns, shape (P, K), and their images.

        Raises:
            MeasurementError: If they differ by more than rounding can explain.
        """
        there, back = self.vector * images, self.image * vectors
        one, other = there.sum(0, dtype=torch.float64), back.sum(0, dtype=torch.float64)
        # The sums have P terms with random signs, so this is about what they come to; the second
        # part is what a vector comes to that is no worse than others, below which a component may
        # be nothing but rounding.
        size = torch.hypot(_norms(there), _norms(back))
        usual = _norms(self.image) * _norms(vectors) / len(vectors) ** 0.5
        allowed = max(ROUNDING * torch.finfo(vectors.dtype).eps, LEAST) * torch.maximum(size, usual)
        wrong = (one - other).abs() > allowed  # not for NaN, which is told as what it is
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise not_symmetric(f"uᵀAv = {float(one[i]):.6g}, vᵀAu = {float(other[i]):.6g}")


def _norms(columns: Tensor) -> Tensor:
    """‖·‖₂ of each column, in double precision."""
    found: Tensor = torch.linalg.vector_norm(columns, dim=0, dtype=torch.float64)
    return found


def not_symmetric(seen: str) -> MeasurementError:
    """The error for products that are not of a symmetric matrix."""
    return MeasurementError(
        f"curvature products are not symmetric ({seen}): single precision cancels, as where inputs "
        "that are not "
        "normalized meet a batch norm (dtype=torch.float64 tells), or an operation has a wrong "
        "second derivative in "
        "torch or in a custom autograd function (leave its parameters out with params=[…]): "
        "eigenvalues would mean "
        "nothing"
    )
