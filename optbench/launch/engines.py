"""The engine that a command names: `launcher=NAME launcher.KEY=VALUE`, a YAML each.

A YAML lies in conf/launcher/, in a package that declares an entry point of `optbench.launchers`, or
in the user's own folder. It holds `_target_` and every setting with its default.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml

from optbench.boundary import ShapeError, UnreadableError, printable, read_yaml
from optbench.boundary.command_line import Key, Seconds
from optbench.boundary.signature import check_arguments, unknown
from optbench.configuration.plugins import conf_folders
from optbench.errors import UserError, nearest
from optbench.launch.launcher import Launcher, Order
from optbench.paths import conf_folder

KIND = "launcher"
LOCAL = "local"

EngineName = Annotated[
    str,
    Key(
        "what makes the runs: local (this machine), ray (a cluster), slurm (a queue), or an engine "
        "of yours, a YAML in DIR/launcher/; docs/scale.md"
    ),
]
RunSeconds = Annotated[
    Seconds, Key("a run that takes longer is stopped and has failed; the others go on")
]
EngineSettings = Annotated[
    tuple[str, ...],
    Key(
        "setting of the engine, such as launcher.cores=2 launcher.memory_gb=8; "
        "`python -m optbench --help launcher` lists them",
        name=KIND,
        below=True,
    ),
]


def make_launcher(
    name: str,
    words: Sequence[str],
    order: Order,
    config_dir: Path | None = None,
    config_word: str = "config_dir=DIR",
) -> Launcher:
    """Return an engine, set as the command line says.

    Args:
        name: Name of its YAML.
        words: KEY=VALUE, without the `launcher.` before it.
        order: What the runs share.
        config_dir: The user's YAMLs.
        config_word: How the command is told of them.

    Raises:
        UserError: If there is no such engine or setting, or what it needs is not installed.
    """
    file = _file(name, config_dir, config_word)
    node = _node(file)
    target = _target(node.pop("_target_", None), file)
    for word in words:
        key, _, text = word.partition("=")
        if key not in node:
            raise UserError(_no_key(key, node, name))
        node[key] = _value(target, key, text)
    check_arguments(target, node, f"{KIND}.", positional=1)
    launcher: Launcher = target(order, **node)
    return launcher


def known_engines(config_dir: Path | None = None) -> dict[str, Path]:
    """Return the YAML of every engine, by name."""
    ours = conf_folder()
    plugged, _ = conf_folders(ours)
    folders = [ours, *plugged, *([config_dir] if config_dir is not None else [])]
    return {
        file.stem: file for folder in folders for file in sorted((folder / KIND).glob("*.yaml"))
    }


def _file(name: str, config_dir: Path | None, config_word: str) -> Path:
    known = known_engines(config_dir)
    if name not in known:
        raise UserError(
            f"there is no launcher called {printable(name)}.{nearest(name, known)} Known: "
            f"{', '.join(known)}, and what {config_word} holds in DIR/launcher/NAME.yaml"
        )
    return known[name]


def _node(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
    except UnreadableError as why:
        raise UserError(f"cannot read {file}: {why}") from why
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{file} must be a mapping, with _target_ and the engine's settings")
    return content


def _target(path: object, file: Path) -> Callable[..., Any]:
    if not isinstance(path, str) or "." not in path:
        raise UserError(
            f"{file.name} must say _target_: package.module.Engine, got {printable(str(path))}"
        )
    module, _, name = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as why:
        raise UserError(f"{file.name} names _target_: {path}, which is not there: {why}") from why
    if not callable(target):
        raise UserError(f"{file.name} names _target_: {path}, which cannot be called")
    return target  # type: ignore[no-any-return]


def _value(target: Callable[..., Any], key: str, text: str) -> Any:
    """The value that a word stands for; a partition may be called 2026."""
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        read = text
    try:
        check_arguments(target, {key: read}, f"{KIND}.", positional=1)
    except ShapeError:
        if isinstance(read, str):
            raise
        try:
            check_arguments(target, {key: text}, f"{KIND}.", positional=1)
        except ShapeError:
            check_arguments(target, {key: read}, f"{KIND}.", positional=1)
        return text
    return read


def _no_key(key: str, node: Mapping[str, Any], name: str) -> str:
    known = [f"{KIND}.{other}" for other in node]
    advice = unknown(f"{KIND}.{key}", known)
    return f"{advice} {KIND}={name} has {', '.join(known) or 'no settings'}"
