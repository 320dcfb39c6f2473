"""What code a configuration names, as hashes: a result stands for its command only while the code is the same.

For code of the user's own it is a SHA-256 over the module of each `_target_` and all modules of the user's own that
these import, wherever in them. What counts is the syntax tree without docstrings: comments, spaces and blank lines
change nothing. For installed packages, and optbench itself, it is name and version. Files that code reads, and modules
that it imports by a name made at run time, are not seen.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

OUR_OWN = "optbench"
MISSING = "missing"
MOST_MODULES = 1000  # of one target


def targets(node: Any) -> set[str]:
    """Return every `_target_` in a configuration."""
    if isinstance(node, Mapping):
        own = node.get("_target_")
        return ({own} if isinstance(own, str) else set()).union(*(targets(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(targets(value) for value in node))
    return set()


def sources(config: Any) -> dict[str, str]:
    """Return, of each `_target_` in a configuration, the hash or the version of its code as it is on disk now."""
    return {target: source(target) for target in sorted(targets(config))}


def source(target: str) -> str:
    """Return a target's hash if it is the user's own code, `package version` if it is installed, or `missing`."""
    found = _module(target)
    if found is None:
        return MISSING
    name, spec = found
    top = name.partition(".")[0]
    if not _is_users(spec):
        return f"{top} {_version(top)}"
    digest = hashlib.sha256()
    for module, content in sorted(_closure(name).items()):
        digest.update(f"{module}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def changed_code(then: Any, now: Mapping[str, str]) -> str:
    """Return in words which target has other code now; empty if none has, or if it is not known which it had then.

    Another version of an installed package is none: that is for `versions` to say.
    """
    known = then if isinstance(then, Mapping) else {}
    for target, value in now.items():
        before = str(known.get(target, MISSING))
        if before not in (value, MISSING) and (_is_hash(before) or _is_hash(value)):
            return f"the code of {target} has changed since (source hash {before[:12]} then, {value[:12]} now)"
    return ""


def _is_hash(value: str) -> bool:
    return len(value) == 64 and " " not in value


def _closure(name: str) -> dict[str, bytes]:
    """Return what counts of a module of the user's own, and of all such that it imports, by name."""
    found: dict[str, bytes] = {}
    waiting = [name]
    while waiting and len(found) < MOST_MODULES:
        module = waiting.pop()
        spec = _find(module)
        if module in found or spec is None or not _is_users(spec):
            continue
        content, imported = _read(module, spec)
        found[module] = content
        waiting += imported
        waiting += [module.rpartition(".")[0]] if "." in module else []  # a package's own code runs first
    return found


def _read(module: str, spec: ModuleSpec) -> tuple[bytes, list[str]]:
    """Return what counts of a module, and the names that it imports."""
    if spec.origin is None or not spec.has_location:  # a folder without an __init__.py
        return b"", []
    try:
        content = Path(spec.origin).read_bytes()
    except OSError:
        return MISSING.encode(), []
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # compiled code
        return content, []
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    return "".join(_pieces(tree)).encode(errors="surrogatepass"), list(_imports(tree, package))


def _pieces(node: Any) -> Iterator[str]:
    """A syntax tree as text, without docstrings and what is empty: versions of Python differ in that."""
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
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _module(target: str) -> tuple[str, ModuleSpec] | None:
    """Return the module that holds a dotted name."""
    parts = target.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if (spec := _find(name)) is not None:
            return name, spec
    return None


def _find(name: str) -> ModuleSpec | None:
    """Find a module as an import would, but run nothing: not even the packages that it is in."""
    where = [str(Path.cwd()), *sys.path]
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module = ".".join(parts[:end])
        if not parts[end - 1]:
            return None
        spec = _find_in(module, where if end == 1 else list(spec.submodule_search_locations or ()) if spec else [])
        if spec is None:
            return None
    return spec


def _find_in(name: str, where: list[str]) -> ModuleSpec | None:
    if "." not in name:
        if (found := BuiltinImporter.find_spec(name) or FrozenImporter.find_spec(name)) is not None:
            return found
        if (found := PathFinder.find_spec(name, where)) is not None:
            return found
        for finder in sys.meta_path:  # a package installed to be edited may have a finder of its own
            if finder is not PathFinder and (found := finder.find_spec(name, None)) is not None:
                return found
        return None
    return PathFinder.find_spec(name, where)


def _is_users(spec: ModuleSpec) -> bool:
    if spec.name.partition(".")[0] == OUR_OWN:
        return False
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    return bool(places) and not any(_is_installed(Path(place)) for place in places)


def _is_installed(path: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    homes = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(path.is_relative_to(home) or path.resolve().is_relative_to(Path(home).resolve()) for home in homes)


@lru_cache
def _version(package: str) -> str:
    if package in sys.stdlib_module_names:
        return ".".join(str(part) for part in sys.version_info[:3])
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        owners = metadata.packages_distributions().get(package, ())
        return metadata.version(owners[0]) if owners else "unknown"
