"""Gradients of a subject by torch alone, and their central differences."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from perf.sweep.subject import Subject

STEPS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-2, 1e-1)
"""Steps h of the differences, tried until one is good: small ones for kinks, large for float32."""
GOOD = 1e-8
"""Relative error of the reference at which no other step is tried."""
NOTHING = 1e-30
"""Size below which a gradient is none: nothing would be compared."""


@dataclass(frozen=True)
class Differences:
    """Derivatives by central differences, with an estimate of their relative error.

    Attributes:
        product: H v from gradients, shape (P,).
        error: Relative error of `product`.
        slope_error: |vᵀ∇L − dL(w + hv)/dh| / ‖∇L‖: whether torch's gradient is that of the loss.
        slope_doubt: The same of the difference itself.
        scale: What errors are relative to: ‖H v‖, or 10⁻⁶ ‖∇L‖ where that is more.
    """

    product: Tensor
    error: float
    slope_error: float
    slope_doubt: float
    scale: float


class Reference:
    """The loss as torch alone sees it: no line of optbench takes part.

    Random numbers start from seed 1 as in `optbench.curvature.chunk_loss`, so that masks are
    alike.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.weights = [p for p in subject.model.parameters() if p.requires_grad]
        self.start = flat([p.detach() for p in self.weights])
        self.buffers = [(b, b.detach().clone()) for b in subject.model.buffers()]

    def differences(self, v: Tensor) -> Differences:
        """Differences along the unit vector v at the best of the steps."""
        _, gradient = self.gradient(self.start)
        best: Differences | None = None
        for h in STEPS:
            found = self._at_step(v, h, gradient)
            best = found if best is None or not best.error <= found.error else best
            if best.error <= GOOD:
                break
        assert best is not None
        return best

    def _at_step(self, v: Tensor, h: float, gradient: Tensor) -> Differences:
        products, slopes = [], []
        for step in (h, h / 2):
            ahead, behind = (
                self.gradient(self.start + step * v),
                self.gradient(self.start - step * v),
            )
            products.append((ahead[1] - behind[1]) / (2 * step))
            slopes.append((ahead[0] - behind[0]) / (2 * step))
        # Richardson: both are off by c h², so (4 D(h/2) − D(h)) / 3 is off by O(h⁴).
        product, slope = (4 * products[1] - products[0]) / 3, (4 * slopes[1] - slopes[0]) / 3
        norm = float(gradient.norm())
        scale = max(float(product.norm()), 1e-6 * norm, NOTHING)
        error = float((product - products[1]).norm()) / scale
        least = max(norm, NOTHING)
        slope_error = abs(float(gradient @ v) - slope) / least
        doubt = abs(slope - slopes[1]) / least + 1e-15 / h / least
        return Differences(
            product, error if error == error else float("inf"), slope_error, doubt, scale
        )

    def gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """(L, ∇L) at the weights w."""
        value = self._value(w)
        found = torch.autograd.grad(value, self.weights, allow_unused=True)
        return float(value.detach()), flat(_filled(found, self.weights))

    def double_backward(self, v: Tensor) -> Tensor | Exception:
        """H v by torch's double backward, attention in its differentiable form, or torch's error."""
        try:
            with sdpa_kernel(SDPBackend.MATH):
                slope = torch.autograd.grad(
                    self._value(self.start), self.weights, create_graph=True, allow_unused=True
                )
                along = flat(_filled(slope, self.weights)) @ v
                if not along.requires_grad:
                    return torch.zeros_like(v)
                found = torch.autograd.grad(along, self.weights, allow_unused=True)
            return flat(_filled(found, self.weights))
        except Exception as raised:  # the subject of the case: torch's own limits
            return raised

    def _value(self, w: Tensor) -> Tensor:
        pieces = torch.split(w, [p.numel() for p in self.weights])
        with torch.no_grad():
            for p, piece in zip(self.weights, pieces, strict=True):
                p.copy_(piece.view(p.shape))
            for buffer, kept in self.buffers:
                buffer.copy_(kept)
        seed_all(1)
        return self.subject.loss(self.subject.model(self.subject.inputs), self.subject.targets)


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  models draw from it
    torch.manual_seed(seed)


def _filled(found: Sequence[Tensor | None], weights: Sequence[Tensor]) -> list[Tensor]:
    return [
        torch.zeros_like(p) if g is None else g.to_dense()
        for p, g in zip(weights, found, strict=True)
    ]


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Tensors end to end, as one vector."""
    return torch.cat([part.reshape(-1) for part in parts])
