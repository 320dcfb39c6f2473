"""Models that do more than call layers: checkpoints, compiled code, noise, side effects."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Dirichlet, Gamma, Normal
from torch.nn.utils import parameters_to_vector
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from perf.sweep.subject import Call, Recipe, Subject, function, half_square, layer, squared


def on_network(call: Call, training: bool = True) -> Recipe:
    """Recipe of a small network with a norm and dropout, called in some way."""
    return layer(_network, 3, call=call, training=training)


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Dropout(0.3), nn.Linear(4, 2)
    )


CHECKPOINTS: dict[str, Recipe] = {
    "checkpoint": on_network(lambda m, z: checkpoint(m, z, use_reentrant=False)),
    "checkpoint reentrant": on_network(lambda m, z: checkpoint(m, z, use_reentrant=True)),
    "checkpoint_sequential": on_network(
        lambda m, z: checkpoint_sequential(m, 2, z, use_reentrant=False)
    ),
    "checkpoint of batch norm": layer(
        lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh()),
        3,
        call=lambda m, z: checkpoint(m, z, use_reentrant=False),
    ),
}


def compiled(backend: str) -> Recipe:
    """Recipe of a network of which the inner part is compiled."""

    def make() -> nn.Module:
        inner: Any = torch.compile(
            nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), backend=backend
        )
        return nn.Sequential(inner, nn.Linear(4, 2))

    return layer(make, 3)


def _compiled_whole() -> Subject:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    whole: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    inputs = torch.randn(4, 3, dtype=torch.float64)
    return Subject(whole, half_square, inputs, torch.randn(4, 2, dtype=torch.float64))


def _scripted() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).double()
    found: nn.Module = torch.jit.script(network)
    return found


def _traced() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    found: nn.Module = torch.jit.trace(network, torch.randn(4, 3).double())
    return found


def _exported() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.SiLU(), nn.Linear(4, 2)).double()
    return torch.fx.symbolic_trace(network)


COMPILED: dict[str, Recipe] = {
    "compile, eager": compiled("eager"),
    "compile, aot_eager": compiled("aot_eager"),
    "compile of the whole": _compiled_whole,
    "jit.script": layer(_scripted, 3),
    "jit.trace": layer(_traced, 3),
    "fx": layer(_exported, 3),
}

DISTRIBUTIONS: dict[str, Recipe] = {
    "Normal.rsample": function(lambda z: Normal(z, z.exp()).rsample().sin(), 4),
    "Normal.log_prob": function(lambda z: Normal(z.sin(), z.exp()).log_prob(z.flip(1)), 4),
    "Gamma.rsample": function(lambda z: Gamma(z.exp() + 1, torch.ones_like(z)).rsample(), 4),
    "Beta.log_prob": function(
        lambda z: Beta(z.exp(), 1 + z.exp()).log_prob(z.flip(1).sigmoid()), 4
    ),
    "Dirichlet.rsample": function(lambda z: Dirichlet(z.exp() + 1).rsample(), 4),
}


class Counting(nn.Module):
    """A model with a buffer and an attribute that it writes at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(3, 2), 0
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        """Use the running mean, then move it, as a user's own norm does."""
        self.calls += 1
        y: Tensor = self.linear(x).tanh()
        assert isinstance(self.mean, Tensor)
        centred = y * y - self.mean
        with torch.no_grad():
            self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return centred


class Listed(nn.Module):
    """Weights in a list and in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.list = nn.ParameterList([torch.randn(3, 3), torch.randn(3)])
        self.dict = nn.ParameterDict({"scale": torch.randn(3), "unused": torch.randn(2)})

    def forward(self, x: Tensor) -> Tensor:
        """Use all but one of them."""
        y: Tensor = (x @ self.list[0] + self.list[1]).tanh() * self.dict["scale"]
        return y


class Clamped(nn.Module):
    """A model that clamps its own weight in place at every call, as weight clipping does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Clip, then use."""
        with torch.no_grad():
            self.linear.weight.clamp_(-0.3, 0.3)
        y: Tensor = self.linear(x).tanh()
        return y


def whole(make: Callable[[], nn.Module]) -> Recipe:
    """Recipe of a model that reads three numbers."""
    return lambda: squared(make(), torch.randn(4, 3, dtype=torch.float64))


def _numpy_noise(m: nn.Module, z: Tensor) -> Tensor:
    noise = float(np.random.rand()) + random.random()  # noqa: NPY002  as users' models draw
    y: Tensor = m(z * noise)
    return y


def _plateau(m: nn.Module, z: Tensor) -> Tensor:
    y: Tensor = m(z)
    return y if float(parameters_to_vector(m.parameters()).norm()) > 1e3 else y.sin()


USERS: dict[str, Recipe] = {
    "buffer written at every call": whole(lambda: Counting().double()),
    "ParameterList and ParameterDict": whole(lambda: Listed().double()),
    "weights clipped at every call": whole(lambda: Clamped().double()),
    "NumPy's and Python's noise": on_network(_numpy_noise),
    "branch on the weights": on_network(_plateau),
    "weights changed by .data": on_network(lambda m, z: (m[0].weight.data.mul_(1.0), m(z))[1]),
}

CASES = CHECKPOINTS | COMPILED | DISTRIBUTIONS | USERS
