"""Kinds of numbers that keys and arguments have, and what each expects in plain words.

Put them into a signature, as in `def mine(seed: int, noise: NotNegative = 0.0, sizes:
Sequence[Size] = (64,))`: the command line is held against it before anything is built.
"""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""What 64 bits hold."""
Count = Annotated[int, Field(ge=1, lt=2**63)]
CountFromZero = Annotated[int, Field(ge=0, lt=2**63)]
Several = Annotated[int, Field(ge=2, lt=2**63)]
"""Of what a spread is estimated from."""
Pairs = Annotated[int, Field(ge=1, le=500)]
"""Of eigenvalues with their vectors, each as long as the model."""
Size = Annotated[int, Field(ge=1, le=2**20)]
"""Of a side of an array: a slip of three zeros is told, not tried."""
Depth = Annotated[int, Field(ge=1, le=1000)]
"""Parts that are built one after the other."""
Device = Annotated[
    str,
    Field(
        pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$",
        description="auto, cpu, cuda, cuda:NUMBER or mps",
    ),
]

BEYOND_WORDS = 2**53  # a bound as large is the machine's, and says nothing to the reader


def expected(kind: Any) -> str:
    """Return what a type expects, such as `a whole number, at least 1, or full`.

    Empty if that cannot be said.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        return _say(adapter.json_schema())
    except Exception:  # pydantic has many errors for types that JSON has no schema for
        return ""


def _say(schema: dict[str, Any]) -> str:
    if "description" in schema:
        return str(schema["description"])
    if "anyOf" in schema:
        return _either([_say(part) for part in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return _either([str(value) for value in schema.get("enum", [schema.get("const")])])
    match schema.get("type"):
        case "array":
            return _say_list(schema)
        case "integer":
            return "a whole number" + _range(schema)
        case "number":
            return "a finite number" + _range(schema)
        case other:
            names = {
                "boolean": "true or false",
                "null": "null",
                "string": "text",
                "object": "a mapping",
            }
            return names.get(str(other), "something else")


def _say_list(schema: dict[str, Any]) -> str:
    if "prefixItems" in schema:
        return "a list of " + " and ".join(_say(part) for part in schema["prefixItems"])
    return "a list" + (f" (each {_say(schema['items'])})" if schema.get("items") else "")


def _range(schema: dict[str, Any]) -> str:
    words = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "exclusiveMaximum": "below",
        "maximum": "at most",
    }
    bounds = [
        f"{word} {schema[key]:.10g}"
        for key, word in words.items()
        if abs(schema.get(key, 2**63)) < BEYOND_WORDS
    ]
    return ", " + " and ".join(bounds) if bounds else ""


def _either(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
