"""Types of an edge of stability: unknown, an eigenvalue's, a norm ball's, or at a gradient.

    match edge(optimizer):
        case UnknownEdge(reason): ...
        case EigenvalueEdge(threshold): ...      # λ₁ of `edge.operator(hvp)` meets the threshold
        case NormBallEdge(threshold, norm): ...  # max dᵀHd over a norm ball does
        case GradientEdge() as waiting: waiting.at(gradient)  # one of the three above

Vectors are flat, shape (P,), the concatenation of `parameters` in that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from optbench.optimizers.norms import Geometry

Source = Literal["closed form", "conjecture", "probed"]
"""Where a threshold comes from: a proof, a formula that is not established, or watching copies."""

LAMBDA_1 = "λ₁(H)"
NO_STEP = "no step taken yet, so P does not exist: ask after a step"
"""Why the edge is unknown of an optimizer whose preconditioner P is made in its first step."""
MatVec = Callable[[Tensor], Tensor]
Parameters = tuple[Tensor, ...]
T = TypeVar("T")
E = TypeVar("E", bound="AnyEdge")


class AnyEdge:
    """What every edge can be asked.

    Attributes:
        needs_gradient: Whether the threshold is known only `at` a gradient.
    """

    needs_gradient: ClassVar[bool] = False
    parameters: Parameters

    def at(self, gradient: Tensor) -> Any:
        """Edge at a point with this full-batch gradient; itself where none is needed."""
        return self

    def reordered(self: E, parameters: Sequence[Tensor]) -> E:
        """Return the same edge with its tensors in another order; see the function `reordered`."""
        return reordered(self, parameters)


class MeasuredEdge(AnyEdge):
    """An edge with a threshold."""

    threshold: float

    def distance(self, measured: float) -> float | None:
        """Distance to the edge, measured / threshold: 1 at the edge; None unless threshold > 0."""
        return measured / self.threshold if self.threshold > 0 else None


@dataclass(frozen=True, eq=False)
class UnknownEdge(AnyEdge):
    """No edge is known.

    Attributes:
        reason: Why none is known, and what can be done about it.
        parameters: Trainable tensors of the optimizer, in the order of its groups.
        on_a_norm_ball: Whether it will be a NormBallEdge, where a step is all that it awaits.
    """

    reason: str
    parameters: Parameters = ()
    on_a_norm_ball: bool = False
    source: ClassVar[str] = "unknown"


@dataclass(frozen=True, eq=False)
class EigenvalueEdge(MeasuredEdge):
    """A threshold on an eigenvalue.

    Training is locally stable while

        λ₁(P^-½ (H + r H² + D) P^-½) < threshold

    with preconditioner P, coupled weight decay D = diag(shift) and SAM's r = ρ/‖g‖.

    Attributes:
        threshold: Value at the edge, unit loss/parameter² (over the unit of P); infinite if nothing
            moves.
        formula: Threshold for a reader, such as "(2+2β)/η".
        parameters: Trainable tensors of the optimizer, in the order of its groups.
        source: Where the threshold comes from.
        reason: Idealization that was made, if any.
        preconditioner: Diagonal of P, a tensor per parameter, infinite where nothing moves; None
            for the identity. It absorbs what differs between parameter groups.
        roots: Matrix preconditioners: per parameter, v ↦ M^-½ v for P = diagonal · M.
        shift: Coupled weight decay, added to the Hessian's diagonal, one per parameter.
        ascent: r = ρ/‖g‖ for SAM over a preconditioned base, else 0.
        learned: Per parameter, whether its P is learned from gradients; None: all, if there is a P.
    """

    threshold: float
    formula: str
    parameters: Parameters = ()
    source: Source = "closed form"
    reason: str = ""
    preconditioner: Parameters | None = None
    roots: tuple[MatVec | None, ...] | None = None
    shift: tuple[float, ...] | None = None
    ascent: float = 0.0
    learned: tuple[bool, ...] | None = None

    @property
    def plain(self) -> bool:
        """Whether the measured quantity is λ₁(H) itself, so that no further solve is needed."""
        modified = (self.preconditioner, self.roots, self.shift)
        return self.ascent == 0 and all(m is None for m in modified)

    @property
    def learns(self) -> tuple[bool, ...]:
        """Per parameter, whether its P is learned from gradients and has to settle first."""
        if self.learned is not None:
            return self.learned
        has_one = self.preconditioner is not None or self.roots is not None
        return (has_one,) * len(self.parameters)

    @property
    def quantity(self) -> str:
        """What the threshold is on, for a reader."""
        return LAMBDA_1 if self.plain else "λ₁(P⁻¹H)"

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

    def shift_along(self, x: Tensor) -> float:
        """xᵀDx of the coupled weight decay D, for a flat vector."""
        if self.shift is None:
            return 0.0
        pieces = zip(split(x, self.parameters), self.shift, strict=True)
        return math.fsum(s * float(piece.double().square().sum()) for piece, s in pieces)

    def operator(self, matvec: MatVec) -> MatVec:
        """Symmetric operator P^-½ (H + r H² + D) P^-½ whose λ₁ meets `threshold`.

        Costs one product with H per product, two for SAM over a preconditioned base.

        Args:
            matvec: v ↦ Hv on flat vectors in the order of `parameters`.
        """
        if self.plain:
            return matvec

        def product(v: Tensor) -> Tensor:
            x = self.inverse_sqrt(v)
            y = matvec(x)
            if self.ascent:
                # arXiv:2309.12488: the gradient at w + ρ g/‖g‖ is that of H + (ρ/‖g‖) H²
                y = y + self.ascent * matvec(y)
            if self.shift is not None:
                pairs = zip(split(x, self.parameters), self.shift, strict=True)
                y = y + join([s * piece for piece, s in pairs], v)
            return self.inverse_sqrt(y)

        return product


@dataclass(frozen=True, eq=False)
class NormBallEdge(MeasuredEdge):
    """A threshold on the norm sharpness max dᵀHd over ‖d_l‖ ≤ radii_l for every tensor l.

    Attributes:
        threshold: Value at the edge, unit loss.
        norm: Norm of the ball, of each tensor: "linf" (sign methods), "spectral" (Muon), "l2".
        radii: Radius per parameter; 0 where nothing moves.
        formula: Threshold for a reader.
        parameters: Trainable tensors of the optimizer, in the order of its groups.
        source: Where the threshold comes from.
        reason: Idealization that was made, if any.
    """

    threshold: float
    norm: Geometry
    radii: tuple[float, ...]
    formula: str
    parameters: Parameters = ()
    source: Source = "closed form"
    reason: str = ""

    @property
    def learns(self) -> tuple[bool, ...]:
        """Per parameter, whether a P is learned from gradients: there is none."""
        return (False,) * len(self.parameters)

    @property
    def quantity(self) -> str:
        """What the threshold is on, for a reader."""
        return f"{self.norm} sharpness"


Resolved = UnknownEdge | EigenvalueEdge | NormBallEdge


@dataclass(frozen=True, eq=False)
class GradientEdge(AnyEdge):
    """An edge that is known once the full-batch gradient is.

    Attributes:
        resolve: Gradient, flat, shape (P,), in the order of `parameters` ↦ the edge there.
        quantity: What the threshold will be on, for a reader.
        formula: Threshold for a reader.
        parameters: Trainable tensors of the optimizer, in the order of its groups.
        source: Where the threshold comes from.
        reason: Idealization that was made, if any.
        learns: Per parameter, whether its P is learned from gradients.
        on_a_norm_ball: Whether it will be a NormBallEdge.
    """

    resolve: Callable[[Tensor], Resolved]
    quantity: str
    formula: str
    parameters: Parameters
    source: Source = "closed form"
    reason: str = ""
    learns: tuple[bool, ...] = ()
    on_a_norm_ball: bool = False
    needs_gradient: ClassVar[bool] = True

    def at(self, gradient: Tensor) -> Resolved:
        """Edge at a point with this full-batch gradient.

        Args:
            gradient: Flat gradient of the loss, shape (P,), in the order of `parameters`.

        Raises:
            ValueError: If the gradient has another number of entries than the parameters.
        """
        size = sum(p.numel() for p in self.parameters)
        if gradient.numel() != size:
            raise ValueError(
                f"gradient has {gradient.numel()} entries, the parameters {size}: "
                "pass one flat vector in the order of edge.parameters"
            )
        return self.resolve(gradient)


KnownEdge = EigenvalueEdge | NormBallEdge
Edge = UnknownEdge | EigenvalueEdge | NormBallEdge | GradientEdge


def on_sharpness(edge: Edge) -> bool:
    """Whether the threshold is on λ₁(H) itself, now or once the gradient is known."""
    return not isinstance(edge, UnknownEdge) and edge.quantity == LAMBDA_1


def awaits_a_step(edge: Edge) -> bool:
    """Whether the edge is unknown only until the optimizer has taken its first step."""
    return isinstance(edge, UnknownEdge) and NO_STEP in edge.reason


def described(edge: Edge) -> str:
    """Formula and source of an edge, or the reason why none is known, for a reader."""
    if isinstance(edge, UnknownEdge):
        return edge.reason
    return f"{edge.formula} ({edge.source})"


def reordered(edge: E, parameters: Sequence[Tensor]) -> E:
    """Return the same edge with its tensors in the order of `parameters`, compared by identity.

    Parameters that the optimizer does not hold never move: P is infinite there, a radius 0.

    Raises:
        ValueError: If the optimizer holds a parameter that is missing from the list.
    """
    index = {id(p): i for i, p in enumerate(edge.parameters)}
    if len(index.keys() & {id(p) for p in parameters}) < len(index):
        raise ValueError(
            f"the optimizer holds {len(index)} trainable tensors, not all of them among the "
            f"{len(parameters)} given: pass every trainable parameter of the model"
        )
    order = [index.get(id(p)) for p in parameters]
    if order == list(range(len(index))):
        return edge
    in_order: E = _in_order(edge, tuple(parameters), order)
    return in_order


def _in_order(edge: Any, parameters: Parameters, order: Sequence[int | None]) -> Any:
    match edge:
        case UnknownEdge():
            return replace(edge, parameters=parameters)
        case EigenvalueEdge():
            return _eigenvalue_in_order(edge, parameters, order)
        case NormBallEdge():
            return replace(edge, parameters=parameters, radii=_pick(edge.radii, order, 0.0))
        case GradientEdge():

            def resolve(gradient: Tensor) -> Resolved:
                there = edge.at(_gather(gradient, parameters, order))
                in_order: Resolved = _in_order(there, parameters, order)
                return in_order

            return replace(
                edge,
                parameters=parameters,
                resolve=resolve,
                learns=_pick(edge.learns, order, False),
            )


def _eigenvalue_in_order(
    edge: EigenvalueEdge, parameters: Parameters, order: Sequence[int | None]
) -> EigenvalueEdge:
    diagonal = edge.preconditioner
    if diagonal is None and None in order:
        diagonal = tuple(torch.ones_like(p) for p in edge.parameters)
    return replace(
        edge,
        parameters=parameters,
        preconditioner=diagonal
        and tuple(
            torch.full_like(p, math.inf) if i is None else diagonal[i]
            for i, p in zip(order, parameters, strict=True)
        ),
        roots=edge.roots and _pick(edge.roots, order, None),
        shift=edge.shift and _pick(edge.shift, order, 0.0),
        learned=_pick(edge.learns, order, False),
    )


def _pick(values: Sequence[T], order: Sequence[int | None], absent: T) -> tuple[T, ...]:
    return tuple(absent if i is None else values[i] for i in order)


def split(v: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat (P,) or (P, K) as one tensor per parameter, of its shape or (*shape, K)."""
    pieces = torch.split(v, [p.numel() for p in parameters])
    return [
        piece.reshape(p.shape + v.shape[1:]) for piece, p in zip(pieces, parameters, strict=True)
    ]


def join(pieces: Sequence[Tensor], like: Tensor) -> Tensor:
    """Inverse of `split`, for a vector or block of the shape of `like`."""
    return torch.cat([piece.reshape((-1, *like.shape[1:])) for piece in pieces])


def _gather(g: Tensor, parameters: Sequence[Tensor], order: Sequence[int | None]) -> Tensor:
    pieces = split(g, parameters)
    known = sorted((i, k) for k, i in enumerate(order) if i is not None)
    return torch.cat([pieces[k].reshape(-1) for _, k in known])
