"""Kinds of values that many shapes share: printable text, names for paths, plain data."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from optbench.boundary.files import check_plain


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("text without control characters")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"\w[\w-]*", text):
        raise ValueError("a name of letters, digits, _ and -")
    return text


def _plain(content: Any) -> Any:
    check_plain(content)
    return content


Text = Annotated[str, Field(max_length=255), AfterValidator(_printable)]
"""A short text that can be shown as it is."""
Name = Annotated[str, Field(max_length=100), AfterValidator(_name)]
"""A name that can be a part of a path: it leads nowhere else."""
Plain = Annotated[Any, AfterValidator(_plain)]
"""Whatever JSON can hold: finite, of 64 bits, not deep."""
