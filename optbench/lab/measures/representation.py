"""What the last hidden features look like: rank, and neural collapse."""

import torch
from torch import Tensor

from optbench.curvature.errors import MeasurementError
from optbench.lab.measures import measure
from optbench.lab.point import Point


def _shares(point: Point) -> Tensor:
    """σ²/Σσ² of the features' singular values."""
    squares = torch.linalg.svdvals(point.features.double()).square()
    if not squares.sum() > 0:
        raise MeasurementError("all features are 0")
    shares: Tensor = squares / squares.sum()
    return shares


@measure(
    meaning="Effective rank of the last hidden features",
    equation="exp H(p), p = σ²/Σσ² of the features (N, H), not centred",
    unit="dimensions",
    invariant="global scale only",
    source="Roy & Vetterli (2007), there with p = σ/Σσ",
    cost="1 forward, and singular values of N x H",
)
def effective_rank(point: Point) -> float:
    """The exponential of the entropy of p."""
    p = _shares(point)
    return float(torch.special.entr(p).sum().exp())


@measure(
    meaning="Participation ratio of the last hidden features",
    equation="(Σσ²)²/Σσ⁴",
    unit="dimensions",
    invariant="global scale only",
    source="Gao et al. (2017), doi:10.1101/214262",
    cost="as effective_rank",
)
def participation_ratio(point: Point) -> float:
    """1/Σp²."""
    return float(1 / _shares(point).square().sum())


def _class_means(point: Point) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, H), class means (C, H), and the class of each example (N,)."""
    phi, classes = point.features.double(), point.classes()
    count = int(point.logits.shape[1])
    sizes = torch.bincount(classes, minlength=count)
    if bool((sizes == 0).any()):
        raise MeasurementError("a class has no training example")
    sums = phi.new_zeros(count, phi.shape[1]).index_add_(0, classes, phi)
    return phi, sums / sizes[:, None], classes


@measure(
    meaning="Neural collapse 1: spread within classes over that between them",
    equation="tr(Σ_W Σ_B⁺)/C",
    unit="1",
    invariant="global scale only",
    source="arXiv:2008.08186",
    cost="1 forward",
)
def nc1(point: Point) -> float:
    """tr(Σ_W Σ_B⁺)/C, Σ_B the covariance of the class means."""
    phi, means, classes = _class_means(point)
    count, centred, within = len(means), means - means.mean(0), phi - means[classes]
    sigma_w = within.T @ within / len(phi)
    sigma_b = centred.T @ centred / count
    # singular values below 1e-10 of the largest are rounding: Σ_B has rank C − 1 at most
    return float((sigma_w @ torch.linalg.pinv(sigma_b, rtol=1e-10, hermitian=True)).trace()) / count


@measure(
    meaning="Neural collapse 2: how far the class means are from a simplex",
    equation="mean over c ≠ c' of |cos(μ_c − μ, μ_c' − μ) + 1/(C − 1)|",
    unit="1",
    invariant="global scale only",
    source="arXiv:2008.08186 (equiangularity)",
    cost="1 forward",
)
def nc2(point: Point) -> float:
    """0 for a simplex equiangular tight frame."""
    _, means, _ = _class_means(point)
    centred = means - means.mean(0)
    unit = torch.nn.functional.normalize(centred, dim=1)
    count = len(unit)
    apart = (unit @ unit.T + 1 / (count - 1)).abs()
    return float((apart.sum() - apart.diagonal().sum()) / (count * (count - 1)))


@measure(
    meaning="Neural collapse 3: distance of the last layer from the class means",
    equation="‖W/‖W‖_F − M/‖M‖_F‖²_F, M the centred class means",
    unit="1",
    invariant="global scale only",
    source="arXiv:2008.08186 (self-duality)",
    cost="1 forward",
)
def nc3(point: Point) -> float:
    """0 where the last layer is proportional to the class means, 4 where opposite."""
    _, means, _ = _class_means(point)
    centred = means - means.mean(0)
    weight = point.last_layer.weight.detach().double()
    if weight.shape != centred.shape:
        raise MeasurementError("the last linear layer has not one row for each class")
    return float((weight / weight.norm() - centred / centred.norm()).square().sum())


@measure(
    meaning="Neural collapse 4: how often the network and the nearest class mean disagree",
    equation="share of training examples with argmax f ≠ argmin_c ‖φ − μ_c‖",
    unit="1",
    invariant="global scale only",
    source="arXiv:2008.08186",
    cost="1 forward",
)
def nc4(point: Point) -> float:
    """The share of disagreement."""
    phi, means, _ = _class_means(point)
    nearest = torch.cdist(phi, means).argmin(1)
    return float((nearest != point.logits.argmax(1)).double().mean())
