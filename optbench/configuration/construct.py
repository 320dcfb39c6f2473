"""A checked configuration → the objects that it names."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, open_dict
from omegaconf.errors import MissingMandatoryValue
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optbench.configuration.keys import ABOUT_IT
from optbench.configuration.numerics import numerics
from optbench.curvature.selection import named_trainable
from optbench.errors import UserError
from optbench.probes import Probe
from optbench.ranks import ALONE, Ranks
from optbench.run.batches import Batches
from optbench.run.loop import Parts, Settings
from optbench.run.milestones import Keep, Stop
from optbench.run.update import Update
from optbench.seeds import global_stream, start_global_streams
from optbench.task import Task


def construct(config: DictConfig, ranks: Ranks = ALONE) -> Parts:
    """Make every object that a checked configuration names, on its device.

    Args:
        config: Configuration that `keys.check` has let pass. Its `steps` is set where it gives
            `epochs`, for schedules and probes that refer to ${steps}.
        ranks: Processes that share the examples of a batch.

    Raises:
        UserError: If what it names refuses its settings; the message shows the value and the way
            out.
    """
    numbers = numerics(config)
    start_global_streams(config.seed, "dropout")
    task = build_task(config)
    model = build_model(config, task).to(numbers.device, numbers.dtype)
    channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = task.to(numbers.device, numbers.dtype, channels_last)
    batches = Batches(task, config.batch_size, config.seed)
    settings = _settings(config, batches)
    config.steps = settings.steps
    optimizer = optimizer_factory(config.optimizer)(_parameters(config, model))
    update = Update(
        model,
        task.loss,
        optimizer,
        _schedule(config, optimizer),
        config.micro_batch_size,
        config.clip_norm,
        numbers.autocast,
        ranks,
    )
    return Parts(task, batches, update, dict(build_probes(config)), settings)


def _make(what: str, factory: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Call a factory named by the user; its refusal becomes one line that names the group."""
    try:
        return factory(*args, **settings)
    except UserError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise type(cause)(*cause.args) from error
        if isinstance(cause, MissingMandatoryValue):
            raise cause from None
        line = " ".join(str(cause).split())
        raise UserError(
            f"cannot build the {what} as configured: {type(cause).__name__}: {line}"
        ) from error


def build_task(config: DictConfig) -> Task:
    """Build the task that is configured, on the CPU."""
    task: Task = _make("task", instantiate, config.task, seed=config.seed, _convert_="all")
    return task


def build_model(config: DictConfig, task: Task) -> nn.Module:
    """Build the model that is configured for a task, with the seed's own initial weights."""
    factory = _make("model", instantiate, config.model, _convert_="all")
    with global_stream(config.seed, "init"):
        model = _make("model", factory, task.input_shape, task.output_width)
    assert isinstance(model, nn.Module)
    return model


def optimizer_factory(node: DictConfig) -> Callable[[Iterable[Any]], Optimizer]:
    """Return a function from parameters or groups to the optimizer that a node describes."""
    settings = scaled(node)
    with open_dict(settings):
        for key in ABOUT_IT:
            settings.pop(key, None)
    factory = _make("optimizer", instantiate, settings, _convert_="all")

    def make(params: Iterable[Any]) -> Optimizer:
        optimizer = _make("optimizer", factory, params)
        if not isinstance(optimizer, Optimizer):
            raise UserError(f"optimizer._target_={node._target_} is no torch.optim.Optimizer")
        return optimizer

    return make


def scaled(node: DictConfig) -> DictConfig:
    """Return a copy of an optimizer's node, with `scale` multiplied into every lr that it has.

    Raises:
        UserError: If there is a scale, and no lr.
    """
    settings = copy(node)
    scale = settings.get("scale")
    if scale is None:
        return settings
    with open_dict(settings):
        del settings["scale"]
        parts = list(_with_lr(settings))
        if not parts:
            settings.lr = _default_lr(settings)
            parts = [settings]
        for part in parts:
            part.lr = part.lr * scale
    return settings


def _with_lr(node: DictConfig) -> Iterator[DictConfig]:
    if isinstance(node.get("lr"), int | float):
        yield node
    for key, part in node.items():
        if isinstance(part, DictConfig) and key not in ABOUT_IT:
            yield from _with_lr(part)


def _default_lr(node: DictConfig) -> float:
    own = inspect.signature(get_object(node["_target_"])).parameters.get("lr")
    if own is None or not isinstance(own.default, int | float):
        raise UserError(f"optimizer.scale multiplies each lr, and {node['_target_']} has none")
    return float(own.default)


def _parameters(config: DictConfig, model: nn.Module) -> list[Any]:
    """Parameters to train: one group, or one per learning rate where the model asks for several.

    A model asks for them by `lr_factors`, {parameter name: factor on optimizer.lr}, as μP does.
    What a weight decays by in a step, lr · weight_decay, stays as it is.
    """
    trained = named_trainable(model)
    factors: Mapping[str, float] | None = getattr(model, "lr_factors", None)
    if factors is None:
        return list(trained.values())
    lr = scaled(config.optimizer).get("lr")
    if lr is None:
        raise UserError(
            "this model gives each layer its own share of optimizer.lr, and this optimizer has "
            "learning rates of its "
            "own for its parts: say model.scaling=standard, or an optimizer with one optimizer.lr"
        )
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in trained.items():
        groups.setdefault(factors[name], []).append(p)
    own = inspect.signature(get_object(config.optimizer["_target_"])).parameters.get("weight_decay")
    decay = config.optimizer.get("weight_decay", own.default if own is not None else None)
    return [
        {"params": members, "lr": lr * factor} | ({"weight_decay": decay / factor} if decay else {})
        for factor, members in groups.items()
    ]


def _schedule(config: DictConfig, optimizer: Optimizer) -> LRScheduler | None:
    if config.schedule._target_ is None:  # constant
        return None
    factory = _make("schedule", instantiate, config.schedule, _convert_="all")
    schedule: LRScheduler = _make("schedule", factory, optimizer)
    return schedule


def build_probes(config: DictConfig) -> Iterator[tuple[str, Probe]]:
    """Yield the probes that are configured, by name."""
    for name, node in (config.probes or {}).items():
        # A task may tune a probe that is not in the set chosen; then there is nothing to build.
        if node is None or "_target_" not in node:
            continue
        yield str(name), _make(f"probe {name}", instantiate, node, _convert_="all")


def _settings(config: DictConfig, batches: Batches) -> Settings:
    steps = config.steps if config.steps is not None else round(config.epochs * batches.per_epoch)
    if steps < 1:
        raise UserError(
            f"epochs={config.epochs} is less than one update of {batches.per_epoch} an epoch: say "
            "more"
        )
    return Settings(
        steps=steps,
        seed=config.seed,
        log_every=config.log_every if config.log_every is not None else 1 if batches.full else 20,
        checkpoint_seconds=config.checkpoint_seconds,
        explosion_factor=config.explosion_factor,
        stop=Stop(config.stop.metric, config.stop.below) if config.stop.metric else None,
        keep=Keep(tuple(config.keep), tuple(config.keep_steps)),
    )
