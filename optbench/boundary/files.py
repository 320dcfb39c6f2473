"""Reading files that anyone may have written.

None can hang the reader, fill the memory, run code or garble a terminal.
"""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from optbench.boundary.regular_files import UnreadableFileError, open_regular
from optbench.errors import printable as printable
from optbench.errors import visible as visible

LARGEST_BYTES = 2**20
DEEPEST = 32  # levels of lists and mappings
LARGEST_INT = 2**63
HARMLESS_DEPTH = 500  # of a YAML: a loader's stack holds twenty times as many
LARGEST_PARTS = 100_000  # of a YAML, its aliases written out


class UnreadableError(ValueError):
    """A file or text holds nothing that can be used; says why, without its path."""


def read_bytes(path: Path, limit: int = LARGEST_BYTES) -> bytes:
    """Return what is in a regular file.

    Raises:
        UnreadableError: If it is none (a folder, link, pipe or device), is larger than the limit,
            or cannot be read.
    """
    try:
        with open_regular(path, links=False) as stream:
            content = stream.read(limit + 1)
    except FileNotFoundError as why:
        raise UnreadableError("missing") from why
    except UnreadableFileError as why:
        raise UnreadableError(why.strerror) from why
    except OSError as why:
        raise UnreadableError(f"cannot be read ({why.strerror})") from why
    except ValueError as why:
        raise UnreadableError("no name that a file can have") from why
    if len(content) > limit:
        raise UnreadableError(f"larger than {limit / 2**20:g} MiB")
    return content


def read_text(path: Path, limit: int = LARGEST_BYTES) -> str:
    """Return a regular file's text.

    Raises:
        UnreadableError: As for `read_bytes`, or if it is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as why:
        raise UnreadableError("not UTF-8") from why


def read_json(path: Path, limit: int = LARGEST_BYTES) -> Any:
    """Return what a JSON file holds; errors as `parse_json`."""
    return parse_json(read_text(path, limit))


def parse_json(text: str) -> Any:
    """Return what a JSON text holds.

    Its numbers are finite, its integers have 64 bits, its strings are Unicode, its depth is
    bounded.

    Raises:
        UnreadableError: If it is no JSON, or holds anything else.
    """
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as why:
        raise UnreadableError(f"damaged JSON ({printable(str(why))[:80]})") from why
    check_plain(content)
    return content


def read_yaml(path: Path, limit: int = LARGEST_BYTES, aliases: bool = False) -> Any:
    """Return what a YAML file holds; a date stays text.

    Args:
        path: The file.
        limit: How large it may be, in bytes.
        aliases: Whether it may have some, as what people write has; written out, they make a small
            file a huge object.

    Raises:
        UnreadableError: If it cannot be read, is no YAML, or holds what JSON could not but for
            infinity.
    """
    text = read_text(path, limit)
    try:
        _check_events(text, aliases)
        content = yaml.load(text, Loader=_Loader)
        if aliases and _size(content, {}) > LARGEST_PARTS:
            raise UnreadableError(f"has more than {LARGEST_PARTS} parts, its aliases written out")
    except UnreadableError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as why:
        raise UnreadableError(f"damaged YAML ({printable(str(why))[:80]})") from why
    check_plain(content, finite=False)
    return content


def _check_events(text: str, aliases: bool) -> None:
    """Refuse aliases where there may be none, and depth, on which the loader in C crashes."""
    indent = max((len(line) - len(line.lstrip(" ")) for line in text.splitlines()), default=0)
    deepest_possible = indent + sum(map(text.count, "[{-?"))
    if deepest_possible < HARMLESS_DEPTH and (aliases or "*" not in text):
        return  # nearly always, and reading the events takes as long as all the rest
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        if depth > DEEPEST:
            raise UnreadableError(f"nested deeper than {DEEPEST} levels")
        if not aliases and isinstance(event, yaml.AliasEvent):
            raise UnreadableError("has aliases")


def _size(node: Any, known: dict[int, float]) -> float:
    """How many parts a node has with all aliases written out; one that holds itself has no end."""
    if not isinstance(node, (dict, list)):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known: what is met again within itself has no end
        known[id(node)] = 1 + sum(
            _size(part, known) for part in (node.values() if isinstance(node, dict) else node)
        )
    return known[id(node)]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the former is ten times as fast
    """Plain YAML without dates, which no JSON has."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def check_plain(content: Any, finite: bool = True, depth: int = 0) -> None:
    """Raise unless data are lists, mappings, text, numbers and null, as JSON can write them again.

    Args:
        content: The data.
        finite: Whether infinity and NaN are refused.
        depth: Levels above the data.

    Raises:
        UnreadableError: With what they hold instead.
    """
    if depth > DEEPEST:
        raise UnreadableError(f"nested deeper than {DEEPEST} levels")
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise UnreadableError(f"a key is {type(key).__name__}, not text")
            _check_scalar(key, finite)
            check_plain(value, finite, depth + 1)
    elif isinstance(content, list):
        for value in content:
            check_plain(value, finite, depth + 1)
    else:
        _check_scalar(content, finite)


def _check_scalar(content: Any, finite: bool) -> None:
    match content:
        case None | bool():
            return
        case str():
            if not content.isascii() and any("\ud800" <= c <= "\udfff" for c in content):
                raise UnreadableError("holds half of a character (a lone surrogate)")
        case float():
            if finite and not math.isfinite(content):
                raise UnreadableError("holds a number that is not finite")
        case int():
            if not -LARGEST_INT <= content < LARGEST_INT:
                raise UnreadableError("holds an integer of more than 64 bits")
        case _:
            raise UnreadableError(f"holds a {type(content).__name__}")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
