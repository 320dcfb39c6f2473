"""A resolved configuration → the objects that it describes, and the name of their run folder."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optbench import search
from optbench.configuration.keys import ABOUT_IT, check
from optbench.errors import UserError
from optbench.probes import Probe, check_cadences
from optbench.probes.generalization import evaluate, evaluating, is_mean_of_parts
from optbench.run.batches import Batches
from optbench.run.loop import Experiment, Settings
from optbench.run.update import Update
from optbench.seeds import global_stream, start_global_streams
from optbench.task import Task

# What says where or how to record, and cannot move a result.
NOT_IN_THE_NAME = (
    "results_dir",
    "overwrite",
    "checkpoint_seconds",
    "picture",
    "wandb",
    "task.root",
    "optimizer.about",
    "optimizer.search",
)
FINGERPRINT_EXAMPLES = 1000
# of weights and data
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.float32}


def resolve_device(name: str) -> torch.device:
    """Return the device; `auto` is the GPU where there is one.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as why:
        raise UserError(
            f"device={name} is not to be had here ({str(why).splitlines()[0]}): say device=cpu"
        ) from why
    return torch.device(name)


def run_name(config: DictConfig, choices: Mapping[str, str]) -> str:
    """Return `task-model-optimizer-seed-hash`: the same for the same configuration, on the same kind of device."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    for key in NOT_IN_THE_NAME:
        *parents, last = key.split(".")
        node: Any = content
        for parent in parents:
            node = node[parent]
        node.pop(last, None)
    content["device"] = resolve_device(config.device).type
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return "-".join(
        [choices["task"], choices["model"], choices["optimizer"], f"seed{config.seed}", digest]
    )


def build(config: DictConfig) -> Experiment:
    """Build everything that the configuration names, on its device.

    Raises:
        UserError: If something in the configuration cannot be; the message shows the value and the
            way out.
    """
    check(config)
    search.read(config.optimizer.get("search"))
    device, dtype, autocast = _numerics(config)
    seed = config.seed
    start_global_streams(seed, "dropout")
    task = build_task(config)
    model = build_model(config, task).to(device, dtype)
    channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = task.to(device, dtype, channels_last)
    batches = Batches(task, config.batch_size, seed)
    settings = _settings(config, batches)
    config.steps = settings.steps  # for what refers to ${steps}: schedules, probes
    optimizer = optimizer_factory(config.optimizer)(_parameters(config, model))
    update = Update(
        model,
        task.loss,
        optimizer,
        _schedule(config, optimizer),
        config.micro_batch_size,
        config.clip_norm,
        autocast,
    )
    update.check(batches.size)
    probes = dict(build_probes(config))
    check_cadences(probes)
    _check_fit(task, model, optimizer)
    _check_micro_batches(task, model, optimizer, update.micro_batch_size, batches.size)
    with evaluating(model, optimizer, task):
        initial_loss = evaluate(task, model, task.train.first(FINGERPRINT_EXAMPLES))["loss"]
    return Experiment(task, batches, update, probes, settings, initial_loss)


def _numerics(config: DictConfig) -> tuple[torch.device, torch.dtype, bool]:
    device = resolve_device(config.device)
    if config.dtype == "bf16" and device.type != "cuda":
        raise UserError(f"dtype=bf16 needs a GPU, and device is {device.type}: say dtype=float32")
    if config.dtype == "float64" and device.type == "mps":
        raise UserError("dtype=float64 is not to be had on mps: say device=cpu")
    if device.type == "cuda":
        _make_reproducible()
    return device, DTYPES[config.dtype], config.dtype == "bf16"


def _make_reproducible() -> None:
    """Have a GPU give the same bits each time, and float32 where float32 is asked for."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
        False  # 10 bits of mantissa
    )


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
    """Return what makes the optimizer of such a node from parameters or groups, without what is only about it."""
    settings = copy(node)
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


def _parameters(config: DictConfig, model: nn.Module) -> list[Any]:
    """What the optimizer trains: one group, or one for each learning rate where the model asks for several.

    A model asks for them by `lr_factors`, {parameter name: factor on optimizer.lr}, as μP does.
    What a weight decays by in a step, lr · weight_decay, stays as it is.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    factors: Mapping[str, float] | None = getattr(model, "lr_factors", None)
    if factors is None:
        return list(trained.values())
    lr = config.optimizer.get("lr")
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


def _check_fit(task: Task, model: nn.Module, optimizer: Optimizer) -> None:
    """Raise a UserError if the model cannot take the task's inputs, or the loss its outputs."""
    example = task.train.first(2)
    try:
        with evaluating(model, optimizer, task), torch.no_grad():
            task.loss(model(example.inputs), example.targets)
    except (RuntimeError, ValueError, TypeError, IndexError) as why:
        kind = "numbers" if example.inputs.is_floating_point() else "tokens"
        way_out = "" if kind == "numbers" else "; model=gpt takes tokens"
        line = " ".join(str(why).split())
        raise UserError(
            f"this model does not fit this task, whose inputs are {kind} of shape "
            f"{task.input_shape}{way_out} "
            f"({type(why).__name__}: {line})"
        ) from why


def _check_micro_batches(
    task: Task, model: nn.Module, optimizer: Optimizer, size: int | None, batch_size: int
) -> None:
    """Raise a UserError if the mean of the micro-batches' losses is not the loss of the batch."""
    if size is None or size >= batch_size:
        return
    with evaluating(model, optimizer, task), torch.no_grad():
        unweighted = replace(task, weight=None)
        if not is_mean_of_parts(unweighted, task.loss, model, task.train.first(batch_size), size):
            raise UserError(
                f"micro_batch_size={size} would train on another loss: the task's is not the mean "
                "over examples "
                "(class weights, ignored targets, a contrastive loss); say micro_batch_size=null"
            )


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
    )
