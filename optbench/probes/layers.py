"""Norms and angles, layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from optbench import metrics
from optbench.boundary.kinds import Count
from optbench.curvature.selection import named_trainable, trainable
from optbench.probes import State, Value
from optbench.probes.after_update import AfterUpdate, flat


@dataclass
class Layers(AfterUpdate):
    """Of every layer that has weights w of its own, at the step that the update d led to, in Euclidean norm.

    `layers/NAME/weight_norm` = ‖w‖, `layers/NAME/gradient_norm` = ‖∇L‖ over `examples`,
    `layers/NAME/update_norm` = ‖d‖, `layers/NAME/angle` between w before and after, in radians
    (AdamW's settles near √(2ηλ)). A layer is a module with its weight and bias. Cost: one gradient,
    and a copy of the weights.

    Args:
        every: See `AfterUpdate`.
        interval: Steps between the updates that are measured.
        examples: How many training examples, always the same, the first ones; None for all.

    References:
        Kosson et al. (2023), arXiv:2305.17212.
    """

    examples: Count | None = None

    def measure(self, state: State, before: Sequence[Tensor]) -> dict[str, Value]:
        """Measure every layer."""
        now = trainable(state.model)
        gradient = state.shared.loss_and_gradient(state, self.examples)[1]
        slopes = gradient.split([p.numel() for p in now])
        found: dict[str, Value] = {}
        for name, chosen in _layers(state).items():
            w, v = (flat([tensors[i] for i in chosen]).double() for tensors in (before, now))
            found[metrics.of_layer(name, metrics.WEIGHT_NORM)] = float(v.norm())
            found[metrics.of_layer(name, metrics.GRADIENT_NORM)] = float(
                flat([slopes[i] for i in chosen]).norm()
            )
            found[metrics.of_layer(name, metrics.UPDATE_NORM)] = float((v - w).norm())
            found[metrics.of_layer(name, metrics.ANGLE)] = _angle(w, v)
        return found


def _layers(state: State) -> dict[str, list[int]]:
    """Positions of the tensors of each layer, by its name."""
    found: dict[str, list[int]] = {}
    names = list(named_trainable(state.model))
    for i, name in enumerate(names):
        found.setdefault(name.rpartition(".")[0] or name, []).append(i)
    return found


def _angle(a: Tensor, b: Tensor) -> float:
    """The angle of two vectors, exact for small ones too; 0 if one vanishes."""
    norms = float(a.norm()), float(b.norm())
    if not all(norms):
        return 0.0
    a, b = a / norms[0], b / norms[1]
    return 2 * math.atan2(float((a - b).norm()), float((a + b).norm()))
