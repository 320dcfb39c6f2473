"""Optimizers that differentiate the gradient."""

from typing import Any

from torch import Tensor

from optbench.optimizers.wrapper import Closure, Wrapper


class WithGraph(Wrapper):
    """A base that needs `.grad` with its graph, such as one with a Hutchinson estimate.

    Whoever makes the closure looks for `create_graph`; an optimizer of your own may have that
    attribute itself. It is true only before the steps at which the base estimates: every
    `base.update_period`-th, the first included.
    """

    @property
    def create_graph(self) -> bool:
        """Whether the coming step differentiates `.grad`."""
        done: Any = self.param_groups[0].get("step", 0)
        return int(done) % int(getattr(self.base, "update_period", 1)) == 0

    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Step the base."""
        return self.base.step(closure)  # type: ignore[arg-type]
