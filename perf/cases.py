"""Models, data and gradient-descent trajectories that the timings and the tests share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from optbench.tasks.cifar import FOLDER, read_images
from torch import Tensor, nn
from torch.nn.functional import one_hot

from optbench.curvature.chunks import Pair

DATA = Path(os.environ.get("OPTBENCH_DATA", "~/.cache/optbench")).expanduser()
CIFAR = DATA / FOLDER
"""Where the main job looks for CIFAR-10 too; set the environment variable OPTBENCH_DATA to move it."""


def half_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples of ½‖f(x) − y‖², the squared loss of the edge-of-stability literature."""
    return 0.5 * (outputs - targets).square().sum(-1).mean()


def mlp(*widths: int) -> nn.Sequential:
    """Fully connected tanh network with the given widths, input and output included."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def digits(count: int = 1000) -> Pair:
    """The first scikit-learn digits, centred and scaled, with one-hot targets; float32."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images[:count] / 16, dtype=torch.float32)
    return inputs - inputs.mean(0), one_hot(torch.tensor(labels[:count]), 10).float()


def cifar(count: int, one: bool = True) -> Pair:
    """The first CIFAR-10 training images, (count, 3, 32, 32), standardised; one-hot or labels."""
    images, labels = read_images(DATA, "train")
    inputs, targets = images[:count].float() / 255, labels[:count]
    inputs = (inputs - inputs.mean((0, 2, 3), keepdim=True)) / inputs.std((0, 2, 3), keepdim=True)
    return inputs, one_hot(targets, 10).float() if one else targets


def descend(model: nn.Module, data: Pair, lr: float, steps: int) -> Iterator[int]:
    """Full-batch gradient descent on the ½-MSE; yields the step count before each step."""
    parameters: list[Tensor] = list(model.parameters())
    for step in range(steps):
        yield step
        gradients = torch.autograd.grad(half_mse(model(data[0]), data[1]), parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-lr)


def digits_run(
    seed: int, lr: float = 0.5, steps: int = 1500
) -> tuple[nn.Module, Pair, Iterator[int]]:
    """The default digits run: 64-32-32-10 tanh, ½-MSE, full batch of 1000."""
    torch.manual_seed(seed)
    model, data = mlp(64, 32, 32, 10), digits()
    return model, data, descend(model, data, lr, steps)


def cifar_run(
    seed: int, lr: float = 0.02, steps: int = 1500, count: int = 1000
) -> tuple[nn.Module, Pair, Iterator[int]]:
    """A CIFAR-10 subset: tanh 3072-64-64-10 on flattened images, ½-MSE, full batch."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), *mlp(3072, 64, 64, 10))
    data = cifar(count)
    return model, data, descend(model, data, lr, steps)


class CNN(nn.Sequential):
    """Three convolutions with GroupNorm and tanh, pooled; 32 x 32 images to 10 outputs."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((3, 32, 64, 64)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.GroupNorm(4, after),
                nn.Tanh(),
                nn.AvgPool2d(2),
            ]
        super().__init__(*layers, nn.Flatten(), nn.Linear(1024, 10))


class ViT(nn.Module):
    """Patches of 4 x 4, width 64, two transformer layers, mean pooled; 32 x 32 images to 10 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, 4)
        self.position = nn.Parameter(0.02 * torch.randn(64, 64))
        layer = nn.TransformerEncoderLayer(
            64, 4, 128, dropout=0.0, activation="gelu", batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, 10)."""
        tokens = self.patches(x).flatten(2).mT + self.position
        out: Tensor = self.head(self.layers(tokens).mean(1))
        return out
