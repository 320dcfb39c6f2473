"""Dynamics of training: the edge of stability of every optimizer, and what happens there.

Names are loaded on first use, so that `optbench.dynamics.events` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optbench.dynamics.dispatch import edge
    from optbench.dynamics.edges import (
        Edge,
        EigenvalueEdge,
        GradientEdge,
        NormBallEdge,
        UnknownEdge,
        described,
        reordered,
    )
    from optbench.dynamics.norm_step import NormStep, norm_edge
    from optbench.dynamics.rules.sam import sam_edge
    from optbench.dynamics.settling import unsettled
    from optbench.dynamics.update_rule import Term, combine, unknown

__all__ = [
    "Edge",
    "EigenvalueEdge",
    "GradientEdge",
    "NormBallEdge",
    "NormStep",
    "Term",
    "UnknownEdge",
    "combine",
    "described",
    "edge",
    "norm_edge",
    "reordered",
    "sam_edge",
    "unknown",
    "unsettled",
]

_HOME = {
    "edge": "dispatch",
    "Edge": "edges",
    "EigenvalueEdge": "edges",
    "GradientEdge": "edges",
    "NormBallEdge": "edges",
    "UnknownEdge": "edges",
    "described": "edges",
    "reordered": "edges",
    "NormStep": "norm_step",
    "norm_edge": "norm_step",
    "sam_edge": "rules.sam",
    "Term": "update_rule",
    "combine": "update_rule",
    "unknown": "update_rule",
    "unsettled": "settling",
}


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: see __all__")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
