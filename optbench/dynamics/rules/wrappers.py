"""Optimizers that hand every update to another one, unchanged: the edge is that one's."""

from __future__ import annotations

from typing import Any

from optbench.dynamics.dispatch import by_name, edge
from optbench.dynamics.edges import Edge


@by_name("accelerate.optimizer.AcceleratedOptimizer", understood=None)
def _accelerated(optimizer: Any) -> Edge:
    """Accelerate places, scales and accumulates gradients; the step is the wrapped optimizer's."""
    return edge(optimizer.optimizer)
