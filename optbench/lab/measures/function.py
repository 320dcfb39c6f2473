"""Properties of the function: input Jacobian, margin, alignment with what the weights see."""

import torch
from torch import nn

from optbench.curvature.errors import MeasurementError
from optbench.lab.measures import measure
from optbench.lab.point import Point


@measure(
    meaning="Squared norm of the input Jacobian at training inputs",
    equation="E_train ‖∂f/∂x‖²_F",
    unit="output² per input²",
    invariant="yes",
    source="arXiv:1802.08760",
    cost="C backward passes",
)
def input_jacobian_train(point: Point) -> float:
    """E‖∂f/∂x‖²_F over the training inputs."""
    return point.input_jacobian_train


@measure(
    meaning="Squared norm of the input Jacobian at test inputs",
    equation="E_test ‖∂f/∂x‖²_F",
    unit="output² per input²",
    invariant="yes",
    source="arXiv:1802.08760; labels are not used",
    cost="C backward passes of the test examples",
)
def input_jacobian_test(point: Point) -> float:
    """E‖∂f/∂x‖²_F over the test inputs."""
    return point.input_jacobian_test


@measure(
    meaning="Margin: how far the right output is ahead, of the tenth of examples that come last",
    equation="10th percentile over training examples of (f_y − max_{c≠y} f_c)/rms(f)",
    unit="1",
    invariant="yes",
    source="arXiv:1912.02178, appendix C (there without the scale)",
    cost="1 forward",
)
def margin(point: Point) -> float:
    """The 10th percentile of the margins over the outputs' scale.

    The percentile is interpolated. The repository of arXiv:2010.11924, which repeats the study,
    takes the n/10-th smallest margin without a scale, and 1/margin².
    """
    classes, logits = point.classes(), point.logits.double()
    right = logits.gather(1, classes[:, None]).squeeze(1)
    best_other = logits.scatter(1, classes[:, None], -torch.inf).amax(1)
    return float((right - best_other).quantile(0.1)) / point.logit_scale


@measure(
    meaning="Alignment of the first layer's Gram matrix with the mean outer product of gradients",
    equation="corr(W₁ᵀW₁, E ∂f/∂xᵀ ∂f/∂x) over their entries, at training inputs",
    unit="1",
    invariant="global scale only",
    source="arXiv:2306.04815",
    cost="C backward passes",
)
def agop_alignment(point: Point) -> float:
    """Pearson's correlation of the entries; it does not see a factor on W₁.

    Rescaling single neurons moves it. The authors' repository correlates W₁ᵀW₁ with the square root
    of the outer product, and takes W₁ less its initial values; here both are as they are.

    Raises:
        MeasurementError: If the first layer with weights is not linear in the whole input.
    """
    size = point.train.inputs[0].numel()
    with point.reading() as model:
        first = next((m for m in model.modules() if not list(m.children()) and _weight(m)), None)
        if not isinstance(first, nn.Linear) or first.in_features != size:
            raise MeasurementError("the first layer is not linear in the whole input")
        weight = first.weight.detach().clone().double()
    pair = torch.stack([(weight.T @ weight).flatten(), point.gradient_outer_product.flatten()])
    return float(torch.corrcoef(pair)[0, 1])


def _weight(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
