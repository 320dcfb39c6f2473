"""Selection of the parameters that an operator acts on: all that train, a layer, a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from optbench.curvature.errors import MeasurementError

Selection = Callable[[str, Tensor], bool] | Iterable[str] | None
"""A predicate of (name, parameter), parameter names, or None for all that train."""


def named_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that train, in the model's order, which is that of flat vectors."""
    return list(named_trainable(model).values())


def select(model: nn.Module, params: Selection = None) -> list[str]:
    """Names of the selected parameters, in the model's order.

    Frozen parameters (requires_grad False) are left out. Tied parameters come once, under the first
    of their names.

    Args:
        model: The model.
        params: A predicate of (name, parameter), parameter names, or None for all.

    Raises:
        MeasurementError: If a name is unknown or frozen, if nothing is left, or if parameters
            cannot be differentiated (lazy, or made in inference mode).
    """
    _check_model(model)
    trained = named_trainable(model)
    if params is None:
        chosen = list(trained)
    elif callable(params):
        chosen = [name for name, p in trained.items() if params(name, p)]
    else:
        chosen = _by_name(model, trained, [params] if isinstance(params, str) else params)
    _check_chosen(trained, chosen)
    return chosen


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise MeasurementError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise MeasurementError(
            f"parameters must have a shape, got lazy {lazy[0]}: do a forward pass first"
        )


def _check_chosen(trained: dict[str, nn.Parameter], chosen: list[str]) -> None:
    if not trained:
        raise MeasurementError(
            "the model has no parameter that trains: set requires_grad of those to be measured"
        )
    if any(trained[name].is_inference() for name in chosen):
        raise MeasurementError(
            "parameters were made in torch.inference_mode(), where nothing can be differentiated"
        )
    if not chosen:
        raise MeasurementError(
            f"params must leave at least one parameter that trains, got none of {len(trained)}"
        )


def _by_name(model: nn.Module, trained: dict[str, nn.Parameter], names: Iterable[str]) -> list[str]:
    """The named parameters in the model's order; any name of a tied parameter selects it."""
    everything = dict(model.named_parameters(remove_duplicate=False))
    wanted = set()
    for name in names:
        if name not in everything:
            raise MeasurementError(
                f"params must name parameters of the model, got {name!r}: see "
                "model.named_parameters()"
            )
        if not everything[name].requires_grad:
            raise MeasurementError(
                f"params must name parameters that train, got {name!r}, whose requires_grad is "
                "False"
            )
        wanted.add(id(everything[name]))
    return [name for name, p in trained.items() if id(p) in wanted]


def per_layer(model: nn.Module) -> dict[str, list[str]]:
    """Parameter names grouped by the module that owns them, for `params=`.

    Examples:
        >>> for layer, names in per_layer(model).items():
        ...     H = Hessian(model, loss, batches, params=names)
    """
    return _grouped(model, lambda name: name.rpartition(".")[0])


def per_block(model: nn.Module, depth: int = 1) -> dict[str, list[str]]:
    """Parameter names grouped by the first `depth` parts of their path, for `params=`.

    Args:
        model: The model.
        depth: Parts of the dotted path that name a block; 1 gives the model's direct children.

    Raises:
        MeasurementError: If depth is not positive.
    """
    if depth < 1:
        raise MeasurementError(f"depth must be positive, got {depth}")
    return _grouped(model, lambda name: ".".join(name.split(".")[:-1][:depth]))


def _grouped(model: nn.Module, key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in select(model):
        groups.setdefault(key(name), []).append(name)
    return groups
