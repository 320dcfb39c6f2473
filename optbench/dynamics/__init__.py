"""Dynamics of training: the edge of stability of every optimizer, and what happens there.

Names are loaded on first use, so that `optbench.dynamics.events` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optbench.dynamics.dispatch import edge
    from optbench.dynamics.geometric import NormStep, norm_edge, sam_edge
    from optbench.dynamics.settling import unsettled
    from optbench.dynamics.stability import Edge
    from optbench.dynamics.terms import Term, combine, unknown

__all__ = ["Edge", "NormStep", "Term", "combine", "edge", "norm_edge", "sam_edge", "unknown", "unsettled"]

_HOME = {
    "edge": "dispatch",
    "NormStep": "geometric",
    "norm_edge": "geometric",
    "sam_edge": "geometric",
    "Edge": "stability",
    "Term": "terms",
    "combine": "terms",
    "unknown": "terms",
    "unsettled": "settling",
}


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: see __all__")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
