"""Edges as the tests ask for them: of whichever type, with the attributes that it should have."""

from typing import Any

from optbench import dynamics

edge: Any = dynamics.edge
sam_edge: Any = dynamics.sam_edge
norm_edge: Any = dynamics.norm_edge
reordered: Any = dynamics.reordered


def source(asked: Any) -> str:
    """Source of an edge, or "unknown"."""
    return str(asked.source)


def distance(asked: Any, measured: float) -> float:
    """Measured over threshold, which must be positive."""
    ratio = asked.distance(measured)
    assert ratio is not None
    return float(ratio)
