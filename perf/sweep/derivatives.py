"""Models that differentiate: own derivatives, gradients and transforms inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from perf.sweep.subject import Call, Recipe, function, layer


class Cube(torch.autograd.Function):
    """x³ with a gradient that torch can differentiate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Keep x, an input."""
        ctx.save_for_backward(x)
        y: Tensor = x**3
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """3 x² g."""
        (x,) = ctx.saved_tensors
        slope: Tensor = 3 * x**2 * g
        return slope


class OnceCube(Cube):
    """x³ whose author says that it has no second derivative."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """3 x² g."""
        (x,) = ctx.saved_tensors
        slope: Tensor = 3 * x**2 * g
        return slope


class ReversedCube(torch.autograd.Function):
    """x³ in the form that torch's transforms understand."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """x³."""
        y: Tensor = x**3
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep x."""
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """3 x² g."""
        (x,) = ctx.saved_tensors
        slope: Tensor = 3 * x**2 * g
        return slope


def applied(kind: type[torch.autograd.Function]) -> Recipe:
    """Recipe of a function with a derivative of its own."""
    return function(lambda z: kind.apply(z), 4)


def _energy(m: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return (2 * m(z)).sin().sum()


def _sampled(z: Tensor) -> Tensor:
    grid = z.transpose(1, 3).tanh()
    return torch.nn.functional.grid_sample(z, grid, align_corners=False)


def _slope(m: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(_energy(m, z), z, create_graph=True)
    return found


OWN_DERIVATIVES: dict[str, Recipe] = {
    "autograd.Function": applied(Cube),
    "autograd.Function once": applied(OnceCube),
    "autograd.Function setup_context": applied(ReversedCube),
}


def slope_of(make: Callable[[], nn.Module], *shape: int) -> Recipe:
    """Recipe of the gradient of a layer's energy in its input, as physics-informed models use it.

    The Hessian of a loss on it needs the layer's third derivative.
    """
    return layer(make, *shape, call=_slope, training=False)


THIRD_DERIVATIVES: dict[str, Recipe] = {
    "slope of Linear, Tanh": slope_of(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh()), 3),
    "slope of Sigmoid": slope_of(nn.Sigmoid, 4),
    "slope of Softplus": slope_of(nn.Softplus, 4),
    "slope of SiLU": slope_of(nn.SiLU, 4),
    "slope of GELU": slope_of(nn.GELU, 4),
    "slope of GELU tanh": slope_of(lambda: nn.GELU(approximate="tanh"), 4),
    "slope of Mish": slope_of(nn.Mish, 4),
    "slope of ELU": slope_of(nn.ELU, 4),
    "slope of CELU": slope_of(nn.CELU, 4),
    "slope of SELU": slope_of(nn.SELU, 4),
    "slope of LogSigmoid": slope_of(nn.LogSigmoid, 4),
    "slope of Softsign": slope_of(nn.Softsign, 4),
    "slope of Softmax": slope_of(lambda: nn.Softmax(1), 4),
    "slope of LogSoftmax": slope_of(lambda: nn.LogSoftmax(1), 4),
    "slope of LayerNorm": slope_of(lambda: nn.LayerNorm(4), 4),
    "slope of RMSNorm": slope_of(lambda: nn.RMSNorm(4), 4),
    "slope of GroupNorm": slope_of(lambda: nn.GroupNorm(2, 4), 4),
    "slope of InstanceNorm1d": slope_of(lambda: nn.InstanceNorm1d(2), 2, 4),
    "slope of BatchNorm1d eval": slope_of(lambda: nn.BatchNorm1d(3), 3),
    "slope of BatchNorm1d train": layer(lambda: nn.BatchNorm1d(3), 3, call=_slope),
    "slope of Conv2d": slope_of(lambda: nn.Sequential(nn.Conv2d(2, 2, 2), nn.Tanh()), 2, 3, 3),
    "slope of MultiheadAttention": layer(
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        3,
        4,
        call=lambda m, z: _slope(lambda x: m(x, x, x)[0], z),
        training=False,
    ),
    "slope of GRU": layer(
        lambda: nn.GRU(4, 3, batch_first=True), 3, 4, call=lambda m, z: _slope(lambda x: m(x)[0], z)
    ),
    "slope of LSTM": layer(
        lambda: nn.LSTM(4, 3, batch_first=True),
        3,
        4,
        call=lambda m, z: _slope(lambda x: m(x)[0], z),
    ),
    "slope of prod": function(lambda z: _slope(lambda x: x.prod(1), z), 4),
    "slope of cumprod": function(lambda z: _slope(lambda x: x.cumprod(1), z), 4),
    "slope of logsumexp": function(lambda z: _slope(lambda x: x.logsumexp(1), z), 4),
    "slope of norm": function(lambda z: _slope(lambda x: x.norm(dim=1) ** 3, z), 4),
    "slope of var": function(lambda z: _slope(lambda x: x.var(1).sqrt(), z), 4),
    "slope of inv": function(
        lambda z: _slope(lambda x: torch.linalg.inv(x + 3 * torch.eye(3)), z), 3, 3
    ),
    "slope of bilinear grid_sample": function(lambda z: _slope(_sampled, z), 2, 3, 3),
}


def smooth(call: Call) -> Recipe:
    """Recipe of a smooth network, called in some way."""
    return layer(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), 3, call=call)


def normed(call: Call) -> Recipe:
    """Recipe of a network with a layer norm, called in some way."""
    return layer(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)), 3, call=call
    )


def _stacked(m: nn.Module, z: Tensor) -> Tensor:
    parameters = {name: torch.stack([p, 2 * p]) for name, p in m.named_parameters()}
    run: Callable[..., Tensor] = lambda p, x: torch.func.functional_call(m, p, (x,))  # noqa: E731
    return torch.func.vmap(run, in_dims=(0, None))(parameters, z).transpose(0, 1)


TRANSFORMS: dict[str, Recipe] = {
    "func.vmap": smooth(lambda m, z: torch.func.vmap(m)(z)),
    "func.vmap of a norm": normed(lambda m, z: torch.func.vmap(m)(z)),
    "func.vmap over weights": smooth(_stacked),
    "func.grad": smooth(lambda m, z: torch.func.grad(lambda x: _energy(m, x))(z)),
    "func.grad of a norm": normed(lambda m, z: torch.func.grad(lambda x: _energy(m, x))(z)),
    "func.vjp": smooth(lambda m, z: torch.func.vjp(m, z)[1](z.sin())[0]),
    "func.jvp": smooth(lambda m, z: torch.func.jvp(m, (z,), (z.sin(),))[1]),
    "func.jacrev": smooth(lambda m, z: torch.func.vmap(torch.func.jacrev(m))(z)),
    "func.jacfwd": smooth(lambda m, z: torch.func.vmap(torch.func.jacfwd(m))(z)),
    "func.hessian": smooth(
        lambda m, z: torch.func.vmap(torch.func.hessian(lambda x: _energy(m, x)))(z)
    ),
    "func.functional_call": smooth(
        lambda m, z: torch.func.functional_call(
            m, {n: p.sin() for n, p in m.named_parameters()}, (z,)
        )
    ),
}

CASES = OWN_DERIVATIVES | THIRD_DERIVATIVES | TRANSFORMS
