"""Quantities of each example: outputs, features, gradients and input Jacobians, in chunks.

Everything goes through `torch.func`: the model is called with its parameters as arguments, and is
never changed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
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
    with sdpa_kernel(SDPBackend.MATH):
        for x, y in zip(inputs.split(step), targets.split(step), strict=True):
            rows = each(parameters, x, y)
            yield torch.cat([rows[name].flatten(1) for name in parameters], 1)


def parameter_jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return ∂f_c(x_i)/∂w, (N, C, P).

    Raises:
        MeasurementError: As for `gradients`.
    """
    _check_apart(model)
    parameters = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    buffers = dict(model.named_buffers())

    def of_one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(model, (weights, buffers), (x[None],))[0]
        return found

    with sdpa_kernel(SDPBackend.MATH):
        rows = vmap(jacrev(of_one), in_dims=(None, 0), randomness="different")(parameters, inputs)
    return torch.cat([rows[name].flatten(2) for name in parameters], 2)


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
    with sdpa_kernel(SDPBackend.MATH):
        for x in inputs.split(max(1, MEMORY // (8 * row))):
            yield each(x).flatten(2)


def _check_apart(model: nn.Module) -> None:
    if any(isinstance(m, _BatchNorm) and m.training for m in model.modules()):
        raise MeasurementError(
            "batch norm in train mode makes an example's output depend on the others of its batch"
        )
