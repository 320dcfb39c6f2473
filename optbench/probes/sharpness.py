"""Sharpness: the largest eigenvalues of the Hessian of the training loss."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from optbench import metrics
from optbench.boundary.kinds import Count, Pairs, Positive
from optbench.boundary.signature import check_fields
from optbench.curvature import Eigenpairs
from optbench.dynamics.edges import EigenvalueEdge, UnknownEdge, awaits_a_step, on_sharpness
from optbench.errors import UserError
from optbench.probes import State, Value
from optbench.probes.others import PRODUCTS, Crossing, on_others
from optbench.probes.pace import Pace
from optbench.probes.tracking import Tracker, later_hvps
from optbench.seeds import derive


@dataclass
class Sharpness:
    """`sharpness/lambda_max` = λ₁(∇²L(w)), the algebraically largest eigenvalue.

    - `sharpness/lambda_max_bound` bounds λ₁ − lambda_max, if no larger eigenvalue was lost. An
      audit every `audit_every` solves looks for a lost one, and the search then starts anew.
    - `sharpness/held_out` ± `sharpness/held_out_error`, where H is over some of the training
      examples only, is the curvature along the eigenvector on as many others, drawn from the rest,
      at every fourth solve, at the end, and where λ₁ is at a threshold of its own or above, until
      others have once confirmed that: on average the λ₁ of all is between it and lambda_max,
      if the first examples are a random sample; see `optbench.curvature.held_out`. The cost is that
      of about two products.
    - `sharpness/lambda_2` … are further eigenvalues, for k > 1.
    - `sharpness/converged` is 0 where a search ended at its limit of products; else it is absent.

    L is the loss that is trained on, over the training set without augmentation, with every module
    in its present mode: batch norm in train mode uses the statistics of all `examples`, and dropout
    has one fixed mask. Cost: `sharpness/hvps` Hessian-vector products, each about 1 to 3 gradients
    of L.

    Args:
        every: Cadence: steps between measurements, `epoch`, `log`, `never`, the name of a probe, or
            `adaptive`, more often while curvature changes, at `share` of what training costs: see
            `optbench.probes.pace.Pace`. It follows λ₁, or the quantity of the
            optimizer's edge where the edge probe measures another at the same steps.
        share: Of the adaptive cadence: updates' worth of products for each update, at most; those
            of the edge probe count too. The other probes come on top.
        examples: Number of training examples of L, always the first ones; None for all.
        k: Number of eigenvalues.
        accuracy: Bound to reach, relative to λ₁; the error is usually much smaller.
        audit_every: Solves between audits, of 20 products each.
        solve_every: Most measurements from one solve with guard vectors to the next. The
            others hold the last solve's vectors, at a product or two, if λ₁ is separated by more
            than the Hessian was seen to change since; see `trust` of
            `optbench.curvature.top_eigenpairs`. `sharpness/solved` is then 0, and the bound assumes
            that change. At the edge, where eigenvalues crowd, nearly all are solves. 1: all are.
        longest: Longest interval of the adaptive cadence, in steps, where the share allows it.
        engine: Eigensolver: `lobpcg`, or `pyhessian` to reproduce numbers from PyHessian: in eval
            mode, the eigenvalues largest in magnitude, with its stopping rule; the bound is the
            residual.
        thin: Times that the probe is due for each one that it measures, where the optimizer's edge
            is on another quantity than λ₁ (Adam, Muon). The edge probe measures that one every
            time.

    References:
        Cohen et al. (2021), arXiv:2103.00065.
    """

    every: int | str = "adaptive"
    share: Positive = 0.2
    examples: Count | None = None
    k: Pairs = 1
    accuracy: Positive = 5e-3
    audit_every: Count = 50
    solve_every: Count = 4
    longest: Count = 50
    engine: Literal["lobpcg", "pyhessian"] = "lobpcg"
    thin: Count = 4
    _left_out: int = field(default=0, init=False)  # due times since the last measurement
    _crossing: Crossing = field(default_factory=Crossing, init=False)

    def __post_init__(self) -> None:
        check_fields(self, "sharpness.")
        self._tracker = Tracker(
            "sharpness", self.k, self.accuracy, self.audit_every, self.solve_every
        )
        self._pace = Pace(self.share, self.longest)

    @property
    def next_step(self) -> int:
        """Step of the next measurement of the adaptive cadence."""
        return self._pace.next_step

    def times_left(self, after: int, steps: int, updates: float | None) -> int:
        """Times that the adaptive cadence is due after a step, about; see `Pace.left`."""
        return self._pace.left(after, steps, updates)

    def __call__(self, state: State) -> dict[str, Value]:
        """Find the k largest eigenvalues, starting from the last measurement's eigenvectors."""
        self._pace.begin(state.step)
        state.shared.pace = self._pace
        if self._leaves_out(state):
            return {}
        start = time.perf_counter()
        pairs, hvps = (self._lobpcg if self.engine == "lobpcg" else self._pyhessian)(state)
        held_out = self._held_out(pairs, state)
        seconds = time.perf_counter() - start
        products = hvps + (PRODUCTS if held_out else 0)
        self._pace.take(metrics.SHARPNESS, float(pairs.values[0]), products, state, self.examples)
        values: dict[str, Value] = {
            metrics.SHARPNESS: float(pairs.values[0]),
            metrics.SHARPNESS_BOUND: float(pairs.bounds[0]),
        }
        values |= {
            metrics.numbered(metrics.SHARPNESS_K, i + 1): float(pairs.values[i])
            for i in range(1, len(pairs.values))
        }
        if not pairs.converged:
            values[metrics.SHARPNESS_CONVERGED] = 0
        values |= held_out
        return values | {
            metrics.SHARPNESS_SOLVED: int(not pairs.held),
            metrics.SHARPNESS_HVPS: hvps,
            metrics.SHARPNESS_SECONDS: seconds,
        }

    def _held_out(self, pairs: Eigenpairs, state: State) -> dict[str, Value]:
        """What the eigenvector's curvature is on other examples, where H is not over all."""
        if self.examples is None or self.engine == "pyhessian":  # which measures in eval mode
            return {}
        threshold = _threshold(state)
        distance = None if threshold is None else float(pairs.values[0]) / threshold
        found = on_others(
            self._tracker.solves,
            pairs.vectors[:, 0],
            self.examples,
            metrics.SHARPNESS_HELD_OUT,
            state,
            self._crossing.in_doubt(distance),
        )
        if found is None:
            return {}
        if threshold is not None:
            self._crossing.take(distance, found.value / threshold, found.error / threshold)
        return {
            metrics.SHARPNESS_HELD_OUT: found.value,
            metrics.SHARPNESS_HELD_OUT_ERROR: found.error,
        }

    def _leaves_out(self, state: State) -> bool:
        """Whether `thin` skips this measurement; it never skips the first and the last."""
        if self.thin == 1 or state.step in (0, state.steps):
            return False
        edge = state.shared.edge(state)
        if isinstance(edge, UnknownEdge) or on_sharpness(edge):
            return False
        self._left_out = (self._left_out + 1) % self.thin
        return self._left_out != 0

    def _lobpcg(self, state: State) -> tuple[Eigenpairs, int]:
        hessian = state.shared.hessian(state, self.examples)
        before = hessian.hvps
        seed = derive(state.seed, f"sharpness/{state.step}")
        pairs = self._tracker.solve(hessian, state.shared.signature(state), seed, state.say)
        if not pairs.held:  # the bound of held pairs is on the value, not on the vector
            state.shared.top_vector = pairs.vectors[:, 0], self.examples
        return pairs, hessian.hvps - before

    def _pyhessian(self, state: State) -> tuple[Eigenpairs, int]:
        from optbench.curvature.pyhessian import PyHessian  # slow to import, rarely used

        examples = state.task.train.first(self.examples)
        data = (examples.inputs, examples.targets)
        seed = derive(state.seed, f"sharpness/{state.step}") % 2**32  # NumPy's largest seed
        pairs = PyHessian(state.model, state.task.loss, data, seed=seed).top_eigenpairs(self.k)
        return pairs, pairs.hvps

    def later_products(self, state: State) -> float | None:
        """See `optbench.probes.cost.Foretelling`; PyHessian has no warm start."""
        if self.engine == "pyhessian":
            return None
        edge = state.shared.edge(state)
        is_thin = awaits_a_step(edge) or not (isinstance(edge, UnknownEdge) or on_sharpness(edge))
        return later_hvps(state.full_batch) / (self.thin if is_thin else 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the warm start, the due times left out and the adaptive cadence."""
        return {
            "tracker": self._tracker.state_dict(),
            "left_out": self._left_out,
            "crossing": self._crossing.is_sure,
            "pace": self._pace.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the warm start, the due times left out and the adaptive cadence."""
        if "pace" not in state:
            raise UserError("the state of sharpness is from before it paced itself: start anew")
        self._tracker.load_state_dict(state["tracker"])
        self._left_out = state["left_out"]
        self._crossing = Crossing(state.get("crossing", False))
        self._pace.load_state_dict(state["pace"])


def _threshold(state: State) -> float | None:
    """Threshold of λ₁(H), where the optimizer's edge is on that and needs no gradient."""
    edge = state.shared.edge(state)
    if isinstance(edge, EigenvalueEdge) and edge.plain and edge.threshold > 0:
        return edge.threshold
    return None
