"""Whether a finished run still stands for its command.

It does while it is whole, and the command still names the same data and code.

torch and Hydra are imported where data are read: who finds no finished run needs neither.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from optbench.boundary import UnreadableError, read_yaml
from optbench.errors import UserError
from optbench.record import folder as record
from optbench.record.sources import changed_code, source, targets

DATA = ("task", "seed", "dtype")  # keys of the configuration on which a run's data depend


class PresentData:
    """Data and code as they are now, each read and hashed once.

    Records of finished runs are held against them.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, str] = {}
        self._sources: dict[str, str] = {}

    def check(self, path: Path, config: Callable[[], DictConfig], way_out: str = "") -> None:
        """Check that a finished run is whole, with the data and code that its command names now.

        Args:
            path: The run folder.
            config: Gives the configuration of the run's command; called where its data have not
                been read yet.
            way_out: What to say that the user can do, beside moving the folder away.

        Raises:
            UserError: If it is not, they differ, or the data can no longer be had.
        """
        settings = _recorded(path)
        if damage := record.check_digests(path):
            raise UserError(f"{path.name} is finished, but {damage}: {way_out}move {path} away")
        way_out = f"{way_out}move {path} away, or keep both with another results folder"
        origin = record.read_json(path / record.PROVENANCE) or {}
        if changed := changed_code(origin.get("sources"), self._present_sources(settings)):
            raise UserError(f"{path.name} is finished, but {changed}: {way_out}")
        then = str(origin.get("data_hash", "unknown"))
        key = json.dumps([settings[key] for key in DATA], sort_keys=True)
        if key not in self._hashes:
            self._hashes[key] = data_hash(config())
        now = self._hashes[key]
        if then != now:
            raise UserError(
                f"{path.name} is finished, but its data have changed since (data hash {then[:12]} "
                f"then, {now[:12]} "
                f"now): {way_out}"
            )

    def _present_sources(self, settings: dict[str, Any]) -> dict[str, str]:
        named = targets(settings)
        for target in named - self._sources.keys():
            self._sources[target] = source(target)
        return {target: self._sources[target] for target in named}

    def check_command(
        self, path: Path, overrides: Iterable[str], config_dir: Path | None = None
    ) -> None:
        """Do the same for the main job's overrides."""
        self.check(path, lambda: _compose(overrides, config_dir))


def data_hash(config: DictConfig) -> str:
    """Return what `Task.data_hash` gives for the data of a run with this configuration."""
    import torch

    from optbench.configuration.construct import build_task
    from optbench.configuration.numerics import DTYPES
    from optbench.seeds import global_stream

    # as in a run, for a task that draws from the global stream
    with global_stream(config.seed, "dropout"):
        task = build_task(config)
    return task.to(torch.device("cpu"), DTYPES[config.dtype]).data_hash()


def _compose(overrides: Iterable[str], config_dir: Path | None) -> DictConfig:
    from optbench.configuration.compose import compose_config, find_plugins
    from optbench.configuration.explain import explain

    find_plugins()
    try:
        return compose_config(overrides, config_dir)
    except Exception as error:
        message, _ = explain(error)
        if message is None:
            raise
        raise UserError(message) from error


def _recorded(path: Path) -> dict[str, Any]:
    """Return a run's recorded configuration."""
    try:
        settings: Any = read_yaml(path / record.CONFIG, record.LARGEST_CONFIG)
        return {**settings, **{key: settings[key] for key in DATA}}
    except (UnreadableError, TypeError, KeyError) as why:
        raise UserError(
            f"{path} is finished, but its {record.CONFIG} cannot be read "
            f"({' '.join(str(why).split())}): move it away"
        ) from why
