"""Search spaces: the `search` of an optimizer's YAML, over which it may be tuned.

Keys are paths below `optimizer`, so that a point of the space is a list of ordinary overrides, such as
`optimizer.lr=0.02 optimizer.betas.0=0.95`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from optbench.errors import UserError, nearest


class Dimension(Protocol):
    """One axis of a search space."""

    def at(self, u: float) -> Any:
        """Return the value at the share u of the axis, u in [0, 1]."""


def _linear(low: float, high: float, u: float) -> float:
    return (1 - u) * low + u * high


def _log(low: float, high: float, u: float) -> float:
    return math.exp(_linear(math.log(low), math.log(high), u))


def _one_minus_log(low: float, high: float, u: float) -> float:
    return 1 - _log(1 - low, 1 - high, u)


SCALES: dict[str, Callable[[float, float, float], float]] = {
    "linear": _linear,
    "log": _log,
    "one_minus_log": _one_minus_log,
}


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, uniform in x (`linear`), log x (`log`) or log(1 − x) (`one_minus_log`)."""

    low: float
    high: float
    scale: str

    def at(self, u: float) -> float:
        """Return the value at the share u, `low` at 0 and `high` at 1, never beyond."""
        return min(max(SCALES[self.scale](self.low, self.high, _share(u)), self.low), self.high)


@dataclass(frozen=True)
class Choices:
    """One of a few values, each as likely."""

    choices: tuple[Any, ...]

    def at(self, u: float) -> Any:
        """Return the value at the share u: the ⌊nu⌋-th of n, the last one at 1."""
        return self.choices[min(int(_share(u) * len(self.choices)), len(self.choices) - 1)]


def read(node: Mapping[Any, Any] | None) -> dict[str, Dimension]:
    """Return the dimensions that a `search` node describes, by path below `optimizer`; none for no node.

    Raises:
        UserError: If one is neither {low, high, scale} nor {choices}, or its numbers fit no such axis.
    """
    return {str(key): _dimension(str(key), value) for key, value in (node or {}).items()}


def _dimension(key: str, node: Any) -> Dimension:
    if not isinstance(node, Mapping) or node.keys() not in ({"low", "high", "scale"}, {"choices"}):
        raise UserError(f"search.{key} must be {{low, high, scale}} or {{choices}}, got {node}")
    if "choices" in node:
        if not node["choices"]:
            raise UserError(f"search.{key}.choices is empty: give the values to choose from")
        return Choices(tuple(node["choices"]))
    scale = str(node["scale"])
    if scale not in SCALES:
        raise UserError(f"search.{key}.scale must be one of {', '.join(SCALES)}, got {scale}.{nearest(scale, SCALES)}")
    try:
        low, high = float(node["low"]), float(node["high"])
    except (TypeError, ValueError):
        raise UserError(f"search.{key} must have numbers for low and high, got {dict(node)}") from None
    outside = (scale == "log" and low <= 0) or (scale == "one_minus_log" and high >= 1)
    if outside or not low < high < math.inf:
        bound = {"log": ", above 0", "one_minus_log": ", below 1"}.get(scale, "")
        raise UserError(f"search.{key} must have low < high{bound}, got low={low:g} and high={high:g}")
    return Range(low, high, scale)


def _share(u: float) -> float:
    if not 0 <= u <= 1:
        raise ValueError(f"u must be between 0 and 1, got {u}")
    return u
