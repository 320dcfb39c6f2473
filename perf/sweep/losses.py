"""Losses of torch, as modules and as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perf.sweep.subject import Loss, Recipe, Subject, loss_of

N, C = 5, 3
WEIGHTS = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)


def real(width: int = C) -> Callable[[], Tensor]:
    """Targets: normal numbers."""
    return lambda: torch.randn(N, width, dtype=torch.float64)


def classes() -> Tensor:
    """Targets: one class an example."""
    return torch.tensor([0, 1, 2, 1, 0])


def ignored() -> Tensor:
    """Targets: classes, of which some do not count."""
    return torch.tensor([0, -100, 2, 1, -100])


def binary() -> Tensor:
    """Targets: zeros and ones."""
    return torch.randint(0, 2, (N, C)).double()


def signs() -> Tensor:
    """Targets: −1 and 1, one an example."""
    return torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)


def probabilities() -> Tensor:
    """Targets: a distribution an example."""
    return torch.randn(N, C, dtype=torch.float64).softmax(1)


def log_probabilities() -> Tensor:
    """Targets: logarithms of a distribution."""
    return torch.randn(N, C, dtype=torch.float64).log_softmax(1)


def counts() -> Tensor:
    """Targets: whole numbers."""
    return torch.randint(0, 5, (N, C)).double()


def several_classes() -> Tensor:
    """Targets: the classes of an example, ended by −1."""
    return torch.tensor([[0, -1, -1], [1, 2, -1], [2, -1, -1], [0, 1, -1], [1, -1, -1]])


def two(loss: Callable[..., Tensor], split: int) -> Loss:
    """A loss of two inputs: the first `split` outputs and the rest."""
    return lambda f, t: loss(f[:, :split], f[:, split:], t)


def three(loss: Callable[..., Tensor]) -> Loss:
    """A loss of three inputs of two numbers each, and no target."""
    return lambda f, _: loss(f[:, :2], f[:, 2:4], f[:, 4:])


def after(change: Callable[[Tensor], Tensor], loss: Callable[..., Tensor]) -> Loss:
    """A loss of changed outputs, such as their logarithms."""
    return lambda f, t: loss(change(f), t)


def log_p(f: Tensor) -> Tensor:
    """Logarithms of the softmax of outputs."""
    return f.log_softmax(1)


REGRESSION: dict[str, Recipe] = {
    "L1Loss": loss_of(nn.L1Loss(), C, real()),
    "MSELoss": loss_of(nn.MSELoss(), C, real()),
    "mse_loss weighted": loss_of(
        lambda f, t: (WEIGHTS * F.mse_loss(f, t, reduction="none")).mean(), C, real()
    ),
    "SmoothL1Loss": loss_of(nn.SmoothL1Loss(beta=0.7), C, real()),
    "HuberLoss": loss_of(nn.HuberLoss(delta=0.7), C, real()),
    "PoissonNLLLoss": loss_of(nn.PoissonNLLLoss(), C, counts),
    "PoissonNLLLoss full": loss_of(
        after(torch.exp, nn.PoissonNLLLoss(log_input=False, full=True)), C, counts
    ),
    "GaussianNLLLoss": loss_of(
        lambda f, t: F.gaussian_nll_loss(f[:, :3], t, f[:, 3:].exp()), 6, real()
    ),
    "log-cosh": loss_of(lambda f, t: (f - t).cosh().log().mean(), C, real()),
}

CLASSIFICATION: dict[str, Recipe] = {
    "CrossEntropyLoss": loss_of(nn.CrossEntropyLoss(), C, classes),
    "CrossEntropyLoss weight": loss_of(nn.CrossEntropyLoss(WEIGHTS), C, classes),
    "CrossEntropyLoss ignore_index": loss_of(nn.CrossEntropyLoss(), C, ignored),
    "CrossEntropyLoss label_smoothing": loss_of(
        nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1), C, classes
    ),
    "CrossEntropyLoss probabilities": loss_of(
        nn.CrossEntropyLoss(label_smoothing=0.1), C, probabilities
    ),
    "CrossEntropyLoss over places": loss_of(
        lambda f, t: F.cross_entropy(f.view(-1, 3, 2), t), 6, lambda: torch.randint(0, 3, (N, 2))
    ),
    "NLLLoss": loss_of(after(log_p, nn.NLLLoss()), C, classes),
    "NLLLoss weight": loss_of(after(log_p, nn.NLLLoss(WEIGHTS)), C, classes),
    "NLLLoss ignore_index": loss_of(after(log_p, nn.NLLLoss()), C, ignored),
    "NLLLoss over places": loss_of(
        lambda f, t: F.nll_loss(f.view(-1, 3, 2, 1).log_softmax(1), t, WEIGHTS),
        6,
        lambda: torch.randint(0, 3, (N, 2, 1)),
    ),
    "KLDivLoss": loss_of(after(log_p, nn.KLDivLoss()), C, probabilities),
    "KLDivLoss batchmean": loss_of(nn.KLDivLoss(reduction="batchmean"), C, probabilities),
    "kl_div batchmean": loss_of(
        lambda f, t: F.kl_div(log_p(f), t, reduction="batchmean"), C, probabilities
    ),
    "KLDivLoss log_target": loss_of(
        after(log_p, nn.KLDivLoss(log_target=True)), C, log_probabilities
    ),
    "BCELoss": loss_of(after(torch.sigmoid, nn.BCELoss()), C, binary),
    "BCELoss weight": loss_of(after(torch.sigmoid, nn.BCELoss(WEIGHTS)), C, binary),
    "BCEWithLogitsLoss": loss_of(nn.BCEWithLogitsLoss(), C, binary),
    "BCEWithLogitsLoss pos_weight": loss_of(
        nn.BCEWithLogitsLoss(WEIGHTS, pos_weight=2 * WEIGHTS), C, binary
    ),
    "focal loss": loss_of(
        lambda f, t: (
            F.cross_entropy(f, t, reduction="none") * (1 - log_p(f).exp().amax(1))
        ).mean(),
        C,
        classes,
    ),
}

MARGINS: dict[str, Recipe] = {
    "MarginRankingLoss": loss_of(
        lambda f, t: F.margin_ranking_loss(f[:, 0] ** 2, f[:, 1], t, 0.3), 2, signs
    ),
    "HingeEmbeddingLoss": loss_of(
        lambda f, t: F.hinge_embedding_loss(f.square().sum(1), t, 2.0), C, signs
    ),
    "SoftMarginLoss": loss_of(nn.SoftMarginLoss(), C, lambda: 2 * binary() - 1),
    "MultiMarginLoss": loss_of(nn.MultiMarginLoss(), C, classes),
    "MultiMarginLoss p=2, weight": loss_of(nn.MultiMarginLoss(p=2, weight=WEIGHTS), C, classes),
    "MultiLabelMarginLoss": loss_of(nn.MultiLabelMarginLoss(), C, several_classes),
    "MultiLabelSoftMarginLoss": loss_of(nn.MultiLabelSoftMarginLoss(WEIGHTS), C, binary),
    "CosineEmbeddingLoss": loss_of(two(nn.CosineEmbeddingLoss(margin=-0.9), 2), 4, signs),
    "TripletMarginLoss": loss_of(three(nn.TripletMarginLoss()), 6, signs),
    "TripletMarginLoss swap": loss_of(three(nn.TripletMarginLoss(swap=True, p=3)), 6, signs),
    "TripletMarginWithDistanceLoss": loss_of(
        three(nn.TripletMarginWithDistanceLoss(distance_function=nn.CosineSimilarity())), 6, signs
    ),
}


def _ctc(f: Tensor, t: Tensor, **options: Any) -> Tensor:
    """Five examples of six times and four symbols, the targets two symbols each."""
    log_probabilities = f.view(N, 6, 4).log_softmax(2).transpose(0, 1)
    lengths = torch.full((N,), 6), torch.tensor([2, 1, 2, 2, 1])
    return F.ctc_loss(log_probabilities, t, *lengths, **options)


def _symbols() -> Tensor:
    return torch.tensor([[1, 2], [3, 1], [2, 2], [1, 3], [2, 3]])


def _adaptive() -> Subject:
    """AdaptiveLogSoftmaxWithLoss has weights of its own, so it stands in the model."""

    class Adaptive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4])

        def forward(self, x: Tensor) -> Tensor:
            return self.head.log_prob(self.body(x).tanh())

    inputs = torch.randn(N, 3, dtype=torch.float64)
    return Subject(Adaptive().double(), F.nll_loss, inputs, torch.tensor([0, 5, 3, 2, 4]))


def _contrastive(f: Tensor, _: Tensor) -> Tensor:
    unit = F.normalize(f, dim=1)
    return F.cross_entropy(unit[:, :2] @ unit[:, 2:].T / 0.5, torch.arange(len(f)))


def _with_penalty() -> Subject:
    """A loss that adds the squares of the weights, which it reads from the model."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, C)).double()

    def loss(f: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(f, t) + 0.1 * sum(p.square().sum() for p in model.parameters())

    return Subject(model, loss, torch.randn(N, 3, dtype=torch.float64), classes())


OTHERS: dict[str, Recipe] = {
    "CTCLoss": loss_of(_ctc, 24, _symbols),
    "CTCLoss zero_infinity": loss_of(lambda f, t: _ctc(f, t, zero_infinity=True), 24, _symbols),
    "AdaptiveLogSoftmaxWithLoss": _adaptive,
    "contrastive loss": loss_of(_contrastive, 4, classes),
    "weight penalty": _with_penalty,
}


def _large(loss: Loss, targets: Callable[[], Tensor]) -> Recipe:
    """Recipe of 64 examples, whose kept graph is large enough that optbench parts them."""

    def recipe() -> Subject:
        model = nn.Sequential(nn.Linear(2, 4096), nn.Tanh(), nn.Linear(4096, C)).double()
        return Subject(model, loss, torch.randn(64, 2, dtype=torch.float64), targets())

    return recipe


def _uneven() -> Tensor:
    """Targets of which the first half mostly does not count."""
    return torch.cat([torch.arange(32) % 3, torch.arange(32) % 3]).where(
        torch.arange(64) % 9 >= torch.arange(64) // 8, torch.tensor(-100)
    )


PARTED: dict[str, Recipe] = {
    "large graph: cross_entropy": _large(F.cross_entropy, lambda: torch.arange(64) % 3),
    "large graph: cross_entropy ignore_index": _large(F.cross_entropy, _uneven),
    "large graph: cross_entropy weight": _large(
        nn.CrossEntropyLoss(WEIGHTS), lambda: torch.arange(64) // 22
    ),
    "large graph: contrastive loss": _large(
        lambda f, _: F.cross_entropy(f @ f.T, torch.arange(len(f)).flip(0)),
        lambda: torch.arange(64),
    ),
}

CASES = REGRESSION | CLASSIFICATION | MARGINS | OTHERS | PARTED
