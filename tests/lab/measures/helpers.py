from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optbench import lab
from optbench.lab import Point, Reading
from optbench.task import Split, Task, cross_entropy, error_of_classes, half_mse

N, D, H, C = 60, 5, 7, 3


def task_of(loss: str = "ce", inputs: Tensor | None = None) -> Task:
    """60 examples of 5 numbers in 3 classes, in double precision."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, D, generator=generator).double() if inputs is None else inputs
    y = torch.arange(len(x)) % C
    targets = y if loss == "ce" else F.one_hot(y, C).double()
    criterion = cross_entropy if loss == "ce" else half_mse
    error = error_of_classes if loss == "ce" else None
    return Task(Split(x, targets), None, Split(x + 0.1, targets), C, criterion, error)


def two_layers(activation: nn.Module | None = None, seed: int = 0) -> nn.Sequential:
    """A float64 network 5-7-3 with biases."""
    torch.manual_seed(seed)
    activation = activation or nn.ReLU()
    return nn.Sequential(nn.Linear(D, H), activation, nn.Linear(H, C)).double()


def linear(model: nn.Sequential, place: int) -> nn.Linear:
    """The layer at a place, which must be linear."""
    layer = model[place]
    assert isinstance(layer, nn.Linear)
    return layer


def rescaled(model: nn.Sequential, factors: Tensor) -> tuple[nn.Sequential, Tensor]:
    """The same function with hidden neuron j scaled by a_j; and d, with w' = d w, (P,)."""
    twin = copy.deepcopy(model)
    scales = copy.deepcopy(model)
    with torch.no_grad():
        for p in scales.parameters():
            p.fill_(1)
        for net in (twin, scales):
            linear(net, 0).weight.mul_(factors[:, None])
            linear(net, 0).bias.mul_(factors)
            linear(net, 2).weight.div_(factors)
    return twin, nn.utils.parameters_to_vector(scales.parameters()).detach()


def reading(point: Point, name: str) -> Reading:
    return lab.measure(point, [name])[name]


def value(point: Point, name: str) -> float:
    found = reading(point, name)
    assert found.reason is None, found.reason
    return found.value
