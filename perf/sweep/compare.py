"""One case: optbench's product with the Hessian beside differences of torch's own gradient."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import optbench
from optbench.curvature import Hessian
from optbench.errors import UserError
from perf.sweep.subject import Recipe, Subject

STEPS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-2, 1e-1)
"""Steps h of the differences, tried until one is good: small ones for kinks, large for float32."""
GOOD = 1e-8
"""Relative error of the reference at which no other step is tried."""
TRUSTED = 1e-3
"""Relative error of the reference above which it says nothing: w is near a kink."""
FLOOR = 1e-7
"""Relative error that is always allowed; three times the reference's own comes on top."""
SKEW = 1e-9
"""Most that uᵀHv and vᵀHu may differ by, relative to ‖Hu‖ + ‖Hv‖, in double precision."""
SEEDS = 3
"""Subjects tried until one is away from kinks."""


class Verdict(StrEnum):
    """What became of a case; it ends in exactly one."""

    RIGHT = "right"
    REFUSED = "refused"
    TORCH = "torch"
    RAW = "raw"
    WRONG = "WRONG"
    MOVED = "MOVED"
    SKIPPED = "skipped"


BAD = (Verdict.WRONG, Verdict.MOVED, Verdict.RAW)


@dataclass(frozen=True)
class Result:
    """The verdict on a case, and the numbers or the message behind it."""

    verdict: Verdict
    remark: str
    seconds: float = 0.0


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


def compare(recipe: Recipe) -> Result:
    """Judge a case; a subject near a kink gives way to one of another seed."""
    start = time.perf_counter()
    found: Result | None = None
    for seed in range(SEEDS):
        try:
            found = _judged(recipe, seed)
        except ImportError as missing:
            found = Result(Verdict.SKIPPED, _line(missing))
        if found is not None:
            break
    result = found or Result(Verdict.WRONG, "no reference: differences of the gradient do not settle")
    return Result(result.verdict, result.remark, time.perf_counter() - start)


def _judged(recipe: Recipe, seed: int) -> Result | None:
    """The result at one seed; None where the reference does not settle."""
    subject, twin = _made(recipe, seed), _made(recipe, seed)
    u, v = _directions(subject.model)
    images, error, moved = _measured(subject, u, v)
    if moved:
        return Result(Verdict.MOVED, moved + (f"; {_line(error)}" if error else ""))
    reference = Reference(twin)
    if error is not None:
        return _on_error(error, reference, v)
    best = reference.differences(v)
    if best.error > TRUSTED:
        return None
    return _on_products(images, (u, v), best, reference)


def _on_error(error: Exception, reference: Reference, v: Tensor) -> Result:
    torchs = reference.double_backward(v)
    line = _line(error)
    if not _is_clear(error):
        torch_too = "; torch cannot either" if isinstance(torchs, Exception) else "; torch can"
        return Result(Verdict.RAW, f"{type(error).__name__}: {line}{torch_too}")
    return Result(Verdict.TORCH if isinstance(torchs, Exception) else Verdict.REFUSED, line)


def _on_products(
    images: Sequence[Tensor], directions: Sequence[Tensor], best: Differences, reference: Reference
) -> Result:
    (u, v), (image_u, image_v) = directions, images
    off = float((image_v - best.product).norm()) / best.scale
    skew = abs(float(u @ image_v - v @ image_u)) / (float(image_u.norm() + image_v.norm()) + best.scale)
    tolerance = FLOOR + 3 * best.error
    numbers = f"off by {off:.1e}, tolerance {tolerance:.1e} (of it {3 * best.error:.1e} the reference's)"
    if not off <= tolerance:
        torchs = reference.double_backward(v)
        if isinstance(torchs, Exception):
            return Result(Verdict.WRONG, f"{numbers}; torch's own double backward: {_line(torchs)}")
        theirs = float((torchs - best.product).norm()) / best.scale
        return Result(Verdict.WRONG, f"{numbers}; torch's own double backward is off by {theirs:.1e}")
    if not best.slope_error <= FLOOR + 3 * best.slope_doubt:
        return Result(Verdict.WRONG, f"torch's gradient is not the loss's: off by {best.slope_error:.1e}")
    if not skew <= max(SKEW, tolerance if best.error > 1e-6 else 0):
        return Result(Verdict.WRONG, f"not symmetric: uᵀHv and vᵀHu differ by {skew:.1e}")
    return Result(Verdict.RIGHT, numbers)


def _measured(subject: Subject, u: Tensor, v: Tensor) -> tuple[list[Tensor], Exception | None, str]:
    """(H u and H v), the error instead, and what the measurement moved."""
    for p in subject.model.parameters():
        p.grad = torch.randn_like(p)
    seed_all(7)
    before = _state(subject)
    images: list[Tensor] = []
    error: Exception | None = None
    try:
        H = Hessian(subject.model, subject.loss, (subject.inputs, subject.targets))
        images = [H @ u, H @ v]
    except Exception as raised:  # whatever it is: the sweep reports it
        error = raised
    after = _state(subject)
    return images, error, ", ".join(name for name in before if not _same(before[name], after[name]))


class Reference:
    """The loss as torch alone sees it: no line of optbench takes part.

    Random numbers start from seed 1 as in `optbench.curvature.objective`, so that masks are alike.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.weights = [p for p in subject.model.parameters() if p.requires_grad]
        self.start = _flat([p.detach() for p in self.weights])
        self.buffers = [(b, b.detach().clone()) for b in subject.model.buffers()]

    def differences(self, v: Tensor) -> Differences:
        """Differences along the unit vector v at the best of the steps."""
        value, gradient = self.gradient(self.start)
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
            ahead, behind = self.gradient(self.start + step * v), self.gradient(self.start - step * v)
            products.append((ahead[1] - behind[1]) / (2 * step))
            slopes.append((ahead[0] - behind[0]) / (2 * step))
        # Richardson: both are off by c h², so (4 D(h/2) − D(h)) / 3 is off by O(h⁴).
        product, slope = ((4 * d[1] - d[0]) / 3 for d in (products, slopes))
        norm = float(gradient.norm())
        scale = max(float(product.norm()), 1e-6 * norm, 1e-30)
        error = float((product - products[1]).norm()) / scale
        least = max(norm, 1e-30)
        slope_error = abs(float(gradient @ v) - slope) / least
        doubt = abs(slope - slopes[1]) / least + 1e-15 / h / least
        return Differences(product, error if error == error else float("inf"), slope_error, doubt, scale)

    def gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """(L, ∇L) at the weights w."""
        value = self._value(w)
        found = torch.autograd.grad(value, self.weights, allow_unused=True)
        return float(value), _flat(_filled(found, self.weights))

    def double_backward(self, v: Tensor) -> Tensor | Exception:
        """H v by torch's double backward, attention in its differentiable form, or torch's error."""
        try:
            with sdpa_kernel(SDPBackend.MATH):
                slope = torch.autograd.grad(self._value(self.start), self.weights, create_graph=True, allow_unused=True)
                along = _flat(_filled(slope, self.weights)) @ v
                if not along.requires_grad:
                    return torch.zeros_like(v)
                found = torch.autograd.grad(along, self.weights, allow_unused=True)
            return _flat(_filled(found, self.weights))
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


def _made(recipe: Recipe, seed: int) -> Subject:
    seed_all(100 + seed)
    return recipe()


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  models draw from it
    torch.manual_seed(seed)


def _directions(model: nn.Module) -> tuple[Tensor, Tensor]:
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    generator = torch.Generator().manual_seed(3)
    u, v = torch.randn((2, size), generator=generator, dtype=torch.float64)
    return u / u.norm(), v / v.norm()


def _state(subject: Subject) -> dict[str, Any]:
    """Everything that a measurement must leave as it was, by what a reader calls it."""
    model = subject.model
    state: dict[str, Any] = {f"parameter {n}": p.detach().clone() for n, p in model.named_parameters()}
    state |= {f"buffer {n}": b.detach().clone() for n, b in model.named_buffers()}
    state |= {f"grad of {n}": p.grad if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    state |= {f"mode of {n or 'the model'}": m.training for n, m in model.named_modules()}
    state["inputs"], state["targets"] = subject.inputs.clone(), subject.targets.clone()
    state["torch's generator"] = torch.get_rng_state()
    state["NumPy's generator"] = repr(np.random.get_state())  # noqa: NPY002  the state to keep
    state["Python's generator"] = random.getstate()
    state["default dtype"] = torch.get_default_dtype()
    return state


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape == after.shape and before.dtype == after.dtype and _bits_alike(before, after)
    return type(before) is type(after) and bool(before == after)


def _bits_alike(a: Tensor, b: Tensor) -> bool:
    return a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()


def _filled(found: Sequence[Tensor | None], weights: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(weights, found, strict=True)]


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _is_clear(error: Exception) -> bool:
    """Whether the error is one line that optbench itself says."""
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    own = Path(optbench.__file__).parent in where.parents
    return own and isinstance(error, (ValueError, UserError)) and "\n" not in str(error)
