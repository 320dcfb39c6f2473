"""What an edge of stability is, and how it acts on vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from optbench.optimizers.norms import Geometry

Source = Literal["closed form", "conjecture", "probed", "unknown"]
MatVec = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Edge:
    """The edge of stability of an optimizer in its current state.

    Geometry "l2": training is locally stable while

        λ₁(P^-½ (H + r H² + D) P^-½) < threshold

    with preconditioner P, coupled weight decay D = diag(shift) and SAM's r = ρ/‖g‖.
    Geometry "linf" or "spectral": the measured quantity is the norm sharpness
    max dᵀHd over ‖d_l‖ ≤ radii_l for every tensor l, in max-norm or spectral norm.
    Vectors are flat, shape (P,), the concatenation of `parameters` in that order.

    Attributes:
        threshold: Value of the measured quantity at the edge, unit loss/parameter² (over the
            unit of P); NaN if unknown, or if it needs a gradient (see `at`); inf if nothing moves.
        source: "closed form", "conjecture" (formula not established), "probed", "unknown".
        formula: The threshold for a reader, such as "(2+2β)/η".
        parameters: The trainable tensors of the optimizer, in the order of its groups.
        geometry: Norm in which sharpness is measured.
        preconditioner: Diagonal of P, a tensor per parameter, inf where nothing moves;
            None for the identity. It absorbs what differs between parameter groups.
        roots: Matrix preconditioners: per parameter, v ↦ M^-½ v for P = diagonal · M.
        shift: Coupled weight decay to be added to the Hessian's diagonal, one per parameter.
        ascent: r = ρ/‖g‖ for SAM over a preconditioned base, else 0.
        radii: Radius of the norm ball per parameter, for "linf" and "spectral".
        learned: Per parameter, whether its P is learned from gradients; None: all, if there is a P.
        reason: Why the source is "unknown" or "conjecture", or which idealization was made.
        resolve: What `at` calls; None where no gradient is needed.
    """

    threshold: float
    source: Source
    formula: str
    parameters: tuple[Tensor, ...] = ()
    geometry: Geometry = "l2"
    preconditioner: tuple[Tensor, ...] | None = None
    roots: tuple[MatVec | None, ...] | None = None
    shift: tuple[float, ...] | None = None
    ascent: float = 0.0
    radii: tuple[float, ...] | None = None
    learned: tuple[bool, ...] | None = None
    reason: str = ""
    resolve: Callable[[Tensor], Edge] | None = None

    @property
    def plain(self) -> bool:
        """Whether the measured quantity is λ₁(H) itself, so that no further solve is needed."""
        modified = (self.preconditioner, self.roots, self.shift)
        return self.geometry == "l2" and self.ascent == 0 and all(m is None for m in modified)

    @property
    def learns(self) -> tuple[bool, ...]:
        """Per parameter, whether its P is learned from gradients, so that it has to settle first."""
        if self.learned is not None:
            return self.learned
        return (self.preconditioner is not None or self.roots is not None,) * len(self.parameters)

    @property
    def needs_gradient(self) -> bool:
        """Whether the threshold is known only after `at(gradient)`."""
        return self.resolve is not None

    def at(self, gradient: Tensor) -> Edge:
        """The edge at a point with this full-batch gradient; itself where none is needed.

        Args:
            gradient: Flat gradient of the loss, shape (P,), in the order of `parameters`.

        Raises:
            ValueError: If the gradient has another number of entries than the parameters.
        """
        size = sum(p.numel() for p in self.parameters)
        if self.resolve is None:
            return self
        if gradient.numel() != size:
            raise ValueError(
                f"gradient has {gradient.numel()} entries, the parameters {size}: "
                "pass one flat vector in the order of edge.parameters"
            )
        return self.resolve(gradient)

    def distance(self, measured: float) -> float:
        """Distance to the edge, measured / threshold: 1 at the edge, NaN unless threshold > 0."""
        return measured / self.threshold if self.threshold > 0 else math.nan

    def inverse_sqrt(self, v: Tensor) -> Tensor:
        """P^-½ v for a flat vector of shape (P,) or a block of shape (P, K)."""
        if self.roots is not None:
            pieces = zip(self.roots, split(v, self.parameters), strict=True)
            v = join([piece if root is None else root(piece) for root, piece in pieces], v)
        if self._scale is None:
            return v
        return v * self._scale.to(v.dtype).reshape((-1,) + (1,) * (v.dim() - 1))

    @cached_property
    def _scale(self) -> Tensor | None:
        """diagonal^-½ as one flat vector, kept since every product needs it twice."""
        if self.preconditioner is None:
            return None
        return torch.cat([d.rsqrt().reshape(-1) for d in self.preconditioner])

    def operator(self, matvec: MatVec) -> MatVec:
        """The symmetric operator P^-½ (H + r H² + D) P^-½ whose λ₁ meets `threshold`.

        Costs one product with H per product, two for SAM over a preconditioned base.

        Args:
            matvec: v ↦ Hv on flat vectors in the order of `parameters`.

        Raises:
            ValueError: If the geometry is not "l2"; norm sharpness is not an eigenvalue.
        """
        if self.geometry != "l2":
            raise ValueError(
                f"geometry is {self.geometry!r}, not 'l2': measure norm_sharpness(..., radii=...)"
            )
        if self.plain:
            return matvec

        def product(v: Tensor) -> Tensor:
            x = self.inverse_sqrt(v)
            y = matvec(x)
            if self.ascent:
                y = y + self.ascent * matvec(y)
            if self.shift is not None:
                pairs = zip(split(x, self.parameters), self.shift, strict=True)
                y = y + join([s * piece for piece, s in pairs], v)
            return self.inverse_sqrt(y)

        return product

    def reordered(self, parameters: Sequence[Tensor]) -> Edge:
        """The same edge with its tensors in the order of `parameters`, compared by identity.

        Parameters that the optimizer does not hold never move: P is infinite there.

        Raises:
            ValueError: If the optimizer holds a parameter that is missing from the list.
        """
        index = {id(p): i for i, p in enumerate(self.parameters)}
        order = [index.get(id(p)) for p in parameters]
        if len(index.keys() & {id(p) for p in parameters}) < len(index):
            raise ValueError(
                f"the optimizer holds {len(index)} trainable tensors, not all of them among the "
                f"{len(order)} given: pass every trainable parameter of the model"
            )
        if order == list(range(len(index))):
            return self
        same = None not in order and self.preconditioner is None
        old = self.preconditioner or tuple(torch.ones_like(p) for p in self.parameters)
        diagonal = tuple(
            torch.full_like(p, math.inf) if i is None else old[i]
            for i, p in zip(order, parameters, strict=True)
        )
        resolve = self.resolve
        return replace(
            self,
            parameters=tuple(parameters),
            preconditioner=None if same or self.geometry != "l2" else diagonal,
            roots=self.roots and tuple(None if i is None else self.roots[i] for i in order),
            shift=self.shift and tuple(0.0 if i is None else self.shift[i] for i in order),
            radii=self.radii and tuple(0.0 if i is None else self.radii[i] for i in order),
            learned=tuple(i is not None and self.learns[i] for i in order),
            resolve=resolve
            and (lambda g: resolve(_gather(g, parameters, order)).reordered(parameters)),
        )


def split(v: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat (P,) or (P, K) as one tensor per parameter, of its shape or (*shape, K)."""
    pieces = torch.split(v, [p.numel() for p in parameters])
    return [
        piece.reshape(p.shape + v.shape[1:]) for piece, p in zip(pieces, parameters, strict=True)
    ]


def join(pieces: Sequence[Tensor], like: Tensor) -> Tensor:
    """The inverse of `split`, for a vector or block of the shape of `like`."""
    return torch.cat([piece.reshape((-1, *like.shape[1:])) for piece in pieces])


def _gather(g: Tensor, parameters: Sequence[Tensor], order: Sequence[int | None]) -> Tensor:
    pieces = split(g, parameters)
    known = sorted((i, k) for k, i in enumerate(order) if i is not None)
    return torch.cat([pieces[k].reshape(-1) for _, k in known])
