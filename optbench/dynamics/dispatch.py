"""`edge(optimizer)`: the edge of stability of any optimizer, by its class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import singledispatch
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from torch import Tensor
from torch.optim import Optimizer

from optbench.dynamics import rules
from optbench.dynamics.black_box.probed_edge import black_box
from optbench.dynamics.edges import Edge, EigenvalueEdge, GradientEdge, NormBallEdge, UnknownEdge
from optbench.dynamics.optimizer_options import foreign_hooks, overridden, patched
from optbench.dynamics.option_coverage import misunderstood
from optbench.dynamics.update_rule import Term, unknown

Rule = Callable[[Any], Edge]
E = TypeVar("E", bound=UnknownEdge | EigenvalueEdge | NormBallEdge | GradientEdge)

_BY_NAME: dict[str, Rule] = {}
"""Rules for optimizers of packages that are not imported here, by "package.Class"."""


@singledispatch
def edge(optimizer: Optimizer) -> Edge:
    """The edge of stability of an optimizer at its current state and hyperparameters.

    For an update w ← (1−ηλ)w − η T(z)[P⁻¹g], stability is lost along an eigenvector of P⁻¹H where

        λ₁(P⁻¹H) = (2 − ηλ) / (η T(−1)).

    Convention: P and all bias corrections are those of the last update, as stored in the state;
    η and the other hyperparameters are the groups' current ones, so that a schedule acts at once.
    The first moment's bias correction 1−β₁ᵗ is part of P, since the update has it; published code
    leaves it out, which matters for some tens of steps. The quantity to compare with is λ₁ of
    `edge.operator(matvec)`, or of H itself if `edge.plain`.

    Costs a pass over the optimizer's state, no gradient; see `black_box` for the optimizers
    without a rule. It only reads: neither optimizer nor parameters change.

    To add an optimizer, register one function; without it the optimizer is probed:

        @edge.register(MyOptimizer)
        def _(optimizer: MyOptimizer) -> Edge:
            return combine([Term(p, lr=...) for p in ...], formula="2/η")

    Args:
        optimizer: Any torch.optim.Optimizer.

    Returns:
        The edge; its type says what the threshold is on, and its `source` whether it is a closed
        form, a conjecture, or probed.

    Raises:
        ValueError: If it is no optimizer.

    References:
        Cohen et al. (2021), arXiv:2103.00065; Cohen et al. (2022), arXiv:2207.14484.
    """
    if not hasattr(optimizer, "param_groups") or isinstance(optimizer, type):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
    _load_rules()
    by_class = edge.dispatch(type(optimizer))
    if by_class is not edge.dispatch(object):
        return by_class(optimizer)
    by_its_name = _rule_by_name(type(optimizer)) or black_box
    return _with_hooks(by_its_name(optimizer), optimizer)


def _load_rules() -> None:
    """Import every file of `rules/`, so that the answer does not depend on earlier imports."""
    for module in iter_modules(rules.__path__, f"{rules.__name__}."):
        import_module(module.name)


_register = edge.register


def _register_after_the_rules(cls: Any, rule: Any = None) -> Any:
    """As singledispatch's `register`, once every rule here is there for a user's to replace."""
    _load_rules()
    return _register(cls, rule)


edge.register = _register_after_the_rules  # type: ignore[method-assign, assignment]


def closed_form(
    *classes: type[Optimizer],
    understood: Collection[str] | None,
    off: Mapping[str, Any] | None = None,
) -> Callable[[Rule], Rule]:
    """Register a rule for classes: for their own methods, understood options, minimizing.

    A subclass, or a single optimizer, with a method of its own is another optimizer and goes to the
    black box; so does one with an option that the rule has not understood.

    Args:
        classes: What the rule is for, subclasses included.
        understood: Constructor arguments that the rule describes at every value, see
            `misunderstood`. None if its answer holds at whatever value, as that no edge is known.
        off: Value at which an option does nothing, where that is not its default.
    """

    def register(rule: Rule) -> Rule:
        for cls in classes:
            _register(cls, _guarded(rule, cls, understood, off or {}))
        return rule

    return register


def by_name(
    name: str, understood: Collection[str] | None, off: Mapping[str, Any] | None = None
) -> Callable[[Rule], Rule]:
    """Register a rule for "package.Class" without importing the package.

    With an option that the rule has not understood, the black box answers; so it does for a version
    of the package whose groups or attributes are not as the rule reads them.

    Args:
        name: Package and class, as the package exports it, or the module in full and the class.
        understood: As for `closed_form`.
        off: Likewise.
    """

    def register(rule: Rule) -> Rule:
        def guarded(optimizer: Optimizer) -> Edge:
            if why := _unlike_the_rule(optimizer, patched(optimizer), understood, off or {}):
                return black_box(optimizer, why)
            try:
                return rule(optimizer)
            except (KeyError, AttributeError) as problem:
                return black_box(
                    optimizer, f"the rule for {name} does not fit this version, {problem!r}"
                )

        _BY_NAME[name] = guarded
        return rule

    return register


def trainable(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Every parameter that takes a gradient, with its group, in the order of the groups."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad:
                yield group, p


def stateful(
    optimizer: Optimizer, term: Callable[[dict[str, Any], Tensor, Mapping[str, Any]], Term]
) -> list[Term]:
    """A term per parameter with state; one without has had no gradient and does not move."""
    return [
        term(group, p, state) if (state := optimizer.state.get(p)) else Term(p, lr=0.0)
        for group, p in trainable(optimizer)
    ]


def describe(terms: Sequence[Term], formula: str) -> str:
    """The formula with decoupled decay and its number, of the first tensor that moves."""
    t = next((t for t in terms if t.lr > 0), None)
    if t is None:
        return formula
    text = f"{formula}·(1−ηλ/2)" if t.decay else formula
    if t.gain != 1 or t.decay:
        text += f" = {(2 - t.decay) / t.gain:.4g}/η"
    return text


def _guarded(
    rule: Rule, cls: type[Optimizer], understood: Collection[str] | None, off: Mapping[str, Any]
) -> Rule:
    def guarded(optimizer: Optimizer) -> Edge:
        methods = overridden(optimizer, cls)
        if understood is None:  # no helper of a step that has no edge gives it one
            methods = [name for name in methods if name == "step"]
        parameters = [p for _, p in trainable(optimizer)]
        if not methods and any(group.get("maximize", False) for group in optimizer.param_groups):
            return unknown("maximize=True climbs the loss: pass −loss and minimize", parameters)
        if why := _unlike_the_rule(optimizer, methods, understood, off):
            return _with_hooks(black_box(optimizer, why), optimizer)
        return _with_hooks(rule(optimizer), optimizer)

    return guarded


def _unlike_the_rule(
    optimizer: Optimizer,
    methods: Sequence[str],
    understood: Collection[str] | None,
    off: Mapping[str, Any],
) -> str:
    """Why the rule for a class does not describe this optimizer, or ""."""
    name = type(optimizer).__name__
    if methods:
        return (
            f"{name} has a {methods[0]} of its own, which the rule for its class does not describe"
        )
    option = "" if understood is None else misunderstood(optimizer, understood, off)
    return f"the rule for {name} does not describe {option}".rstrip(",") if option else ""


def _with_hooks(known: Edge, optimizer: Optimizer) -> Edge:
    """The edge with a word on hooks, which stand outside of what a rule or a copy shows."""
    names = foreign_hooks(optimizer)
    if not names:
        return known
    word = (
        f"its step hooks ({', '.join(names)}) are taken to change neither gradients nor parameters"
    )
    return _with_reason(known, word)


def _with_reason(known: E, word: str) -> E:
    if isinstance(known, UnknownEdge):
        return known
    reason = "; ".join(filter(None, [known.reason, word]))
    if isinstance(known, GradientEdge):
        resolve = known.resolve
        return replace(
            known, reason=reason, resolve=lambda gradient: _with_reason(resolve(gradient), word)
        )
    return replace(known, reason=reason)


def _rule_by_name(cls: type[Optimizer]) -> Rule | None:
    package = cls.__module__.partition(".")[0]
    exported = getattr(sys.modules.get(package), cls.__name__, None)
    if exported is cls:
        return _BY_NAME.get(f"{package}.{cls.__name__}")
    return _BY_NAME.get(f"{cls.__module__}.{cls.__name__}")
