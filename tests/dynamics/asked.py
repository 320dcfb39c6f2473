"""Edges as the tests ask for them: of whichever type, with the attributes that it should have."""

from typing import Any

from optbench import dynamics
from optbench.dynamics import UnknownEdge
from optbench.dynamics.edges import distance as ratio

edge: Any = dynamics.edge
sam_edge: Any = dynamics.sam_edge
norm_edge: Any = dynamics.norm_edge
reordered: Any = dynamics.reordered


def source(asked: Any) -> str:
    """Source of an edge, or "unknown"."""
    return "unknown" if isinstance(asked, UnknownEdge) else str(asked.source)


def distance(asked: Any, measured: float) -> float:
    """Measured over threshold, which must be positive."""
    found = ratio(asked.threshold, measured)
    assert found is not None
    return found
