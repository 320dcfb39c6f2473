"""Declared shapes: pydantic's types, with its refusals as one line.

The line says key, value and what is expected.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from optbench.boundary.files import printable
from optbench.errors import UserError, nearest

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""What is declared and nothing else: text is no number, and a number no yes."""
LAX = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
"""The same, but with what is not declared left out: for files that later versions may add to."""

LONGEST_VALUE = 80
T = TypeVar("T")


class ShapeError(UserError, ValueError):
    """Data from outside do not fit; the line says key, value and what is expected."""


def shaped(kind: type[T], content: Any, where: str = "", prefix: str = "") -> T:
    """Return plain data, as JSON or YAML give them, as an object of a declared kind.

    Args:
        kind: The shape: a pydantic model or dataclass, or any type that has annotations.
        content: The data; lists serve as tuples.
        where: Names their source in the message, such as the file.
        prefix: Prefix of every key in the message, such as `optimizer.`.

    Raises:
        ShapeError: If they do not fit.
    """
    # not as Python objects: there a list is no tuple
    return shaped_text(kind, json.dumps(content), where, prefix)


def shaped_text(kind: type[T], text: str, where: str = "", prefix: str = "") -> T:
    """Return a JSON text as an object of a declared kind, in one pass.

    It is for long texts, all of whose parts are declared.

    What a shape leaves open (`Any`) is `Plain` there. Args and errors are those of `shaped`.
    """
    adapter = _adapter(cast(Any, kind))
    try:
        return cast(T, adapter.validate_json(text))
    except ValidationError as why:
        raise ShapeError(complain(why, where, prefix, _names(adapter))) from None


@lru_cache(maxsize=256)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@lru_cache(maxsize=256)
def _names(adapter: TypeAdapter[Any]) -> set[str]:
    """All keys that the shape and its parts declare."""
    names: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            names.update(
                node.get("properties", ()) if isinstance(node.get("properties"), dict) else ()
            )
            for part in node.values():
                walk(part)

    walk(adapter.json_schema())
    return names


def shortened(text: str) -> str:
    """A value in a message, not too long."""
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"


def complain(
    error: ValidationError, where: str = "", prefix: str = "", known: Iterable[str] = ()
) -> str:
    """Return pydantic's first refusal in a line: `KEY must be EXPECTED, got VALUE, in WHERE`."""
    errors = error.errors(include_url=False)
    first = errors[0]
    if (
        first["loc"] and first["loc"][-1] in ("int", "constrained-int") and len(errors) > 1
    ):  # neither of `int | float`: say what is wrong as a float
        first = errors[1]
        first["loc"] = first["loc"][:-1]
    key = prefix + ".".join(str(part) for part in first["loc"])
    source = f", in {where}" if where else ""
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"there is no key {printable(key)}{source}.{nearest(str(first['loc'][-1]), known)}"
    if first["type"] == "json_invalid":
        return f"damaged JSON ({printable(first['ctx']['error'])[:80]}){source}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{printable(key)} is missing{source}"
    value = shortened(printable(repr(first["input"])))
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{printable(key) or 'it'} must be {expected}, got {value}{source}"
