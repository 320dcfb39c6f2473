"""A name on the command line → what to check it with."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from torch.optim import Optimizer

from optbench.check import Check, behaviour, steps
from optbench.check import parameter_kinds as parameters
from optbench.check import probe_contract as probes
from optbench.check import task_contract as tasks
from optbench.check.subject import entries, optimizer
from optbench.configuration.compose import compose_config
from optbench.configuration.construct import build_probes, build_task
from optbench.configuration.keys import imported
from optbench.errors import UserError, nearest
from optbench.probes import Probe

OF_AN_OPTIMIZER = [*steps.CHECKS, *parameters.CHECKS, *behaviour.CHECKS]


@dataclass(frozen=True)
class Target:
    """A subject and the checks that are made of it."""

    name: str
    subject: Any
    checks: Sequence[Check]
    excluded: Mapping[str, str] = field(default_factory=dict)


def find(name: str, settings: Sequence[str] = (), config_dir: Path | None = None) -> Target:
    """What a name or an import path stands for: an optimizer, a task or a probe, in this order.

    Raises:
        UserError: If there is nothing of that name.
    """
    if "." in name:
        return _of_path(name, settings, config_dir)
    optimizer_names, task_names = entries("optimizer", config_dir), entries("task", config_dir)
    if name in optimizer_names:
        return _optimizer(name, settings, config_dir)
    if name in task_names:
        return _task(f"task={name}", name, config_dir)
    probe_names = _probe_names(config_dir)  # last, for it composes each set of probes
    if name in probe_names:
        return _probe(name, probe_names[name], config_dir)
    known = dict.fromkeys([*probe_names, *task_names, *optimizer_names])
    raise UserError(
        f"there is no optimizer, task or probe called {name}.{nearest(name, known)} "
        "For a class of your own say its import path, my_file.MyOptimizer"
    )


def _of_path(path: str, settings: Sequence[str], config_dir: Path | None) -> Target:
    found = imported(path, "")
    if not inspect.isclass(found):  # a task is a function
        return _task("task=digits", path, config_dir, path)
    if issubclass(found, Optimizer):
        return _optimizer(path, settings, config_dir)
    return Target(path, probes.ProbeSubject(path, cast(Callable[[], Probe], found)), probes.CHECKS)


def _optimizer(name: str, settings: Sequence[str], config_dir: Path | None) -> Target:
    subject = optimizer(name, settings, config_dir)
    return Target(name, subject, OF_AN_OPTIMIZER, subject.excluded)


def _task(choice: str, name: str, config_dir: Path | None, path: str | None = None) -> Target:
    config = compose_config([choice, "device=cpu"], config_dir)
    if path is not None:
        config.task = OmegaConf.create({"_target_": path})

    def build(seed: int) -> Any:
        config.seed = seed
        return build_task(config)

    return Target(name, tasks.TaskSubject(name, build, config), tasks.CHECKS)


def _probe_names(config_dir: Path | None) -> dict[str, str]:
    """The set that each probe is first found in, by the probe's name."""
    found: dict[str, str] = {}
    for choice in entries("probes", config_dir):
        for name in compose_config([f"probes={choice}"], config_dir).probes or {}:
            found.setdefault(str(name), choice)
    return found


def _probe(name: str, choice: str, config_dir: Path | None) -> Target:
    def build() -> Any:
        config = compose_config([f"probes={choice}", "task=digits", "steps=4"], config_dir)
        return dict(build_probes(config))[name]

    return Target(name, probes.ProbeSubject(name, build), probes.CHECKS)
