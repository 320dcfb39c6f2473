"""Norms of weights, gradients and updates, and angles, layer by layer."""

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
    """Euclidean norms and angles of each layer's weights w, for the update d.

    - `layers/NAME/weight_norm` = ‖w‖, after the update;
    - `layers/NAME/gradient_norm` = ‖∇L‖ over `examples`, after the update;
    - `layers/NAME/update_norm` = ‖d‖;
    - `layers/NAME/angle` between w before and after, in radians; AdamW's settles near √(2ηλ).

    A layer is a module with its weight and bias. Recorded at the step that d led to. Cost: one
    gradient, and a copy of the weights.

    Args:
        every: Steps between the updates that are measured, or `never`.
        examples: Number of training examples of L, always the first ones; None for all.

    References:
        Kosson et al. (2023), arXiv:2305.17212.
    """

    examples: Count | None = None

    def measure(self, state: State, before: Sequence[Tensor]) -> dict[str, Value]:
        """Measure every layer."""
        now = trainable(state.model)
        gradient = state.shared.loss_and_gradient(state, self.examples)[1]
        slopes = gradient.split([p.numel() for p in now])
        values: dict[str, Value] = {}
        for name, indices in _layers(state).items():
            w, v = (flat([tensors[i] for i in indices]).double() for tensors in (before, now))
            slope = flat([slopes[i] for i in indices])
            values[metrics.of_layer(name, metrics.WEIGHT_NORM)] = float(v.norm())
            values[metrics.of_layer(name, metrics.GRADIENT_NORM)] = float(slope.norm())
            values[metrics.of_layer(name, metrics.UPDATE_NORM)] = float((v - w).norm())
            values[metrics.of_layer(name, metrics.ANGLE)] = _angle(w, v)
        return values


def _layers(state: State) -> dict[str, list[int]]:
    """Indices of each layer's tensors among the trained ones, by the layer's name."""
    indices: dict[str, list[int]] = {}
    names = list(named_trainable(state.model))
    for i, name in enumerate(names):
        indices.setdefault(name.rpartition(".")[0] or name, []).append(i)
    return indices


def _angle(a: Tensor, b: Tensor) -> float:
    """Angle 2 atan2(‖a − b‖, ‖a + b‖) of two vectors scaled to unit length; 0 if one is zero.

    Unlike arccos aᵀb, it is accurate for small angles.
    """
    norms = float(a.norm()), float(b.norm())
    if not all(norms):
        return 0.0
    a, b = a / norms[0], b / norms[1]
    return 2 * math.atan2(float((a - b).norm()), float((a + b).norm()))
