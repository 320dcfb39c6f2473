"""Gradient descent, with momentum of either kind: w ← w − η T(z)[g + wd · w]."""

from __future__ import annotations

from torch.optim import SGD

from optbench.dynamics.dispatch import closed_form, describe, trainable
from optbench.dynamics.edges import Edge
from optbench.dynamics.momentum_filters import heavy_ball, nesterov
from optbench.dynamics.update_rule import Term, combine, unknown


@closed_form(SGD, understood=("lr", "momentum", "dampening", "weight_decay", "nesterov"))
def _sgd(optimizer: SGD) -> Edge:
    terms = []
    parameters = [p for _, p in trainable(optimizer)]
    for group, p in trainable(optimizer):
        beta, dampening = float(group["momentum"]), float(group["dampening"])
        if not 0 <= beta < 1:
            return unknown(f"momentum={beta:g} does not decay: it must be below 1", parameters)
        # b ← βb + (1−d)g. Heavy ball steps along b, T(−1) = (1−d)/(1+β); Nesterov along g + βb.
        # arXiv:2103.00065: 2/η, (2+2β)/η, (2+2β)/((1+2β)η).
        gain = 1.0
        if beta:
            gain = (nesterov if group["nesterov"] else heavy_ball)(beta, dampening)
        # torch adds wd · w to g: the Hessian that is met is H + wd
        wd = float(group["weight_decay"])
        terms.append(Term(p, lr=float(group["lr"]), gain=gain, shift=wd))
    group = optimizer.param_groups[0]
    d = "(1−d)" if group["dampening"] else ""
    formula = "2/η"
    if group["momentum"]:
        formula = "(2+2β)/((1+2β)η)" if group["nesterov"] else f"(2+2β)/({d}η)" if d else "(2+2β)/η"
    return combine(terms, describe(terms, formula))
