"""`edge(optimizer)`: the edge of stability of any optimizer, by its class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import singledispatch
from importlib import import_module
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, SGD, Optimizer, Rprop, SparseAdam

from optbench.dynamics.black_box.probed_edge import black_box
from optbench.dynamics.edges import Edge
from optbench.dynamics.momentum_filters import heavy_ball, nesterov
from optbench.dynamics.optimizer_options import foreign_hooks, overridden, patched
from optbench.dynamics.option_coverage import misunderstood
from optbench.dynamics.update_rule import Term, combine, unknown

Rule = Callable[[Any], Edge]

_RULES = ("adam", "norm_ball", "shampoo_soap", "optbench_optimizers", "no_edge", "wrappers")
"""The modules that hold rules. They import this one, which loads them when it is first asked."""

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
    `Edge.operator(matvec)`, or of H itself if `Edge.plain`.

    Costs a pass over the optimizer's state, no gradient; see `black_box` for the optimizers
    without a rule. It only reads: neither optimizer nor parameters change.

    To add an optimizer, register one function; without it the optimizer is probed:

        @edge.register(MyOptimizer)
        def _(optimizer: MyOptimizer) -> Edge:
            return combine([Term(p, lr=...) for p in ...], formula="2/η")

    Args:
        optimizer: Any torch.optim.Optimizer.

    Returns:
        The edge; its `source` says whether it is a closed form, a conjecture, probed or unknown.

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
    """Import every module of rules, so that the answer does not depend on what was imported before."""
    for module in _RULES:
        import_module(f"{__package__}.rules.{module}")


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
    """Register a rule that trusts only the classes' own methods, understood options and minimization.

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


def _with_hooks(found: Edge, optimizer: Optimizer) -> Edge:
    """The edge with a word on hooks, which stand outside of what a rule or a copy shows."""
    names = foreign_hooks(optimizer)
    if not names or found.source == "unknown":
        return found
    word = (
        f"its step hooks ({', '.join(names)}) are taken to change neither gradients nor parameters"
    )
    resolve = found.resolve
    return replace(
        found,
        reason="; ".join(filter(None, [found.reason, word])),
        resolve=resolve and (lambda gradient: _with_hooks(resolve(gradient), optimizer)),
    )


def _rule_by_name(cls: type[Optimizer]) -> Rule | None:
    package = cls.__module__.partition(".")[0]
    exported = getattr(sys.modules.get(package), cls.__name__, None)
    if exported is cls:
        return _BY_NAME.get(f"{package}.{cls.__name__}")
    return _BY_NAME.get(f"{cls.__module__}.{cls.__name__}")


@closed_form(SGD, understood=("lr", "momentum", "dampening", "weight_decay", "nesterov"))
def _sgd(optimizer: SGD) -> Edge:
    terms = []
    for group, p in trainable(optimizer):
        beta, dampening = float(group["momentum"]), float(group["dampening"])
        if not 0 <= beta < 1:
            return unknown(f"momentum={beta:g} does not decay: it must be below 1", [p])
        gain = 1.0
        if beta:
            gain = (nesterov if group["nesterov"] else heavy_ball)(beta, dampening)
        wd = float(group["weight_decay"])
        terms.append(Term(p, lr=float(group["lr"]), gain=gain, shift=wd))
    group = optimizer.param_groups[0]
    d = "(1−d)" if group["dampening"] else ""
    formula = "2/η"
    if group["momentum"]:
        formula = "(2+2β)/((1+2β)η)" if group["nesterov"] else f"(2+2β)/({d}η)" if d else "(2+2β)/η"
    return combine(terms, describe(terms, formula))


@closed_form(Rprop, LBFGS, SparseAdam, understood=None)
def _not_linear(optimizer: Optimizer) -> Edge:
    reasons = {
        Rprop: "Rprop adapts its step to sign changes: at an oscillation it shrinks, no fixed edge",
        LBFGS: "L-BFGS has no fixed linear filter: memory and line search follow the curvature",
        SparseAdam: "SparseAdam updates only the entries that have a gradient at each step",
    }
    reason = next(text for cls, text in reasons.items() if isinstance(optimizer, cls))
    return unknown(reason, [p for _, p in trainable(optimizer)])
