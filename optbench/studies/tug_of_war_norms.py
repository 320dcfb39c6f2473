"""The tug of war with the Fisher-Rao norm and the path norm among the levers, on other seeds."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from optbench.studies.frame import REFUTED, SUPPORTED, Table
from optbench.studies.tug_of_war import (
    MOVES,
    WORLDS,
    Rule,
    TugOfWar,
    World,
    contrasts,
    mean_slope,
    plant,
    told_slopes,
)

NORMS = {"fisher_rao": "fisher_rao_norm", "path_norm": "path_norm"}
"""{hypothesis: the lever that it is of}."""

PLANTED = {
    "fisher_rao": World({"fisher_rao_norm": 2.0}, cost=5),
    "path_norm": World({"path_norm": 2.0}, cost=5),
    **WORLDS,
}
AGAINST = {"sharpness": -0.6}
"""Planted: what a pull of a norm does to the others, so that λ₁ rises where the norm falls."""

FREE = {"fisher_rao": REFUTED, "path_norm": REFUTED, "function": REFUTED, "flatness": SUPPORTED}
"""Right where no lever moves the error."""


class TugOfWarNorms(TugOfWar):
    """`TugOfWar` with two more levers, and a hypothesis on each."""

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "fisher_rao": FREE | {"fisher_rao": SUPPORTED, "dissociates": SUPPORTED},
        "path_norm": FREE | {"path_norm": SUPPORTED, "dissociates": SUPPORTED},
        "flatness": {"flatness": REFUTED},
        "function": FREE | {"function": SUPPORTED, "dissociates": SUPPORTED},
        "nothing": FREE | {"dissociates": REFUTED},
        "displacement": FREE | {"dissociates": REFUTED},
    }

    def rules(self, rows: Table) -> Mapping[str, Rule]:
        """Those of `TugOfWar`, and the slope along each norm."""
        at_one = contrasts(rows)
        slopes: dict[str, Rule] = {
            name: (at_one, mean_slope(lever), lambda t, lever=lever: told_slopes(t, (lever,)))  # type: ignore[misc]
            for name, lever in NORMS.items()
        }
        return {**super().rules(rows), **slopes}

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world, as large as that of the size small."""
        rng = np.random.default_rng([seed, list(PLANTED).index(world)])
        moves = {**MOVES, **dict.fromkeys(NORMS.values(), AGAINST)}
        return plant(rng, PLANTED[world], self.declaration.sizes["small"], moves)
