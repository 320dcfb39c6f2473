"""One case: optbench's product with the Hessian beside differences of torch's own gradient."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor, nn

import optbench
from optbench.curvature import Hessian, SecondDerivativeWarning
from optbench.errors import UserError
from perf.sweep.reference import NOTHING, Differences, Reference, flat, seed_all
from perf.sweep.state import same, state_of
from perf.sweep.subject import Recipe, Subject

TRUSTED = 1e-3
"""Relative error of the reference above which it says nothing: w is near a kink."""
FLOOR = 1e-7
"""Relative error that is always allowed; three times the reference's own comes on top."""
SKEW = 1e-9
"""Most that uᵀHv and vᵀHu may differ by, relative to ‖Hu‖ + ‖Hv‖, in double precision."""
SEEDS = 3
"""Subjects tried until one is away from kinks."""


class Verdict(StrEnum):
    """What became of a case; it ends in exactly one.

    "said": products are not the differences of the gradient, and a SecondDerivativeWarning says so.
    """

    RIGHT = "right"
    REFUSED = "refused"
    TORCH = "torch"
    SAID = "said"
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


def compare(recipe: Recipe) -> Result:
    """Judge a case; a subject near a kink gives way to one of another seed."""
    start = time.perf_counter()
    found: Result | None = None
    for seed in range(SEEDS):
        try:
            found = _judged(recipe, seed)
        except ModuleNotFoundError as missing:
            found = Result(Verdict.SKIPPED, _line(missing))
        except (
            Exception
        ) as failed:  # of the recipe or the reference: one case must not end the sweep
            found = Result(Verdict.WRONG, f"no reference, {type(failed).__name__}: {_line(failed)}")
        if found is not None:
            break
    result = found or Result(
        Verdict.WRONG, "no reference: differences of the gradient do not settle"
    )
    return Result(result.verdict, result.remark, time.perf_counter() - start)


def _judged(recipe: Recipe, seed: int) -> Result | None:
    """The result at one seed; None where the reference does not settle."""
    subject, twin = _made(recipe, seed), _made(recipe, seed)
    u, v = _directions(subject.model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SecondDerivativeWarning)
        images, error, moved = _measured(subject, u, v)
    said = [w for w in caught if issubclass(w.category, SecondDerivativeWarning)]
    if moved:
        return Result(Verdict.MOVED, moved + (f"; {_line(error)}" if error else ""))
    reference = Reference(twin)
    if error is not None:
        return _on_error(error, reference, v)
    best = reference.differences(v)
    if best.error > TRUSTED or best.scale == NOTHING:
        return None
    found = _on_products(images, (u, v), best, reference)
    if said and found.verdict is Verdict.WRONG:
        return Result(Verdict.SAID, f"{found.remark}; {_line(said[0].message)}")
    return found


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
    skew = abs(float(u @ image_v - v @ image_u)) / (
        float(image_u.norm() + image_v.norm()) + best.scale
    )
    tolerance = FLOOR + 3 * best.error
    numbers = (
        f"off by {off:.1e}, tolerance {tolerance:.1e} (of it {3 * best.error:.1e} the reference's)"
    )
    if not off <= tolerance:
        torchs = reference.double_backward(v)
        if isinstance(torchs, Exception):
            return Result(Verdict.WRONG, f"{numbers}; torch's own double backward: {_line(torchs)}")
        theirs = float((torchs - best.product).norm()) / best.scale
        return Result(
            Verdict.WRONG, f"{numbers}; torch's own double backward is off by {theirs:.1e}"
        )
    if not best.slope_error <= FLOOR + 3 * best.slope_doubt:
        return Result(
            Verdict.WRONG, f"torch's gradient is not the loss's: off by {best.slope_error:.1e}"
        )
    if not skew <= max(SKEW, tolerance if best.error > 1e-6 else 0):
        return Result(Verdict.WRONG, f"not symmetric: uᵀHv and vᵀHu differ by {skew:.1e}")
    return Result(Verdict.RIGHT, numbers)


def _measured(subject: Subject, u: Tensor, v: Tensor) -> tuple[list[Tensor], Exception | None, str]:
    """(H u and H v), the error instead, and what the measurement moved."""
    for p in subject.model.parameters():
        p.grad = torch.randn_like(p)
    seed_all(7)
    before = state_of(subject)
    images: list[Tensor] = []
    error: Exception | None = None
    try:
        H = Hessian(subject.model, subject.loss, (subject.inputs, subject.targets))
        images = [H @ u, H @ v]
    except Exception as raised:  # whatever it is: the sweep reports it
        error = raised
    after = state_of(subject)
    return images, error, ", ".join(name for name in before if not same(before[name], after[name]))


def _made(recipe: Recipe, seed: int) -> Subject:
    seed_all(100 + seed)
    return recipe()


def _directions(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Random unit vectors, zero where training never moves: in the padding rows of embeddings."""
    trained = [p for p in model.parameters() if p.requires_grad]
    padded = {
        id(m.weight): m.padding_idx
        for m in model.modules()
        if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.padding_idx is not None
    }
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(2):
        parts = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in trained]
        for p, part in zip(trained, parts, strict=True):
            if id(p) in padded:
                part[padded[id(p)]] = 0
        rows.append(flat(parts))
    return rows[0] / rows[0].norm(), rows[1] / rows[1].norm()


def _line(error: BaseException | Warning | str) -> str:
    return " ".join(str(error).split())[:300]


def _is_clear(error: Exception) -> bool:
    """Whether the error is one line that optbench itself says."""
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    own = Path(optbench.__file__).parent in where.parents
    return own and isinstance(error, (ValueError, UserError)) and "\n" not in str(error)
