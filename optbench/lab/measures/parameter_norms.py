"""Norms of weights, of paths, and of the loss's response to the outputs."""

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _NormBase

from optbench.curvature.errors import MeasurementError
from optbench.lab import per_example
from optbench.lab.measures import measure
from optbench.lab.point import Point

PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Flatten, nn.Dropout, nn.MaxPool2d)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@measure(
    meaning="Euclidean norm of all trained weights",
    equation="‖w‖",
    unit="weight",
    invariant="no",
    source="arXiv:1912.02178",
    cost="none",
)
def weight_norm(point: Point) -> float:
    """‖w‖."""
    return float(point.weights.double().norm())


@measure(
    meaning="Euclidean norm of the training loss's gradient",
    equation="‖∇L(w)‖",
    unit="loss per weight",
    invariant="no",
    source="arXiv:2202.03599",
    cost="1 gradient",
)
def gradient_norm(point: Point) -> float:
    """‖∇L‖."""
    return float(point.value_and_gradient[1].double().norm())


@measure(
    meaning="Path norm: all products of weights along a path from an input to an output",
    equation="√Σ_paths Π w², biases as weights of an input of 1",
    unit="output per input",
    invariant="yes",
    source="arXiv:1912.02178, appendix C (from Neyshabur et al. 2015, arXiv:1506.02617)",
    cost="1 forward of one input",
)
def path_norm(point: Point) -> float:
    """The outputs' sum at an input of ones with squared weights, then the root.

    The repository of arXiv:2010.11924 takes no root here, and later that of the sum over N.

    Raises:
        MeasurementError: If the network is not one of linear layers and ReLUs.
    """
    for module in point.model.modules():
        own = not list(module.children())
        if own and not isinstance(module, (*PIECEWISE_LINEAR, *LINEAR)):
            raise MeasurementError(
                f"a path norm is of linear layers and ReLUs, and this is {type(module).__name__}"
            )
    ones = torch.ones_like(point.train.inputs[:1], dtype=torch.float64)
    with point.reading() as model, torch.no_grad():
        squared = {name: p.detach().double().square() for name, p in model.named_parameters()}
        return float(functional_call(model, squared, (ones,)).sum().sqrt())


@measure(
    meaning="Squared Fisher-Rao norm: how each example's loss responds to scaling all weights",
    equation="E⟨w, ∂ℓ/∂w⟩²; with L + 1 layers, homogeneous: (L + 1)² E⟨∂ℓ/∂f, f⟩²",
    unit="loss²",
    invariant="yes",
    source="arXiv:1711.01530; the second form is theorem 3.1",
    cost="1 forward with its derivative along the weights",
)
def fisher_rao_norm(point: Point) -> float:
    """E⟨∂ℓ/∂f, J w⟩², J = ∂f/∂w, by the definition: biases and smooth activations are as they are.

    Raises:
        MeasurementError: If a norm layer makes the network not homogeneous in its weights.
    """
    modules = list(point.model.modules())
    if any(isinstance(m, (_NormBase, nn.LayerNorm, nn.GroupNorm)) for m in modules):
        raise MeasurementError("with norm layers the outputs are not homogeneous in the weights")
    loss, targets = point.task.loss, point.train.targets
    with point.reading() as model:
        logits, change = per_example.along_weights(model, point.train.inputs)
    slopes = vmap(grad(lambda f, y: loss(f[None], y[None])))(logits.double(), targets)
    inner = (slopes * change.double()).flatten(1).sum(1)
    return float(inner.square().mean())
