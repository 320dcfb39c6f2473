"""How the gradients of examples agree."""

import torch

from optbench.curvature.errors import MeasurementError
from optbench.lab import per_example
from optbench.lab.measures import measure
from optbench.lab.point import Point


@measure(
    meaning="Signal-to-noise ratio of the gradient",
    equation="mean over parameters of E[g_i]²/Var[g_i], over training examples",
    unit="1",
    invariant="yes",
    source="arXiv:2001.07384",
    cost="1 backward pass, example by example",
)
def gsnr(point: Point) -> float:
    """Parameters whose gradient is the same for all examples are left out."""
    mean, variance, _ = point.gradient_moments
    # relative to each parameter's own size, or rescaling would change which ones count
    varies = variance > 1e-12 * (variance + mean.square())
    if not bool(varies.any()):
        raise MeasurementError("no gradient varies over the examples")
    return float((mean[varies].square() / variance[varies]).mean())


@measure(
    meaning="Distance between the gradients of two batches",
    equation="mean over pairs of ten equal batches of ‖g_a − g_b‖",
    unit="loss per weight",
    invariant="no",
    source="arXiv:2107.06665",
    cost="as gsnr, which shares it",
)
def gradient_disparity(point: Point) -> float:
    """The batches are consecutive training examples.

    The loss is taken as it is. It has the unit of a gradient, so compare it at one training loss.
    """
    _, _, batches = point.gradient_moments
    if len(batches) < 2:
        raise MeasurementError("a disparity needs two batches")
    distances = torch.cdist(batches, batches, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances.sum() / (len(batches) * (len(batches) - 1)))


@measure(
    meaning="Alignment of the neural tangent kernel with the labels",
    equation="⟨HKH, HYYᵀH⟩/(‖HKH‖ ‖HYYᵀH‖), K_ij = Σ_c ⟨∂f_c(x_i)/∂w, ∂f_c(x_j)/∂w⟩, H centring",
    unit="1",
    invariant="no",
    source="arXiv:2008.00938; Cortes et al. (2012), arXiv:1203.0550, for the centring",
    cost="C backward passes of kernel_examples, example by example",
)
def ntk_alignment(point: Point) -> float:
    """Over the first `kernel_examples` training examples."""
    inputs = point.train.inputs[: point.kernel_examples]
    classes = point.classes()[: point.kernel_examples]
    with point.reading() as model:
        kernel = per_example.tangent_kernel(model, inputs)
    labels = torch.nn.functional.one_hot(classes).double()
    a, b = (k - k.mean(0) - k.mean(1, keepdim=True) + k.mean() for k in (kernel, labels @ labels.T))
    return float((a * b).sum() / (a.norm() * b.norm()))
