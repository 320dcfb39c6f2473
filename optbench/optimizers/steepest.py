"""Steepest descent in the max norm or the spectral norm."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench.errors import UserError
from optbench.optimizers import evaluate
from optbench.optimizers.norms import lmo

Norm = Literal["linf", "spectral"]


class SteepestDescent(Optimizer):
    """w_l ← w_l − η (Σ_k ‖g_k‖_*) s_l, s_l = argmax ⟨g_l, s⟩ over ‖s‖ ≤ 1, for every tensor l.

    `linf`: s = sign g, ‖g‖_* = ‖g‖₁. `spectral`: s = UVᵀ of g = UΣVᵀ, ‖g‖_* = tr Σ, exactly, by an
    SVD; a vector is a column, a convolution the matrix (first, rest). `normalised` leaves the
    factor Σ‖g_k‖_* out: sign descent, and Muon without momentum.

    Args:
        params: Parameters, one group.
        lr: Learning rate η.
        norm: Norm in which the descent is steepest: `linf` or `spectral`.
        normalised: Whether steps have one size whatever the gradient's.

    References:
        Islamov et al. (2026), arXiv:2603.05002.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        norm: Norm = "linf",
        normalised: bool = False,
    ) -> None:
        if norm not in ("linf", "spectral"):
            raise UserError(f"optimizer.norm must be linf or spectral, got {norm}")
        super().__init__(params, {"lr": lr, "norm": norm, "normalised": normalised})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step, after one evaluation of the closure if there is one."""
        loss = evaluate(closure)
        for group in self.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            steps = [lmo(p.grad, group["norm"]) for p in held]
            size: float | Tensor = group["lr"]
            if not group["normalised"] and held:
                size = (
                    size
                    * torch.stack(
                        [(p.grad * s).sum() for p, s in zip(held, steps, strict=True)]
                    ).sum()
                )
            for p, s in zip(held, steps, strict=True):
                p.sub_(s * size)
        return loss
