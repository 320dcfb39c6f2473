"""What a configuration must be: every key's type and range, read here before anything is built.

The keys of the core are declared below. Those of a group (optimizer, task, model, schedule, probes)
are declared by the signature of its `_target_`, so that a plug-in declares its own by annotating;
see `optbench.boundary.kinds`.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from optbench import search
from optbench.boundary.files import UnreadableError, read_yaml
from optbench.boundary.kinds import Count, Device, NotNegative, Positive, Whole
from optbench.boundary.shape import ShapeError
from optbench.boundary.signature import check_arguments, check_value, keys_of, shown, unknown
from optbench.errors import UserError, who_ended
from optbench.record.mirror import check_mirrors

Node = Annotated[dict[str, Any], Field(description="a node with _target_")]
Part = Annotated[dict[str, Any], Field(description="a mapping")]
FolderName = Annotated[
    str, Field(min_length=1, pattern=r"^[^\x00]+$", description="the name of a folder")
]
ModuleName = Annotated[
    str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$", description="the name of a module")
]
Word = str | int | float  # a name that may look like a number
StepNumber = Annotated[int, Field(ge=0, description="a whole number, at least 0")]
Elsewhere = Callable[[], Collection[str]]


@dataclass(frozen=True)
class Wandb:
    """The keys of `wandb`."""

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None
    group: str | None
    job_type: str | None
    tags: list[str]
    wait_seconds: NotNegative


@dataclass(frozen=True)
class Board:
    """The keys of `board`: a place in a suite's protocol."""

    suite: Word
    version: Whole
    digest: Annotated[Word, Field(allow_inf_nan=True)]
    task: Word
    phase: Literal["tune", "final"]
    point: Whole | None


@dataclass(frozen=True)
class Stop:
    """The keys of `stop`."""

    metric: str | None
    below: int | float | None


@dataclass(frozen=True)
class StartFrom:
    """The keys of `start_from`."""

    run: Word | None
    step: StepNumber | None


@dataclass(frozen=True)
class Configuration:
    """The keys of the main job."""

    steps: Count | None
    epochs: Positive | None
    batch_size: Count | Literal["full"]
    micro_batch_size: Count | None
    clip_norm: Positive | None
    stop: Part
    keep: list[Positive]
    keep_steps: list[StepNumber]
    start_from: Part
    log_every: Count | None
    seed: Whole
    device: Device
    dtype: Literal["float32", "float64", "bf16"]
    curvature: Literal["lobpcg", "pyhessian"]
    results_dir: FolderName
    batched: bool
    overwrite: bool
    checkpoint_seconds: Positive
    picture: bool
    board: Part | None
    explosion_factor: Positive
    wandb: Part
    mirrors: list[ModuleName]
    model: Node
    optimizer: Node
    schedule: Node
    probes: Node | None
    task: Node


ABOUT_IT = ("about", "search")  # keys of an optimizer's YAML that are not for the optimizer
HYDRAS = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
GIVEN = {"model": 2, "optimizer": 1, "schedule": 1}  # arguments that we give by position
EVERYWHERE: dict[str, dict[str, Any]] = {  # a key's type, in whatever is called
    "optimizer": {"lr": Positive},
    "schedule": {"step_size": Count, "T_max": Count, "total_iters": Count, "gamma": Positive},
}


def check(config: DictConfig) -> None:
    """Raise unless every key is one that there is, with a value that it can have.

    Raises:
        UserError: With key, value, and what is expected.
    """
    _name_folder(config)
    content = _plain(config)
    for key, shape in (
        ("wandb", Wandb),
        ("board", Board),
        ("stop", Stop),
        ("start_from", StartFrom),
    ):
        if isinstance(content.get(key), dict):
            _check_whole(shape, content[key], f"{key}.", tuple)
    _check_whole(Configuration, content, "", lambda: known_keys(content))
    _check_pairs(content)
    check_mirrors(content["mirrors"])
    if content["steps"] is None:
        raise UserError("say how long to train: steps=N (updates) or epochs=N")
    for key, path, node in _nodes(content):
        _check_node(node, f"{path}.", key, lambda: known_keys(content))
    search.read(config.optimizer.get("search"))


def _check_pairs(content: Mapping[str, Any]) -> None:
    stop, start = content["stop"], content["start_from"]
    if (stop["metric"] is None) != (stop["below"] is None):
        raise UserError("stop.metric and stop.below go together: a metric, and where to stop")
    if start["run"] is None and start["step"] is not None:
        raise UserError("start_from.step is of start_from.run=FOLDER, which is not given")


def _name_folder(config: DictConfig) -> None:
    """Take a folder called 2026 for one: Hydra reads a number."""
    value = config.get("results_dir")
    if isinstance(value, int) and not isinstance(value, bool):
        config.results_dir = str(value)


def _plain(config: DictConfig) -> dict[str, Any]:
    """Return a plain dict, interpolations resolved; `${steps}` is 1 where only epochs are given."""
    if config.get("steps") is None and config.get("epochs") is not None:
        config = config.copy()
        config.steps = 1
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key} has no default: say {key}=VALUE")
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _check_whole(
    shape: Callable[..., Any], content: Mapping[str, Any], prefix: str, elsewhere: Elsewhere
) -> None:
    check_arguments(shape, content, prefix, elsewhere=elsewhere)
    for name in keys_of(shape).named:
        if name not in content:
            raise ShapeError(f"{prefix}{name} is missing")


def _nodes(content: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (group, path, node) of what is to be built."""
    for key in ("task", "model", "optimizer", "schedule"):
        node = content.get(key)
        if isinstance(node, dict) and not (key == "schedule" and node.get("_target_") is None):
            yield key, key, node
    probes = content.get("probes")
    if isinstance(probes, dict):
        for name, node in probes.items():
            if node is not None and _is_probe(name, node):
                yield "probes", f"probes.{name}", node


def _is_probe(name: str, node: object) -> bool:
    """Whether a node of `probes` is to be built: a task may tune a probe that was not chosen.

    Raises:
        ShapeError: If it is no node, or no set of probes has one of this name.
    """
    if not isinstance(node, dict):
        raise ShapeError(f"probes.{name} must be a node with _target_ or null, got {shown(node)}")
    if "_target_" in node:
        return True
    if name not in (others := _probes_elsewhere(name)):
        raise ShapeError(unknown(f"probes.{name}", [f"probes.{other}" for other in others]))
    return False


def _probes_elsewhere(name: str) -> set[str]:
    """Names of the probes in every set that Hydra finds; without Hydra, this name alone."""
    if not HydraConfig.initialized():
        return {name}
    found: set[str] = set()
    for source in HydraConfig.get().runtime.config_sources:
        for file in Path(source.path).glob("probes/*.yaml") if source.schema == "file" else ():
            with contextlib.suppress(UnreadableError):
                found |= dict(read_yaml(file) or {}).keys()
    return found - {"defaults"}


def _check_node(node: Mapping[str, Any], prefix: str, group: str, elsewhere: Elsewhere) -> None:
    """Hold a node, and those within, against the signatures of what they name."""
    target = _target(node, prefix)
    check_value(f"{prefix}_partial_", node.get("_partial_", False), bool)
    within = {name: value for name, value in node.items() if _is_node(value)}
    given = {name: value for name, value in node.items() if name not in (*HYDRAS, *within)}
    if prefix == "optimizer.":
        for name in ABOUT_IT:
            check_value(f"optimizer.{name}", node.get(name), Part | None)
        check_value("optimizer.scale", node.get("scale", 1.0), Positive)
        given = {k: value for k, value in given.items() if k not in (*ABOUT_IT, "scale")}
    if prefix == "task." and "seed" in given:
        raise ShapeError("there is no key task.seed: the run's seed is given as seed=NUMBER")
    check_arguments(
        target, given, prefix, GIVEN.get(group, 0), elsewhere, EVERYWHERE.get(group), within
    )
    for name, inner in within.items():
        _check_node(inner, f"{prefix}{name}.", group, elsewhere)


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _target(node: Mapping[str, Any], prefix: str) -> Callable[..., Any]:
    path = node.get("_target_")
    if not isinstance(path, str) or not path:
        raise ShapeError(
            f"{prefix}_target_ must be an import path such as my_file.Mine, got {shown(path)}"
        )
    return imported(path, f"{prefix}_target_=")


def imported(path: str, key: str = "") -> Callable[..., Any]:
    """Return what an import path names.

    Raises:
        ShapeError: If it cannot be imported, whatever its module does then, or called.
    """
    try:
        found = get_object(path)
    except SystemExit as why:
        raise ShapeError(f"cannot import {key}{path}: {who_ended(why)}") from why
    except Exception as why:
        cause = why.__cause__ or why
        raise ShapeError(f"cannot import {key}{path}: {type(cause).__name__}: {cause}") from why
    if not callable(found):
        raise ShapeError(f"{key}{path} is a {type(found).__name__}, which cannot be called")
    return cast(Callable[..., Any], found)


def known_keys(content: Mapping[str, Any]) -> list[str]:
    """Every key that can be given to such a configuration, whether a YAML gives it or not."""
    found = dict.fromkeys(
        [
            *keys_of(Configuration).named,
            *(f"wandb.{name}" for name in keys_of(Wandb).named),
            *(f"stop.{name}" for name in keys_of(Stop).named),
            *(f"start_from.{name}" for name in keys_of(StartFrom).named),
            "optimizer.scale",
        ]
    )
    for key, path, node in _nodes(content):
        found |= dict.fromkeys(_keys_of_node(node, f"{path}.", GIVEN.get(key, 0)))
    return list(found)


def _keys_of_node(node: Mapping[str, Any], prefix: str, given: int) -> Iterator[str]:
    try:
        yield from (f"{prefix}{name}" for name in keys_of(_target(node, prefix), given).named)
    except ShapeError:  # told where the node itself is checked
        yield from (f"{prefix}{name}" for name in node if name not in HYDRAS)
    for name, inner in node.items():
        if _is_node(inner):
            yield from _keys_of_node(inner, f"{prefix}{name}.", given)
