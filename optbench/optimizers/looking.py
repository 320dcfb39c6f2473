"""What an optimizer may see beside its closure: the model, and the inputs of the batch."""

from torch import Tensor, nn
from torch.optim import Optimizer


def look(optimizer: Optimizer, model: nn.Module, inputs: Tensor) -> None:
    """Show an optimizer that has a method `look_at` the model and the inputs of the coming step."""
    if callable(look_at := getattr(optimizer, "look_at", None)):
        look_at(model, inputs)
