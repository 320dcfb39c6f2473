"""Quantities of each example: outputs, features, gradients and input Jacobians, in chunks.

Everything goes through `torch.func`: the model is called with its parameters as arguments, and is
never changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from optbench.curvature.errors import MeasurementError
from optbench.task import Loss

MEMORY = 2**27
"""Bytes that the per-example quantities of one chunk may take."""


def outputs(model: nn.Module, inputs: Tensor, chunk: int = 4096) -> Tensor:
    """Return f(x), (N, C), as the model is now."""
    with torch.no_grad():
        return torch.cat([model(x) for x in inputs.split(chunk)])


def last_layer(model: nn.Module) -> nn.Linear:
    """Return the last linear module: what stands before it are the features.

    Raises:
        MeasurementError: If there is none.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise MeasurementError("the model has no linear layer, so no features before the last one")
    return linear[-1]


def features(model: nn.Module, inputs: Tensor, chunk: int = 4096) -> Tensor:
    """Return the inputs of the last linear layer, (N, H).

    Raises:
        MeasurementError: If there is no linear layer, or it sees other than one row an example.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(given[0].detach())

    handle = last_layer(model).register_forward_pre_hook(keep)
    try:
        outputs(model, inputs, chunk)
    finally:
        handle.remove()
    found = torch.cat(seen)
    if found.ndim != 2 or len(found) != len(inputs):
        raise MeasurementError(
            f"the last linear layer sees {tuple(found.shape)} for {len(inputs)} inputs, and "
            "not one row of features for each"
        )
    return found


def gradients(model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """Yield ∇ℓ(f(x_i), y_i) as rows (n, P), in chunks of bounded memory.

    Raises:
        MeasurementError: If an example's loss depends on the others (batch norm in train mode).
    """
    _check_apart(model)
    parameters = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    buffers = dict(model.named_buffers())

    def of_one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, (weights, buffers), (x[None],)), y[None])

    each = vmap(grad(of_one), in_dims=(None, 0, 0), randomness="different")
    size = sum(p.numel() for p in parameters.values())
    step = max(1, MEMORY // (size * inputs.element_size() * 3))
    with for_each():
        for x, y in zip(inputs.split(step), targets.split(step), strict=True):
            rows = each(parameters, x, y)
            yield torch.cat([rows[name].flatten(1) for name in parameters], 1)


def along_weights(model: nn.Module, inputs: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Return f(x), (N, C), and its derivative along the trained weights themselves, J w.

    J w = d/ds f(x; s w) at s = 1. A homogeneous network of degree k has J w = k f.
    """
    weights = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    buffers = dict(model.named_buffers())
    values, changes = list[Tensor](), list[Tensor]()
    with for_each(), torch.no_grad():
        for x in inputs.split(chunk):

            def of_weights(w: dict[str, Tensor], x: Tensor = x) -> Tensor:
                found: Tensor = functional_call(model, (w, buffers), (x,))
                return found

            value, change = jvp(of_weights, (weights,), (weights,))[:2]
            values.append(value)
            changes.append(change)
    return torch.cat(values), torch.cat(changes)


def tangent_kernel(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return K_ij = Σ_c ⟨∂f_c(x_i)/∂w, ∂f_c(x_j)/∂w⟩, (N, N), in double precision.

    1. Take one output at a time, so that its Jacobian has N rows of P numbers.
    2. Cut the rows into blocks that fit in memory, and multiply all pairs of blocks. A model that
       takes B blocks has its Jacobian computed (B + 1)/2 times.

    Raises:
        MeasurementError: As for `gradients`.
    """
    _check_apart(model)
    parameters = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    buffers = dict(model.named_buffers())

    def of_one(weights: dict[str, Tensor], x: Tensor, place: Tensor) -> Tensor:
        outputs: Tensor = functional_call(model, (weights, buffers), (x[None],))
        return outputs.flatten().gather(0, place).sum()

    each = vmap(grad(of_one), in_dims=(None, 0, None), randomness="different")

    def rows(x: Tensor, place: Tensor) -> Tensor:
        slopes = each(parameters, x, place)
        return torch.cat([slopes[name].flatten(1) for name in parameters], 1)

    with torch.no_grad():
        width = model(inputs[:1]).numel()
    size = sum(p.numel() for p in parameters.values())
    blocks = inputs.split(
        max(1, MEMORY // (size * next(iter(parameters.values())).element_size() * 3))
    )
    kernel = torch.zeros(len(inputs), len(inputs), dtype=torch.float64, device=inputs.device)
    starts = [0]
    for block in blocks:
        starts.append(starts[-1] + len(block))
    with for_each():
        for c in range(width):
            place = torch.tensor([c], device=inputs.device)
            for i, first in enumerate(blocks):
                left = rows(first, place)
                for j, second in enumerate(blocks[: i + 1]):
                    right = left if i == j else rows(second, place)
                    product = (left @ right.T).double()
                    kernel[starts[i] : starts[i + 1], starts[j] : starts[j + 1]] += product
    # the blocks above the diagonal are those below it, transposed
    return torch.tril(kernel) + torch.tril(kernel, -1).T


def input_jacobians(model: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """Yield ∂f(x_i)/∂x as (n, C, D), D the numbers of one input, in chunks.

    Raises:
        MeasurementError: If inputs are tokens, or an output depends on other examples.
    """
    _check_apart(model)
    if not inputs.is_floating_point():
        raise MeasurementError("inputs are tokens, which have no derivative")
    state = {k: p.detach() for k, p in model.named_parameters()} | dict(model.named_buffers())

    def of_one(x: Tensor) -> Tensor:
        found: Tensor = functional_call(model, state, (x[None],))[0]
        return found.flatten()

    each: Callable[[Tensor], Tensor] = vmap(jacrev(of_one), randomness="different")
    with torch.no_grad():
        width = model(inputs[:1]).numel()
    row = inputs[0].numel() * width * inputs.element_size()
    with for_each():
        for x in inputs.split(max(1, MEMORY // (8 * row))):
            yield each(x).flatten(2)


@contextmanager
def for_each() -> Iterator[None]:
    """Context for derivatives example by example, with what a model cannot do said in a sentence.

    Fused attention has no derivative under `vmap`, so the plain one is used.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as why:
        first = str(why).partition("\n")[0]
        raise MeasurementError(
            f"torch.func cannot take this model example by example ({first})"
        ) from why


def _check_apart(model: nn.Module) -> None:
    if any(isinstance(m, _BatchNorm) and m.training for m in model.modules()):
        raise MeasurementError(
            "batch norm in train mode makes an example's output depend on the others of its batch"
        )
