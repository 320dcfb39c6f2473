"""What was built from a configuration, tried on the first examples: do its parts fit together?"""

from dataclasses import replace

import torch

from optbench.configuration.verify_shared import check_shared
from optbench.errors import UserError
from optbench.probes import check_cadences
from optbench.probes.generalization import evaluating, is_mean_of_parts
from optbench.run.loop import Parts


def verify(parts: Parts) -> None:
    """Refuse parts that do not fit together.

    Raises:
        UserError: If batch norm sees micro-batches, a probe has a cadence that nothing gives, the
            model cannot take the task's inputs, the loss cannot take the model's outputs, or the
            mean of the micro-batches' losses is another loss, or several processes cannot share the
            examples.
    """
    parts.update.check(parts.batches.size)
    check_cadences(parts.probes)
    _check_fit(parts)
    _check_micro_batches(parts)
    check_shared(parts)


def _check_fit(parts: Parts) -> None:
    """Raise a UserError if the model cannot take the task's inputs, or the loss its outputs."""
    task, model = parts.task, parts.update.model
    example = task.train.first(2)
    try:
        with evaluating(model, parts.update.optimizer, task), torch.no_grad():
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


def _check_micro_batches(parts: Parts) -> None:
    """Raise a UserError if the mean of the micro-batches' losses is not the loss of the batch."""
    task, model = parts.task, parts.update.model
    size, batch_size = parts.update.micro_batch_size, parts.batches.size
    if size is None or size >= batch_size:
        return
    with evaluating(model, parts.update.optimizer, task), torch.no_grad():
        unweighted = replace(task, weight=None)
        if not is_mean_of_parts(unweighted, task.loss, model, task.train.first(batch_size), size):
            raise UserError(
                f"micro_batch_size={size} would train on another loss: the task's is not the mean "
                "over examples "
                "(class weights, ignored targets, a contrastive loss); say micro_batch_size=null"
            )
