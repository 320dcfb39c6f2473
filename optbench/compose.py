"""Overrides → configuration, with what installed packages and the user's own folder add to it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from optbench.location import conf_folder
from optbench.plugins import conf_folders


class _PlugIns(SearchPathPlugin):
    folders: Sequence[Path] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.append("optbench plug-in", f"file://{folder}")


def find_plugins() -> list[str]:
    """Let every configuration composed from now on see the YAMLs of packages installed; return what is wrong."""
    _PlugIns.folders, problems = conf_folders(conf_folder())
    if _PlugIns not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(_PlugIns)
    return problems


def compose_config(overrides: Iterable[str], config_dir: Path | None = None) -> DictConfig:
    """The main job's configuration; entries of `config_dir` are known too."""
    extra = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir.resolve()}]"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", [*extra, *overrides])
