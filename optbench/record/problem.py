"""What a run solves: the settings that runs must share to be compared."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from optbench.record.later_keys import without_defaults

# What cannot move a result, or is what is compared: all else must be the same for runs that are
# ranked together.
NOT_THE_PROBLEM = {
    *(
        "optimizer",
        "seed",
        "board",
        "probes",
        "choices",
        "curvature",
        "log_every",
        "device",
        "results_dir",
    ),
    *("batched", "overwrite", "checkpoint_seconds", "picture", "wandb", "mirrors"),
    *("keep", "keep_steps"),
}


def problem_of(
    config: Mapping[str, Any], start_from: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings of a configuration that are the problem, not what is compared on it.

    Args:
        config: The configuration of a run.
        start_from: Of a fork, what its summary says of the run that it began with. Forks of runs
            that differ in their seed alone, each with the seed of its own, are of one problem.
    """
    task = {key: value for key, value in config["task"].items() if key != "root"}
    # What is null is off: a setting that optbench gains later leaves the problems as they were.
    settings = without_defaults(config)
    problem = {k: v for k, v in settings.items() if k not in NOT_THE_PROBLEM and v is not None}
    # where a measurement ends the run, what is measured when decides at which step it ends
    stop = problem.get("stop")
    stops = isinstance(stop, dict) and stop.get("metric") is not None
    problem |= {"task": task} | ({"probes": config.get("probes")} if stops else {})
    if "start_from" in problem and start_from and "settings" in start_from:
        problem["start_from"] = {key: start_from.get(key) for key in ("settings", "step")}
        if start_from.get("seed") != config.get("seed"):
            problem["start_from"]["seed"] = start_from.get("seed")
    return problem


def optimizer_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the optimizer, without what is said about it."""
    return {k: v for k, v in config["optimizer"].items() if k not in ("about", "search")}


def chosen_of(config: Mapping[str, Any], *groups: str) -> dict[str, str]:
    """Return the entries that were chosen of these groups, where that is known."""
    choices = config.get("choices")
    names = choices if isinstance(choices, dict) else {}
    return {key: names[key] for key in groups if isinstance(names.get(key), str)}


def digest_of(settings: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the settings' SHA-256."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def name_but_for_the_seed(
    config: Mapping[str, Any], start_from: Mapping[str, Any] | None = None
) -> str:
    """Return `task-model-optimizer-hash`: what runs share that differ in their seed alone.

    Settings that cannot move a result are not of it; of `start_from`, see `problem_of`.
    """
    chosen = chosen_of(config, "task", "model", "optimizer").values()
    settings = problem_of(config, start_from) | {"optimizer": optimizer_of(config)}
    return "-".join([*chosen, digest_of(settings)[:8]])
