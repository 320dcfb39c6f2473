"""What a case measures, and short ways to make one of a layer, a function or a loss.

Every maker returns a recipe: a function without arguments that makes the same subject whenever the
generators start alike. The sweep makes each subject twice, for optbench and for the reference.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optbench.data.torchvision import import_datasets

BATCH = 4
CLASSES = 3

Loss = Callable[[Any, Tensor], Tensor]
Call = Callable[[Any, Tensor], Any]
Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Subject:
    """A model with its loss and its data, all in float64."""

    model: nn.Module
    loss: Loss
    inputs: Tensor
    targets: Tensor


Recipe = Callable[[], Subject]


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the mean of (f − t)²: its Hessian sees f' and f''."""
    return (outputs - targets).square().mean() / 2


class Through(nn.Module):
    """x ↦ call(inner, scale ⊙ x + shift): what has no parameters is then bent by those in front."""

    def __init__(self, inner: nn.Module, shape: Iterable[int], call: Call) -> None:
        super().__init__()
        self.inner, self.call = inner, call
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(*shape))
        self.shift = nn.Parameter(0.3 * torch.randn(*shape))

    def forward(self, x: Tensor) -> Any:
        """Scale, shift, call."""
        return self.call(self.inner, self.scale * x + self.shift)


class Calls(nn.Module):
    """x ↦ call(inner, x): for a model whose inputs or outputs are not one tensor."""

    def __init__(self, inner: nn.Module, call: Call) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, x: Tensor) -> Any:
        """Call."""
        return self.call(self.inner, x)


def plainly(module: nn.Module, x: Tensor) -> Any:
    """Call the module on x."""
    return module(x)


def first(module: nn.Module, x: Tensor) -> Any:
    """Call the module on x, and keep the first of its outputs."""
    return module(x)[0]


def layer(make: Make, *shape: int, call: Call = plainly, training: bool = True) -> Recipe:
    """Recipe of a layer on real inputs of this shape, behind a learnt scale and shift."""

    def recipe() -> Subject:
        inner = disturbed(make().double())
        model = Through(inner, shape, call).double().train(training)
        return squared(model, torch.randn(BATCH, *shape, dtype=torch.float64))

    return recipe


def function(f: Callable[[Tensor], Tensor], *shape: int) -> Recipe:
    """Recipe of a function without parameters, on inputs that are scaled and shifted."""
    return layer(nn.Identity, *shape, call=lambda _, z: f(z))


def tokens(
    make: Make,
    vocabulary: int,
    length: int,
    call: Call = plainly,
    training: bool = True,
    batch: int = BATCH,
) -> Recipe:
    """Recipe of a model that reads token numbers below `vocabulary`."""

    def recipe() -> Subject:
        model = Calls(disturbed(make().double()), call).train(training)
        return squared(model, torch.randint(0, vocabulary, (batch, length)))

    return recipe


def images(
    make: Make, *shape: int, call: Call = plainly, training: bool = True, batch: int = 2
) -> Recipe:
    """Recipe of a classifier of images, measured by its cross-entropy."""

    def recipe() -> Subject:
        model = Calls(disturbed(make().double()), call).train(training)
        inputs = torch.randn(batch, *shape, dtype=torch.float64)
        return Subject(model, F.cross_entropy, inputs, torch.arange(batch) % CLASSES)

    return recipe


def loss_of(loss: Loss, width: int, targets: Callable[[], Tensor], *, batch: int = 5) -> Recipe:
    """Recipe of a loss on the outputs, shape (batch, width), of a small network."""

    def recipe() -> Subject:
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, width)).double()
        at = torch.randn(batch, 3, dtype=torch.float64)
        return Subject(model, loss, at, targets())

    return recipe


def squared(model: nn.Module, inputs: Tensor) -> Subject:
    """A model under `half_square`, with random targets of the shape of its outputs."""
    with torch.random.fork_rng():
        outputs = copy_of(model)(inputs).detach()
    return Subject(model, half_square, inputs, torch.randn_like(outputs))


def disturbed(module: nn.Module, size: float = 0.1) -> nn.Module:
    """The module, no weight left at a special value such as 0 or 1."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn_like(p))
    return module


def copy_of(model: nn.Module) -> nn.Module:
    """A copy to be run, where one can be made; else the model itself, with its statistics moved."""
    try:
        return copy.deepcopy(model)
    except (
        RuntimeError,
        TypeError,
        NotImplementedError,
    ):  # weights that are computed, scripted code
        return model


def package(name: str) -> Any:
    """A package that may need torchvision, which is imported first in optbench's way."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    import_datasets()
    return importlib.import_module(name)
