"""A finished run stands for its command only while the data that the command names are those it was trained on.

torch and Hydra are imported where data are read: who finds no finished run needs neither.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from optbench.errors import UserError
from optbench.record import folder as record

READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former is ten times as fast, where it is to be had


class PresentData:
    """The data as they are now: each is read and hashed once, and held against the records of finished runs."""

    def __init__(self) -> None:
        self._hashes: dict[str, str] = {}

    def check(self, path: Path, config: Callable[[], DictConfig], way_out: str = "") -> None:
        """Compare the data that a finished run was trained on with those that its command names now.

        Args:
            path: The run folder.
            config: Gives the configuration of the run's command; called where its data have not been read yet.
            way_out: What to say that the user can do, beside moving the folder away.

        Raises:
            UserError: If they differ, or the data can no longer be had.
        """
        then = str((record.read_json(path / record.PROVENANCE) or {}).get("data_hash", "unknown"))
        key = _data(path)
        if key not in self._hashes:
            self._hashes[key] = data_hash(config())
        now = self._hashes[key]
        if then != now:
            raise UserError(
                f"{path.name} is finished, but its data have changed since (data hash {then[:12]} then, {now[:12]} "
                f"now): {way_out}move {path} away, or keep both with another results folder"
            )

    def check_command(self, path: Path, overrides: Iterable[str], config_dir: Path | None = None) -> None:
        """Do the same for the main job's overrides."""
        self.check(path, lambda: _compose(overrides, config_dir))


def data_hash(config: DictConfig) -> str:
    """Return what `Task.data_hash` gives for the data of a run with this configuration."""
    import torch

    from optbench.config import DTYPES, build_task
    from optbench.seeds import global_stream

    with global_stream(config.seed, "dropout"):  # as in a run, for a task that draws from the global stream
        task = build_task(config)
    return task.to(torch.device("cpu"), DTYPES[config.dtype]).data_hash()


def _compose(overrides: Iterable[str], config_dir: Path | None) -> DictConfig:
    from optbench.compose import compose_config, find_plugins
    from optbench.messages import explain

    find_plugins()
    try:
        return compose_config(overrides, config_dir)
    except Exception as error:
        message, _ = explain(error)
        if message is None:
            raise
        raise UserError(message) from error


def _data(path: Path) -> str:
    """What a run's data depend on, of its recorded configuration."""
    try:
        config: Any = yaml.load((path / record.CONFIG).read_text(), READER)
        return json.dumps([config[key] for key in ("task", "seed", "dtype")], sort_keys=True)
    except (OSError, yaml.YAMLError, TypeError, KeyError) as why:
        raise UserError(
            f"{path} is finished, but its {record.CONFIG} cannot be read ({' '.join(str(why).split())}): move it away"
        ) from why
