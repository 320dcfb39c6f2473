"""The name of a run's folder: what was chosen, and a hash of the whole configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from optbench.configuration.numerics import resolve_device
from optbench.record.later_keys import without_defaults
from optbench.record.problem import digest_of

# What says where or how to record, and cannot move a result.
NOT_IN_THE_NAME = (
    "results_dir",
    "batched",
    "overwrite",
    "checkpoint_seconds",
    "picture",
    "wandb",
    "mirrors",
    "task.root",
    "optimizer.about",
    "optimizer.search",
)


def run_name(config: DictConfig, choices: Mapping[str, str]) -> str:
    """Return `task-model-optimizer-seed-hash`, a function of configuration and kind of device."""
    content: Any = OmegaConf.to_container(config, resolve=True)
    for key in NOT_IN_THE_NAME:
        *parents, last = key.split(".")
        node: Any = content
        for parent in parents:
            node = node[parent]
        node.pop(last, None)
    if content["start_from"]["run"] is not None:  # wherever its folder lies
        content["start_from"]["run"] = Path(str(content["start_from"]["run"])).name
    content = without_defaults(content)
    content["device"] = resolve_device(config.device).type
    digest = digest_of(content)[:8]
    return "-".join(
        [choices["task"], choices["model"], choices["optimizer"], f"seed{config.seed}", digest]
    )
