"""Everything from outside is read here: bounded, plain, and held against one declared shape.

Whoever declares a shape can use its values without another check.
"""

from optbench.boundary.files import (
    UnreadableError,
    parse_json,
    printable,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
    visible,
)
from optbench.boundary.shape import LAX, STRICT, ShapeError, complain, shaped, shaped_text
from optbench.boundary.text import Name, Plain, Text

__all__ = [
    "LAX",
    "STRICT",
    "Name",
    "Plain",
    "ShapeError",
    "Text",
    "UnreadableError",
    "complain",
    "parse_json",
    "printable",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
    "shaped",
    "shaped_text",
    "visible",
]
