"""Can several processes share the examples of these batches, and train as one process would?"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from optbench.boundary.counting import counted
from optbench.curvature.isolation import kept_rng
from optbench.errors import UserError
from optbench.probes.generalization import evaluating, is_mean_of_parts
from optbench.run.loop import Parts
from optbench.run.update import Update

ONE = "; or start one process, without torchrun"


def check_shared(parts: Parts) -> None:
    """Refuse what several processes would not train as one process does; one process has no limit.

    Raises:
        UserError: If a batch has fewer examples than there are processes; if the model has a batch
            norm, draws random numbers or writes to its buffers in training; if the optimizer
            differentiates the gradient; or if the loss is not a mean over examples.
    """
    update, size = parts.update, parts.batches.size
    if update.ranks.size == 1:
        return
    processes = counted(update.ranks.size, "process")
    if size < update.ranks.size:
        raise UserError(
            f"batch_size={size} is below the {processes} that share a batch: say a larger one{ONE}"
        )
    _check_model(update.model, processes)
    if getattr(update.optimizer, "create_graph", False):
        raise UserError(
            f"{type(update.optimizer).__name__} differentiates the gradient, of which {processes} "
            f"have a part each: choose another optimizer{ONE}"
        )
    _check_passes(parts, processes)
    _check_mean(parts, math.ceil(size / update.ranks.size), processes)


def _check_model(model: nn.Module, processes: str) -> None:
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if norms:
        raise UserError(
            f"batch norm ({norms[0]}) takes the statistics of a batch, of which {processes} have a "
            f"part each: say model.norm=group or none{ONE}"
        )


def _check_passes(parts: Parts, processes: str) -> None:
    """Raise a UserError if a forward pass in train mode depends on more than its own examples."""
    task, update = parts.task, parts.update
    inputs = task.train.first(2).inputs
    with (
        evaluating(update.model, update.optimizer, task),
        kept_rng(inputs.device),
        torch.no_grad(),
    ):
        update.model.train()
        buffers = {name: b.detach().clone() for name, b in update.model.named_buffers()}
        before = _random_state(inputs.device)
        update.model(inputs)
        if not torch.equal(before, _random_state(inputs.device)):
            raise UserError(
                f"the model draws random numbers in training{_drawing(update)}, and {processes} "
                f"would draw others than one: say a dropout of 0{ONE}"
            )
        for name, buffer in update.model.named_buffers():
            if not torch.equal(buffer, buffers[name]):
                raise UserError(
                    f"the model writes what it sees of a batch to its buffer {name}, and "
                    f"{processes} see a part each: leave that out{ONE}"
                )


def _random_state(device: torch.device) -> Tensor:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def _drawing(update: Update) -> str:
    """Name the first dropout of the model, in brackets."""
    for name, module in update.model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f" ({name}: {type(module).__name__} of {module.p:g})"
    return ""


def _check_mean(parts: Parts, size: int, processes: str) -> None:
    """Raise a UserError if the mean of the losses of the processes' examples is another loss."""
    task, update = parts.task, parts.update
    batch = task.train.first(parts.batches.size)
    with evaluating(update.model, update.optimizer, task), torch.no_grad():
        unweighted = replace(task, weight=None)
        if not is_mean_of_parts(unweighted, task.loss, update.model, batch, size):
            raise UserError(
                f"{processes} would train on another loss than one: the task's is not the mean "
                "over examples (class weights, ignored targets, a contrastive loss): start one "
                "process, without torchrun"
            )
