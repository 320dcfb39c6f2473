"""Trace and spectral density of the Hessian, and heterogeneity of its blocks."""

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

from optbench import metrics
from optbench.boundary.kinds import Count, CountFromZero, Several
from optbench.boundary.signature import check_fields
from optbench.curvature import (
    Eigenpairs,
    Hessian,
    NotConvergedWarning,
    block_densities,
    block_heterogeneity,
    per_layer,
    spectral_density,
    top_eigenpairs,
    trace,
)
from optbench.errors import UserError
from optbench.probes import State, Value
from optbench.seeds import derive


@dataclass
class Spectrum:
    """Trace, spectral density and block heterogeneity of the Hessian ∇²L(w).

    - `spectrum/trace` = tr ∇²L(w), with its 95 % interval.
    - `spectrum/nodes` and `spectrum/weights` are a quadrature of the density
      p(t) = (1/P) Σ_i δ(t − λ_i).
    - `spectrum/lambda_min` is the lowest node, an upper bound of the smallest eigenvalue.
    - `spectrum/heterogeneity` is the mean Jensen-Shannon distance between the densities of the
      layers' diagonal blocks, between 0 and 1; see `block_heterogeneity`. Absent where there is one
      layer.

    L is the sharpness probe's. Cost: about `steps`·`probes` + `samples` + layers·`layer_steps`
    Hessian-vector products.

    Args:
        every: Cadence: steps between measurements, `epoch`, `log`, `never`, or the name of a probe
            whose cadence is taken.
        examples: Number of training examples of L, always the first ones; None for all.
        samples: Random vectors of the trace's estimate.
        deflate: Eigenvectors that are deflated from that estimate, and tracked for it.
        steps: Lanczos steps per random vector of the density.
        probes: Random vectors of the density.
        layer_steps: Lanczos steps of a layer's density; 0 leaves the heterogeneity out.

    References:
        Ghorbani et al. (2019), arXiv:1901.10159; Zhang et al. (2024), arXiv:2402.16788.
    """

    every: int | str = "epoch"
    examples: Count | None = None
    samples: Several = 30
    deflate: Count = 5
    steps: Count = 64
    probes: Count = 2
    layer_steps: CountFromZero = 20
    _pairs: Eigenpairs | None = field(default=None, init=False)
    _of: str | None = field(default=None, init=False)  # signature of the parameters

    def __post_init__(self) -> None:
        check_fields(self, "spectrum.")

    def __call__(self, state: State) -> dict[str, Value]:
        """Estimate trace, density and heterogeneity."""
        start = time.perf_counter()
        seed = derive(state.seed, f"spectrum/{state.step}")
        H = state.shared.hessian(state, self.examples)
        before = H.hvps
        signature = state.shared.signature(state)
        start_pairs = self._pairs if self._of in (None, signature) else None
        with warnings.catch_warnings():
            # The trace is unbiased whether or not the deflated pairs have converged.
            warnings.simplefilter("ignore", NotConvergedWarning)
            pairs = top_eigenpairs(H, min(self.deflate, H.size), start=start_pairs, seed=seed)
        estimate = trace(H, self.samples, deflate=pairs, seed=seed + 1)
        density = spectral_density(H, min(self.steps, H.size), self.probes, seed=seed + 2)
        self._pairs, self._of = pairs, signature
        values: dict[str, Value] = {
            metrics.TRACE: estimate.value,
            metrics.TRACE + metrics.LOW: estimate.low,
            metrics.TRACE + metrics.HIGH: estimate.high,
            metrics.LAMBDA_MIN: float(density.nodes[0]),
            metrics.NODES: density.nodes.tolist(),
            metrics.WEIGHTS: density.weights.tolist(),
        }
        values |= self._heterogeneity(state, H, seed + 3)
        return values | {
            metrics.SPECTRUM_HVPS: H.hvps - before,
            metrics.SPECTRUM_SECONDS: time.perf_counter() - start,
        }

    def _heterogeneity(self, state: State, H: Hessian, seed: int) -> dict[str, Value]:
        layers = per_layer(state.model)
        if self.layer_steps == 0 or len(layers) < 2:
            return {}
        return {
            metrics.HETEROGENEITY: block_heterogeneity(
                block_densities(H, layers, self.layer_steps, seed=seed)
            )
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the warm start."""
        return {"pairs": None if self._pairs is None else vars(self._pairs), "of": self._of}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the warm start."""
        if "pairs" not in state:
            raise UserError(
                "the state of spectrum is from before eigenpairs remembered what they met: start "
                "anew"
            )
        self._of = state.get("of")
        self._pairs = None if state["pairs"] is None else Eigenpairs(**state["pairs"])
