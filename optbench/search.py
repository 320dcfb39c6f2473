"""Search spaces: the `search` of an optimizer's YAML, over which it may be tuned.

Keys are paths below `optimizer`, so that a point of the space is a list of ordinary overrides, such
as `optimizer.lr=0.02 optimizer.betas.0=0.95`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, ConfigDict, Field

from optbench.boundary import STRICT, printable, shaped
from optbench.errors import UserError


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


def _number(value: Any) -> Any:
    """YAML takes 1e-4 for a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Number = Annotated[float, BeforeValidator(_number)]
Choice = bool | int | float | Annotated[str, Field(max_length=255)] | None


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, uniform in x, log x or log(1 − x) by `scale`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    low: Number
    high: Number
    scale: Literal["linear", "log", "one_minus_log"]

    def at(self, u: float) -> float:
        """Return the value at the share u, `low` at 0 and `high` at 1, never beyond."""
        return min(max(SCALES[self.scale](self.low, self.high, _share(u)), self.low), self.high)


@dataclass(frozen=True)
class Choices:
    """One of a few values, each as likely."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    choices: Annotated[tuple[Choice, ...], Field(min_length=1, max_length=1000)]

    def at(self, u: float) -> Any:
        """Return the value at the share u: the ⌊nu⌋-th of n, the last one at 1."""
        return self.choices[min(int(_share(u) * len(self.choices)), len(self.choices) - 1)]


def read(node: Mapping[Any, Any] | None) -> dict[str, Dimension]:
    """Return the dimensions of a `search` node, by path below `optimizer`; none for no node.

    Raises:
        UserError: If one is neither {low, high, scale} nor {choices}, or its numbers fit no such
            axis.
    """
    if node is not None and not isinstance(node, Mapping):
        raise UserError(
            f"search must be a mapping, a line an axis, got {printable(repr(node))[:80]}"
        )
    return {str(key): _dimension(printable(str(key)), value) for key, value in (node or {}).items()}


def _dimension(key: str, node: Any) -> Dimension:
    if not isinstance(node, Mapping) or not node.keys() & {"low", "high", "scale", "choices"}:
        said = printable(repr(node))[:80]
        raise UserError(f"search.{key} must be {{low, high, scale}} or {{choices}}, got {said}")
    if "choices" in node:
        return shaped(Choices, _plain(node), prefix=f"search.{key}.")
    axis = shaped(Range, _plain(node), prefix=f"search.{key}.")
    _check(key, axis)
    return axis


def _check(key: str, axis: Range) -> None:
    outside = (axis.scale == "log" and axis.low <= 0) or (
        axis.scale == "one_minus_log" and axis.high >= 1
    )
    if outside or not axis.low < axis.high:
        bound = {"log": ", above 0", "one_minus_log": ", below 1"}.get(axis.scale, "")
        raise UserError(
            f"search.{key} must have low < high{bound}, got low={axis.low:g} and high={axis.high:g}"
        )


def _plain(node: Any) -> Any:
    """A configuration's own mappings and lists as Python's."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_plain(value) for value in node]
    return node if isinstance(node, bool | int | float | str | None) else str(node)


def _share(u: float) -> float:
    if not 0 <= u <= 1:
        raise ValueError(f"u must be between 0 and 1, got {u}")
    return u
