"""Overrides → configuration, with what installed packages and the user's own folder add to it."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, open_dict

from optbench.boundary.overrides import MISSING, quoted_path, with_optional
from optbench.configuration.plugins import conf_folders
from optbench.errors import UserError
from optbench.paths import conf_folder

PATHS = ("results_dir", "task.root", "task.folder", "task.text")


class _PlugIns(SearchPathPlugin):
    """Folders of YAMLs beside optbench's; given as paths, since an override would need quotes."""

    folders: Sequence[Path] = ()
    own: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.append("optbench plug-in", f"file://{folder}")
        if self.own is not None:
            search_path.append("config_dir", f"file://{self.own}")


def find_plugins() -> list[str]:
    """Make the YAMLs of installed packages known; return a line for each that is wrong."""
    _PlugIns.folders, problems = conf_folders(conf_folder())
    _register()
    return problems


def _register() -> None:
    if _PlugIns not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(_PlugIns)


def compose_config(overrides: Iterable[str], config_dir: Path | None = None) -> DictConfig:
    """The main job's configuration; entries of `config_dir` are known too."""
    with _known(config_dir), initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", [with_optional(word) for word in overrides])


def compose_with_choices(
    overrides: Iterable[str], config_dir: Path | None = None
) -> tuple[DictConfig, dict[str, str]]:
    """The main job's configuration, and the entry that is chosen of each group."""
    words = with_paths(overrides)
    with _known(config_dir), initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("config", words, return_hydra_config=True)
    choices = {
        str(key): str(value)
        for key, value in config.hydra.runtime.choices.items()
        if not str(key).startswith("hydra/")
    }
    with open_dict(config):
        del config["hydra"]
    return config, choices


def config_dirs(arguments: Sequence[str]) -> list[Path]:
    """Return the folders that `--config-dir` names.

    Raises:
        UserError: If one is no folder: Hydra passes over it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd", action="append", default=[], type=Path)
    try:
        folders: list[Path] = parser.parse_known_args(arguments)[0].config_dir
    except argparse.ArgumentError:  # Hydra says what is missing
        return []
    for folder in folders:
        _check_folder(folder)
    return folders


def config_folders(own: Path | None = None) -> list[Path]:
    """The folders of YAMLs: optbench's, those of installed packages, and the user's own."""
    return [conf_folder(), *_PlugIns.folders, *([own] if own is not None else [])]


def _check_folder(config_dir: Path) -> None:
    if not config_dir.is_dir():
        raise UserError(f"config_dir={config_dir} is no folder: name the one that holds your YAMLs")


@contextmanager
def _known(config_dir: Path | None) -> Iterator[None]:
    _register()
    if config_dir is not None:
        _check_folder(config_dir)
    _PlugIns.own = config_dir.resolve() if config_dir is not None else None
    try:
        yield
    finally:
        _PlugIns.own = None


VALUED = (
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--cfg", "-c", "--experimental-rerun"),
)
"""Hydra's options that are followed by a word of theirs."""


def options_first(arguments: Iterable[str]) -> list[str]:
    """Bring options before overrides: Hydra takes no override behind an option that follows one."""
    options, overrides, before = list[str](), list[str](), ""
    for word in arguments:
        is_option = word.startswith("-") or before in VALUED
        (options if is_option else overrides).append(word)
        before = word
    return options + overrides


def without_options(arguments: Iterable[str]) -> list[str]:
    """Leave out options, and what follows one as its value."""
    ordered = options_first(arguments)
    before = ["", *ordered]
    return [
        word
        for word, last in zip(ordered, before, strict=False)
        if not word.startswith("-") and last not in VALUED
    ]


def with_paths(arguments: Iterable[str]) -> list[str]:
    """Quote paths that Hydra would not read as text, such as `2026`; let any cadence be given."""
    return [with_optional(_with_path(argument)) for argument in arguments]


def _with_path(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals or not value or key.lstrip("+") not in PATHS:
        return argument
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return f"{key}={quoted_path(value)}"
    if override.value() == MISSING:
        return f"{key}={quoted_path(MISSING)}"
    is_text = override.is_sweep_override() or isinstance(override.value(), str)
    is_default = override.value() is None and key != "results_dir"
    return argument if is_text or is_default else f"{key}={quoted_path(value)}"
