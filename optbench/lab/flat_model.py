"""A model whose trained weights are one vector, for experiments that walk by rules of their own."""

import copy

import torch
from torch import Tensor, nn

from optbench.curvature.selection import trainable
from optbench.task import Loss, Split


class FlatModel:
    """A copy of a model on a training set: all weights are views of one vector.

    Writing to `weights` moves the model. The loss is that of the full set.

    Args:
        model: Model; it is copied, never changed.
        loss: (outputs, targets) → the mean over examples.
        data: Training examples.

    Attributes:
        model: The copy.
        weights: w, (P,), in the order of the trained parameters.
    """

    def __init__(self, model: nn.Module, loss: Loss, data: Split) -> None:
        self.model = copy.deepcopy(model)
        self.criterion, self.data = loss, data
        self.parameters = trainable(self.model)
        self.weights = torch.cat([p.detach().flatten() for p in self.parameters])
        pieces = self.weights.split([p.numel() for p in self.parameters])
        for p, piece in zip(self.parameters, pieces, strict=True):
            p.data = piece.view_as(p)

    def gradient(self, indices: Tensor | None = None) -> tuple[float, Tensor]:
        """Return L and ∇L, (P,), of the full set or of some examples."""
        x, y = self.data.inputs, self.data.targets
        if indices is not None:
            x, y = x[indices], y[indices]
        loss = self.criterion(self.model(x), y)
        found = torch.autograd.grad(loss, self.parameters)
        return float(loss.detach()), torch.cat([g.flatten() for g in found])

    def loss_at(self, weights: Tensor) -> float:
        """Return L(w) of the full set; the model stays where it is."""
        kept = self.weights.clone()
        self.weights.copy_(weights)
        try:
            with torch.no_grad():
                return float(self.criterion(self.model(self.data.inputs), self.data.targets))
        finally:
            self.weights.copy_(kept)


def losses(model: nn.Module, loss: Loss, data: Split) -> Tensor:
    """Return the loss of each example, (N,)."""
    with torch.no_grad():
        outputs = model(data.inputs)
        each = torch.vmap(lambda f, y: loss(f[None], y[None]))
        found: Tensor = each(outputs, data.targets)
    return found
