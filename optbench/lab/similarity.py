"""How far two networks are apart in what they compute inside: features, and sensitive inputs."""

from torch import Tensor

from optbench.curvature.errors import MeasurementError
from optbench.lab.point import Point


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same examples, in [0, 1].

        ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F),    columns centred

    1 for features that are equal up to rotation and one scale.

    Args:
        x: (N, H).
        y: (N, K).

    References:
        Kornblith et al. (2019), arXiv:1905.00414.

    Raises:
        MeasurementError: If features are the same for all examples.
    """
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    scale = float((x.T @ x).norm() * (y.T @ y).norm())
    if not scale > 0:
        raise MeasurementError("features that are the same for all examples have no alignment")
    return float((y.T @ x).square().sum()) / scale


def feature_distance(point: Point, other: Point) -> float:
    """1 − linear CKA of the last hidden features at the training inputs."""
    return 1 - linear_cka(point.features, other.features)


def outer_product_distance(point: Point, other: Point) -> float:
    """1 − cos(G, G'), G = E ∂f/∂xᵀ ∂f/∂x (AGOP): which directions of input space matter.

    References:
        Radhakrishnan et al. (2022), arXiv:2212.13881.

    Raises:
        MeasurementError: If inputs are tokens or too large, or a function is constant.
    """
    a, b = (p.gradient_outer_product.double() for p in (point, other))
    scale = float(a.norm() * b.norm())
    if not scale > 0:
        raise MeasurementError("a constant function has no sensitive direction")
    return 1 - float((a * b).sum()) / scale
