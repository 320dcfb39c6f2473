"""A fork: a run that begins with the weights and the optimizer's state of another one.

It takes the state, never the settings: `Optimizer.load_state_dict` alone would put the other run's
lr, betas and weight decay in the place of those that were asked for.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from optbench.boundary import UnreadableError, read_json, read_yaml
from optbench.errors import UserError
from optbench.optimizers.nested import nested
from optbench.record.folder import CONFIG, LARGEST_CONFIG, SUMMARY
from optbench.record.problem import name_but_for_the_seed
from optbench.run import checkpoint
from optbench.run.loop import Parts
from optbench.run.optimizer_state import load_optimizer
from optbench.seeds import set_global_state


@dataclass
class Inheritance:
    """What a fork took from the run that it began with, and what it left there.

    Attributes:
        run: Name of that run.
        step: Number of its updates.
        seed: Its seed.
        settings: Name of what it shares with runs that differ from it in their seed alone.
        took: What the two have in common, in words.
        left: What of it the fork does not have, in words.
    """

    run: str
    step: int
    seed: int
    settings: str
    took: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def saved_state(folder: Path, step: int | None) -> dict[str, Any]:
    """Return the state of a run at a step that it kept; None for its last checkpoint.

    Raises:
        UserError: If there is none; the message lists the steps that there are.
    """
    kept = checkpoint.kept_steps(folder)
    if step in kept:
        return checkpoint.read_kept(folder, step)
    trouble = [] if folder.is_dir() else [f"{folder} is no run folder"]
    for name, state in checkpoint.candidates(folder):
        if isinstance(state, str):
            trouble.append(f"{name} {state}")
        elif step in (None, state["step"]):
            return state
        else:
            kept = sorted({*kept, state["step"]})
    there = f"there are the steps {', '.join(map(str, kept))}" if kept else "there is none"
    why = "; ".join([*trouble, there])
    wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
    raise UserError(f"{folder.name} has not kept {wanted} ({why}): say keep_steps=[N] of that run")


def saved_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run, interpolations resolved.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        content = read_yaml(folder / CONFIG, LARGEST_CONFIG)
    except UnreadableError as why:
        raise UserError(f"{folder} is no run folder: its {CONFIG} cannot be read ({why})") from why
    if not isinstance(content, dict) or "optimizer" not in content or "task" not in content:
        raise UserError(f"{folder} is no run folder: its {CONFIG} is none of a run")
    return content


def inherit(parts: Parts, config: DictConfig) -> Inheritance | None:
    """Put the state of `start_from` into freshly built parts; None where it names no run.

    - Weights and buffers are taken whole.
    - The optimizer's state is taken if the optimizer is of the same classes; its settings are not.
    - Data order, augmentation and dropout go on where they were if task, batch size and seed are
      the same; else they begin anew.
    - The schedule begins anew.

    Raises:
        UserError: If the run has no such checkpoint, or its weights are of another model.
    """
    if config.start_from.run is None:
        return None
    folder = Path(str(config.start_from.run))
    theirs = saved_config(folder)
    state = saved_state(folder, config.start_from.step)
    inheritance = Inheritance(
        run=folder.name,
        step=int(state["step"]),
        seed=theirs.get("seed", 0),
        settings=name_but_for_the_seed(theirs, _origin_of(folder)),
    )
    ours: Any = OmegaConf.to_container(config, resolve=True)
    try:
        parts.update.model.load_state_dict(state["model"])
    except RuntimeError as why:
        line = " ".join(str(why).split())
        raise UserError(f"the weights of {folder.name} do not fit this model: {line}") from why
    inheritance.took.append("weights and buffers")
    _take_optimizer(parts.update.optimizer, state["optimizer"], theirs, ours, inheritance)
    _take_order(parts, state, theirs, ours, inheritance)
    return inheritance


def _origin_of(folder: Path) -> Mapping[str, Any] | None:
    """What a run that may be a fork itself says of the one that it began with."""
    try:
        summary = read_json(folder / SUMMARY)
    except UnreadableError:
        return None
    origin = summary.get("start_from") if isinstance(summary, dict) else None
    return origin if isinstance(origin, dict) else None


def _take_optimizer(
    optimizer: Optimizer,
    state: dict[str, Any],
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    inheritance: Inheritance,
) -> None:
    name = type(optimizer).__name__
    if list(_targets(theirs["optimizer"])) != list(_targets(ours["optimizer"])):
        inheritance.left.append(f"the optimizer's state: {name} begins with none")
        return
    settings = [
        (part, number, key, copy.deepcopy(group[key]))
        for part in nested(optimizer)
        for number, group in enumerate(part.param_groups)
        for key in _hyperparameters(part, group)
    ]
    load_optimizer(optimizer, state)
    inheritance.took.append(f"the state of {name}")
    for part, number, key, value in settings:
        loaded = part.param_groups[number].get(key)
        if _differ(loaded, value):
            line = f"{key}={loaded}: it is {value} here"
            if line not in inheritance.left:
                inheritance.left.append(line)
        part.param_groups[number][key] = value


def _hyperparameters(optimizer: Optimizer, group: Mapping[str, Any]) -> list[str]:
    """Keys of a group that are arguments of the class; the others are state (Prodigy's `d`)."""
    arguments = inspect.signature(type(optimizer).__init__).parameters
    return [k for k in group if k != "params" and (k in arguments or k in ("lr", "initial_lr"))]


def _differ(a: object, b: object) -> bool:
    return str(a) != str(b)


def _targets(node: object) -> Iterator[str]:
    """Yield every `_target_` of a node, its own first."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for key in sorted(node):
            yield from _targets(node[key])


def _take_order(
    parts: Parts,
    state: Mapping[str, Any],
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    inheritance: Inheritance,
) -> None:
    changed = [key for key in ("task", "batch_size", "seed") if theirs.get(key) != ours.get(key)]
    if changed:
        inheritance.left.append(f"the order of the data: another {', '.join(changed)} here")
        return
    parts.batches.load_state_dict(state["batches"])
    set_global_state(state)
    inheritance.took.append("the order of the data, where it stood")
