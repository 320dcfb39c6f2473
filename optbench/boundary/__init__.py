"""Where everything that comes from outside is read: files bounded and plain, then held against one declared shape.

Whoever declares a shape here can use its values without a check of its own.
"""

from optbench.boundary.files import UnreadableError, parse_json, printable, read_json, read_text, read_yaml
from optbench.boundary.shape import LAX, STRICT, ShapeError, complain, shaped

__all__ = [
    "LAX",
    "STRICT",
    "ShapeError",
    "UnreadableError",
    "complain",
    "parse_json",
    "printable",
    "read_json",
    "read_text",
    "read_yaml",
    "shaped",
]
