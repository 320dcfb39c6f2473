"""torch's L-BFGS for weights in any memory format."""

from __future__ import annotations

import torch
from torch import Tensor


class LBFGS(torch.optim.LBFGS):
    """torch's own, whose flat gradient is a `view`, which channels_last weights have none of.

    The same numbers otherwise. Liu & Nocedal (1989), doi.org/10.1007/BF01589116.
    """

    def _gather_flat_grad(self) -> Tensor:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        return torch.cat(
            [(part.to_dense() if part.is_sparse else part).reshape(-1) for part in parts]
        )
