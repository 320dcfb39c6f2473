"""Relative flatness of the last layer, exactly."""

import torch
from torch import Tensor
from torch.func import hessian, vmap

from optbench.curvature.errors import MeasurementError
from optbench.lab.measures import measure
from optbench.lab.point import Point


@measure(
    meaning="Relative flatness of the last layer: curvature in units of its own weights",
    equation="Σ_ss' ⟨w_s, w_s'⟩ tr H_ss', H_ss' = ∂²L/∂w_s ∂w_s' for the rows w of the last layer",
    unit="loss",
    invariant="global scale only",
    source="arXiv:2001.00939, definition 3",
    cost="1 forward, and an N x C x C array",
)
def relative_flatness(point: Point) -> float:
    """Σ_ss' ⟨w_s, w_s'⟩ E[A_ss' ‖φ‖²], with A = ∂²ℓ/∂f² of each example and φ its features.

    Rescaling single neurons moves it: the products ⟨w_s, w_s'⟩ and ‖φ‖² weigh neurons differently.

    It is exact: f = Wφ + b gives H_ss' = E[A_ss' φφᵀ]. The loss is that of outputs in eval mode.

    Raises:
        MeasurementError: If the last linear layer does not give the outputs.
    """
    layer = point.last_layer
    phi, logits = point.features, point.logits
    with torch.no_grad():
        again = layer(phi)
    if again.shape != logits.shape or not torch.allclose(again, logits, rtol=1e-3, atol=1e-5):
        raise MeasurementError("the outputs are not those of the last linear layer")

    def of_one(output: Tensor, target: Tensor) -> Tensor:
        return point.task.loss(output[None], target[None])

    curvature = vmap(hessian(of_one))(logits.double(), point.train.targets)  # A, (N, C, C)
    weight = layer.weight.detach().double()
    gram = weight @ weight.T
    squares = phi.double().square().sum(1)
    return float(torch.einsum("nst,st,n->", curvature, gram, squares) / len(phi))
