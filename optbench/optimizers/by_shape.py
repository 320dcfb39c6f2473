"""One optimizer for matrices, another for everything else, as Muon wants it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench.optimizers import evaluate

Group = dict[str, Any]
Factory = Callable[[Any], Optimizer]


class ByShape(Optimizer):
    """Train parameters of two or more dimensions with `matrices`, the others with `rest`.

    A convolution's weight (O, I, h, w) is handed over as the matrix (O, I·h·w), a view of the same
    memory, as Jordan et al. (2024) do. Learning-rate schedules see the groups of both parts.

    Args:
        params: Parameters of one model, or groups of them; a group's settings go to both parts.
        matrices: Makes the optimizer of the matrices, of which there may be none.
        rest: Makes the optimizer of the rest, of which there may be none.
    """

    def __init__(self, params: Iterable[nn.Parameter], matrices: Factory, rest: Factory) -> None:
        given = list(params)
        super().__init__(given, {})
        every = [p for group in self.param_groups for p in group["params"]]
        self._pairs = [(p, _as_matrix(p)) for p in every if p.ndim >= 2]
        others = [p for p in every if p.ndim < 2]
        self.parts: dict[str, Optimizer] = {}
        grouped = bool(given) and isinstance(given[0], dict)
        seen_as = {id(p): matrix for p, matrix in self._pairs} | {id(p): p for p in others}
        if self._pairs:
            own = [matrix for _, matrix in self._pairs]
            self.parts["matrices"] = matrices(self._split(seen_as, own) if grouped else own)
        if others:
            self.parts["rest"] = rest(self._split(seen_as, others) if grouped else others)
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    def _split(self, seen_as: dict[int, nn.Parameter], kept: list[nn.Parameter]) -> list[Group]:
        """The groups, each with those of its parameters that are kept, as the part sees them."""
        ids = {id(p) for p in kept}
        return [
            group
            | {"params": [seen_as[id(p)] for p in group["params"] if id(seen_as[id(p)]) in ids]}
            for group in self.param_groups
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step of both parts after one evaluation of the closure."""
        loss = evaluate(closure)
        for p, matrix in self._pairs:
            matrix.grad = None if p.grad is None else _view_as_matrix(p.grad, like=p)
        for part in self.parts.values():
            part.step()
        return loss

    def tensors(self, matrices: Iterable[Tensor]) -> list[nn.Parameter]:
        """The model's parameters that these matrices are views of."""
        known = {id(matrix): p for p, matrix in self._pairs}
        return [known[id(matrix)] for matrix in matrices]

    @staticmethod
    def as_matrix(x: Tensor, like: Tensor) -> Tensor:
        """A tensor of the shape of a parameter, as the matrix that its optimizer sees."""
        return (
            x.contiguous().reshape(len(like), -1)
            if like.is_contiguous()
            else _view_as_matrix(x, like)
        )

    @staticmethod
    def as_tensor(matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `as_matrix`."""
        if like.is_contiguous():
            return matrix.reshape(like.shape)
        middle = matrix.reshape(len(like), *like.shape[2:], like.shape[1])
        return middle.permute(0, like.ndim - 1, *range(1, like.ndim - 1))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the model's own parameters and of their matrix views."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)
        for p, _ in self._pairs:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return both parts' state, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both parts."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]


def _view_as_matrix(x: Tensor, like: Tensor) -> Tensor:
    # Column order does not matter to an optimizer of matrices, sharing the memory does: for
    # channels_last weights the columns are therefore (h, w, I) rather than (I, h, w).
    if like.is_contiguous():
        return x.reshape(len(like), -1)
    order = (0, *range(2, like.ndim), 1)
    return x.permute(order).reshape(len(like), -1)


def _as_matrix(p: nn.Parameter) -> nn.Parameter:
    if p.ndim == 2:
        return p
    matrix = nn.Parameter(_view_as_matrix(p.detach(), like=p))
    if matrix.data_ptr() != p.data_ptr():
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} and strides {p.stride()} has no matrix view"
        )
    return matrix


def marked(params: Iterable[Any], optimizer: Callable[[list[Group]], Optimizer]) -> Optimizer:
    """Make one of pytorch_optimizer's variants of Muon, whose groups say `use_muon`.

    Args:
        params: Matrices, or groups of them.
        optimizer: Makes the variant of Muon.
    """
    given = list(params)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    return optimizer([group | {"use_muon": True} for group in groups])
