"""The code that a configuration names, as hashes.

A result stands for its command only while the code is the same.

For code of the user's own it is a SHA-256 over the module of each `_target_` and all modules of the
user's own that these import, wherever in them. What counts is the syntax tree without docstrings:
comments, spaces and blank lines change nothing. For installed packages, and optbench itself, it is
name and version. Files that code reads, and modules that it imports by a name made at run time, are
not seen.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder, all_suffixes
from pathlib import Path
from typing import Any

OUR_OWN = "optbench"
MISSING = "missing"
MOST_MODULES = 1000  # of one target


@dataclass(frozen=True)
class _Place:
    """The file of a module and the places of its submodules.

    A folder without an `__init__.py` has no file.
    """

    file: Path | None
    folders: tuple[Path, ...]


def targets(node: Any) -> set[str]:
    """Return every `_target_` in a configuration."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        return ({target} if isinstance(target, str) else set()).union(
            *(targets(value) for value in node.values())
        )
    if isinstance(node, list):
        return set().union(*(targets(value) for value in node))
    return set()


def sources(config: Any) -> dict[str, str]:
    """Return the hash or the version of the code of each `_target_`, as it is on disk now."""
    return {target: source(target) for target in sorted(targets(config))}


def source(target: str) -> str:
    """Return the hash of a user's code, `package version` of installed code, or `missing`."""
    top = target.partition(".")[0]
    located = _module(target)
    if top in sys.stdlib_module_names:
        return f"{top} {_version(top)}"
    if located is None:
        return MISSING
    name, place = located
    if not _is_users(name, place):
        return f"{top} {_version(top)}"
    digest = hashlib.sha256()
    for module, content in sorted(_closure(name).items()):
        digest.update(f"{module}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def changed_code(then: Any, now: Mapping[str, str]) -> str:
    """Return in words which target has other code now; empty if none has, or if that is not known.

    Another version of an installed package is none: that is for `versions` to say.
    """
    known = then if isinstance(then, Mapping) else {}
    for target, value in now.items():
        before = str(known.get(target, MISSING))
        if before not in (value, MISSING) and (is_hash(before) or is_hash(value)):
            hashes = f"source hash {before[:12]} then, {value[:12]} now"
            return f"the code of {target} has changed since ({hashes})"
    return ""


def is_hash(value: str) -> bool:
    """Whether a source is the hash of a user's code."""
    return len(value) == 64 and " " not in value


def _closure(name: str) -> dict[str, bytes]:
    """Return what counts of a user's module, and of all user's modules that it imports."""
    contents: dict[str, bytes] = {}
    waiting = [name]
    while waiting and len(contents) < MOST_MODULES:
        module = waiting.pop()
        place = _find(module)
        if module in contents or place is None or not _is_users(module, place):
            continue
        content, imported = _read(module, place)
        contents[module] = content
        waiting += imported
        # a package's own code runs first
        waiting += [module.rpartition(".")[0]] if "." in module else []
    return contents


def _read(module: str, place: _Place) -> tuple[bytes, list[str]]:
    """Return what counts of a module, and the names that it imports."""
    if place.file is None:
        return b"", []
    try:
        content = place.file.read_bytes()
    except OSError:
        return MISSING.encode(), []
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # compiled code
        return content, []
    package = module if place.folders else module.rpartition(".")[0]
    return "".join(_pieces(tree)).encode(errors="surrogatepass"), list(_imports(tree, package))


def _pieces(node: Any) -> Iterator[str]:
    """A syntax tree as text, without docstrings and empty fields, which Python versions vary."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if value is None and not isinstance(node, ast.Constant):
                continue
            if value != [] and name not in ("kind", "type_comment"):
                yield f" {name}="
                yield from _pieces(_without_docstring(node, value) if name == "body" else value)
        yield ")"
    elif isinstance(node, list):
        for item in node:
            yield from _pieces(item)
            yield ","
    else:
        yield f"{type(node).__name__}:{node!r}"


def _without_docstring(node: ast.AST, body: Any) -> Any:
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = isinstance(node, holders) and ast.get_docstring(node, clean=False) is not None
    return body[1:] if documented else body


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _module(target: str) -> tuple[str, _Place] | None:
    """Return the module that holds a dotted name."""
    parts = target.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if (place := _find(name)) is not None:
            return name, place
    return None


def _find(name: str) -> _Place | None:
    """Find a module where an import would, but run nothing: not even the packages that it is in."""
    first, *rest = name.split(".")
    if not first.isidentifier():
        return None
    place = _find_in(first, (Path.cwd(), *map(Path, sys.path))) or _find_by_finders(first)
    for part in rest:
        place = _find_in(part, place.folders) if place is not None else None
    return place


def _find_in(name: str, folders: tuple[Path, ...]) -> _Place | None:
    if not name.isidentifier():
        return None
    for folder in folders:
        for file in (folder / name / "__init__", folder / name):
            for suffix in all_suffixes():
                if (candidate := file.with_name(file.name + suffix)).is_file():
                    return _Place(candidate, (candidate.parent,) if file.name == "__init__" else ())
    without_init = tuple(folder / name for folder in folders if (folder / name).is_dir())
    return _Place(None, without_init) if without_init else None


def _find_by_finders(name: str) -> _Place | None:
    """Ask the finders beside Python's own: a package installed to be edited may have one."""
    for finder in sys.meta_path:
        if finder in (BuiltinImporter, FrozenImporter, PathFinder):
            continue
        if (spec := finder.find_spec(name, None)) is not None:
            file = Path(spec.origin) if spec.has_location and spec.origin else None
            return _Place(file, tuple(map(Path, spec.submodule_search_locations or ())))
    return None


def _is_users(name: str, place: _Place) -> bool:
    top = name.partition(".")[0]
    if top == OUR_OWN or top in sys.stdlib_module_names:
        return False
    return not any(_is_installed(path) for path in ([place.file] if place.file else place.folders))


def _is_installed(path: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    homes = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(
        path.is_relative_to(home) or path.resolve().is_relative_to(Path(home).resolve())
        for home in homes
    )


@lru_cache
def _version(package: str) -> str:
    if package in sys.stdlib_module_names:
        return ".".join(str(part) for part in sys.version_info[:3])
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        owners = metadata.packages_distributions().get(package, ())
        return metadata.version(owners[0]) if owners else "unknown"
